"""Samplers: one function each, from x at times[0] to x at times[-1].

All share `(denoise, schedule, x, times)`: x (B, ...) at times[0], which is sigma(times[0]) eps where the path starts in
(nearly) pure noise, and times (N + 1,), decreasing, from `latent.grid`. The denoiser gets t as () in float64 on the
CPU, so that no step waits for an accelerator, and is never called at sigma = 0. x is held in float32 or wider.
Every grid may end at 0 and, where the path and the prediction allow it, start at 1.
"""

from latent.sample.consistency import consistency
from latent.sample.langevin import annealed_langevin
from latent.sample.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from latent.sample.ode import dormand_prince, euler, heun, midpoint, rk4
from latent.sample.posterior import ancestral, ddim
from latent.sample.sde import edm_stochastic, euler_maruyama, predictor_corrector
from latent.sample.unipc import unipc

__all__ = [
    "ancestral",
    "annealed_langevin",
    "consistency",
    "ddim",
    "dormand_prince",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "edm_stochastic",
    "euler",
    "euler_maruyama",
    "heun",
    "midpoint",
    "predictor_corrector",
    "rk4",
    "unipc",
]
