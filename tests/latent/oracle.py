"""Data N(MEAN, STD^2) in every coordinate: denoiser, marginals and probability-flow map in closed form."""

import torch

from latent.predict import Estimate
from latent.schedule import DDPM, EDM, VE, VP, Cosine, Flow, SubVP

MEAN, STD = 1.5, 0.5
SCHEDULES = [
    Flow(),
    Flow(sigma_min=0.01),
    VP(),
    VP(zero_terminal=True),
    SubVP(),
    Cosine(),
    Cosine(offset=0.008),
    DDPM(),
    DDPM(betas="cosine"),
    DDPM(betas="scaled_linear", beta_min=0.00085, beta_max=0.012, zero_terminal=True),
    VE(),
    EDM(),
]
PURE = [schedule for schedule in SCHEDULES if schedule.alpha(torch.ones(())) == 0]
"""Those that end in noise alone, at alpha = 0."""
PREDICTIONS = ["x", "eps", "v", "velocity", "score", "edm"]


def name(schedule):
    return repr(schedule)


def marginal(schedule, t):
    """Mean and standard deviation of x_t."""
    return schedule.alpha(t) * MEAN, torch.sqrt((schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2)


def beside(t, x):
    """t, () or (B,), with the trailing axes of x where it has any."""
    return t.reshape(-1, *(1,) * (x.ndim - 1)) if t.ndim else t


def exact(schedule):
    """E[x | x_t] and E[eps | x_t]."""

    def denoise(x_t, t):
        t = beside(t, x_t)
        mean, std = marginal(schedule, t)
        score = -(x_t - mean) / std**2
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return Estimate(x=MEAN + alpha * STD**2 * (x_t - mean) / std**2, eps=-sigma * score)

    return denoise


def flow_map(schedule, x, t, s):
    """Where the probability flow carries x from time t to s: quantiles stay."""
    (mean_t, std_t), (mean_s, std_s) = marginal(schedule, t), marginal(schedule, s)
    return mean_s + std_s / std_t * (x - mean_t)


def quantiles(schedule, t, count=1000):
    """Evenly weighted points of the marginal at t."""
    mean, std = marginal(schedule, t)
    normal = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return mean + std * normal / normal.std(correction=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def raw_network(x_t, t, cond):
    """A smooth function of both, for comparing steps with other libraries."""
    return torch.tanh(1.3 * x_t + t.reshape(-1, *(1,) * (x_t.ndim - 1))) * 0.8
