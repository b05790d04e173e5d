"""Samplers: one function each, from x at times[0] to x at times[-1].

All share `(denoise, schedule, x, times)`: x (B, ...) at times[0], which is sigma(times[0]) eps where the path starts in
(nearly) pure noise, and times (N + 1,), decreasing, from `latent.grid`. The denoiser gets t as () in float64 on the
CPU, so that no step waits for an accelerator, and is never called at sigma = 0. x is held in float32 or wider.
Every grid may end at 0 and, where the path and the prediction allow it, start at 1.
"""

from latent.sample.multistep import dpmpp_2m
from latent.sample.ode import euler, heun
from latent.sample.posterior import ancestral, ddim

__all__ = ["ancestral", "ddim", "dpmpp_2m", "euler", "heun"]
