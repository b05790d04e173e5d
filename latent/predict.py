"""What the network predicts, and how to read x and eps back from it.

Every target in use is a linear form a x + b eps. Together with x_t = alpha x + sigma eps this is a 2x2 system, so one
solve covers all predictions, and everything after it (samplers, guidance) sees only estimates of x and eps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar, assert_never

import torch
from torch import Tensor

from latent.schedule import Schedule, expand

Prediction = Literal["x", "eps", "v", "velocity", "score", "edm"]


class Estimate(NamedTuple):
    """Estimates of the clean sample x and the noise eps, both shaped like x_t, with x_t = alpha x + sigma eps."""

    x: Tensor
    eps: Tensor


Cond = TypeVar("Cond", bound=tuple[Tensor, ...])
"""A tuple (usually a NamedTuple) of tensors with the batch first."""

Denoise = Callable[[Tensor, Tensor], Estimate]
"""(x_t (B, ...), t ()) -> Estimate. Conditioning and guidance are already applied. Unguided ones take t (B,), too."""

Model = Callable[[Tensor, Tensor, Cond], Estimate]
"""(x_t (B, ...), t () or (B,), cond) -> Estimate."""

Network = Callable[[Tensor, Tensor, Cond], Tensor]
"""(x_t (B, ...), t (B,), cond) -> raw output (B, ...), whose meaning is a `Prediction`."""

Factor = float | Tensor
"""A coefficient: a number, or a tensor that broadcasts."""

_SMALLEST_ALPHA = 1e-5
"""Below this, dividing a float32 output by alpha leaves fewer than two digits."""


def coefficients(prediction: Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, b), shaped like t, such that the target is a x + b eps.

    x: (1, 0);  eps: (0, 1);  v: (-sigma, alpha) (arXiv:2202.00512);  velocity: dx_t/dt = (alpha', sigma');
    score: grad log q(x_t | x) = (0, -1 / sigma);  edm: (sigma, -alpha) / sqrt(alpha^2 + sigma^2), the output behind the
    preconditioning of Karras et al. (arXiv:2206.00364, table 1) for data of unit variance, and -v where variance is
    preserved. Data of another scale: divide them, and sigma, by their standard deviation.
    """
    match prediction:
        case "x":
            return torch.ones_like(t), torch.zeros_like(t)
        case "eps":
            return torch.zeros_like(t), torch.ones_like(t)
        case "v":
            return -schedule.sigma(t), schedule.alpha(t)
        case "velocity":
            return schedule.rates(t)
        case "score":
            return torch.zeros_like(t), -1 / schedule.sigma(t)
        case "edm":
            scale = _scale(schedule, t)
            return schedule.sigma(t) / scale, -schedule.alpha(t) / scale
        case _:
            assert_never(prediction)


def gains(prediction: Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (d x / d output, d eps / d output), shaped like t: how an error of the output reaches each estimate.

    They are (-sigma, alpha) / (alpha b - sigma a), with 0 / 0 at the ends of the path resolved.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    match prediction:
        case "x":
            return torch.ones_like(t), -alpha / sigma
        case "eps":
            return -sigma / alpha, torch.ones_like(t)
        case "score":
            return sigma**2 / alpha, -sigma
        case "edm":
            scale = _scale(schedule, t)
            return sigma / scale, -alpha / scale
        case "v" | "velocity":
            a, b = coefficients(prediction, schedule, t)
            determinant = alpha * b - sigma * a
            return -sigma / determinant, alpha / determinant
        case _:
            assert_never(prediction)


def corrupt(schedule: Schedule, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha x + sigma eps. x, eps: (B, ...); t: () or (B,). Returns (B, ...), float32 or wider."""
    return expand(schedule.alpha(t), x) * x + expand(schedule.sigma(t), x) * eps


def target(prediction: Prediction, schedule: Schedule, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return a x + b eps, what the network should put out. x, eps: (B, ...); t: () or (B,). Returns (B, ...)."""
    a, b = coefficients(prediction, schedule, t)
    return expand(a, x) * x + expand(b, x) * eps


def estimate(prediction: Prediction, schedule: Schedule, x_t: Tensor, output: Tensor, t: Tensor) -> Estimate:
    """Solve x_t = alpha x + sigma eps, output = a x + b eps for x and eps.

        x = (b x_t - sigma output) / d,   eps = (alpha output - a x_t) / d,   d = alpha b - sigma a

    x_t, output: (B, ...); t: () or (B,), with sigma_t > 0, and alpha_t > 0 for eps. Returns float32 or wider.
    """
    dtype = torch.promote_types(torch.promote_types(x_t.dtype, output.dtype), torch.float32)
    x_t, output = x_t.to(dtype), output.to(dtype)
    x_t_in_x, output_in_x, x_t_in_eps, output_in_eps = _factors(_solution, t, x_t, prediction, schedule)
    return Estimate(combine(x_t_in_x, x_t, output_in_x, output), combine(x_t_in_eps, x_t, output_in_eps, output))


def combine(a: Factor, x: Tensor, b: Factor, y: Tensor) -> Tensor:
    """a x + b y, a new tensor (B, ...), in as few passes as numbers allow; what is multiplied by 0 is not read."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * y
    if a == 0 or b == 0:
        return a * x if b == 0 else b * y
    return torch.add(x if a == 1 else a * x, y, alpha=b)


def widen(x: Tensor) -> Tensor:
    """Return x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check(prediction: Prediction, schedule: Schedule, start: float = 1.0) -> None:
    """Raise ValueError where x cannot be read from the prediction at the first sampling time.

    From eps (or the score, -eps / sigma) x = (x_t - sigma eps) / alpha: impossible at alpha = 0, where `Flow`, `Cosine`
    and paths of zero terminal SNR end.
    """
    alpha = schedule.alpha(torch.tensor(start, dtype=torch.float64)).item()
    if prediction in ("eps", "score") and alpha < _SMALLEST_ALPHA:
        raise ValueError(
            f"prediction {prediction!r} with {schedule} has alpha = {alpha:.1e} at t = {start}, so x cannot be read "
            f"from it (expected alpha >= {_SMALLEST_ALPHA:g}); start sampling below t = {start}, such as 0.999, "
            "or predict 'v', 'velocity', 'edm' or 'x'"
        )


def as_model(network: Network[Cond], schedule: Schedule, prediction: Prediction) -> Model[Cond]:
    """Turn a raw network into a model that returns estimates.

    The network is given t as (B,) on the device of x_t in float32 or wider, also where it computes in half precision.
    """

    def model(x_t: Tensor, t: Tensor, cond: Cond) -> Estimate:
        return estimate(prediction, schedule, x_t, ask(network, prediction, schedule, x_t, t, cond), t)

    return model


def ask(
    network: Network[Cond], prediction: Prediction, schedule: Schedule, x_t: Tensor, t: Tensor, cond: Cond
) -> Tensor:
    """Call a raw network on x_t (B, ...) and t, () or (B,), as training and sampling both do. Returns (B, ...).

    Prediction "edm" brings the input to unit variance, x_t / sqrt(alpha^2 + sigma^2), and tells the noise-to-signal
    ratio as sigma / (alpha + sigma), the time at which `Flow` has it, in place of log(sigma) / 4.
    """
    told: Factor = t
    if prediction == "edm":
        shrink, told = _factors(_told, t, x_t, schedule)
        x_t = widen(x_t) * shrink
    return network(x_t, per_item(told, x_t), cond)


def per_item(t: Factor, x_t: Tensor) -> Tensor:
    """Return t, a number, (), (B,) or (B, 1, ...), as (B,) on the device of x_t in float32 or wider."""
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    if not isinstance(t, Tensor):
        return torch.full((len(x_t),), t, dtype=dtype, device=x_t.device)
    return t.to(x_t.device, dtype).flatten().expand(len(x_t))


def bind(model: Model[Cond], cond: Cond) -> Denoise:
    """Fix the condition: Denoise = (x_t, t) -> model(x_t, t, cond)."""

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        return model(x_t, t, cond)

    return denoise


@dataclass
class Counted:
    """A Denoise that counts its calls."""

    denoise: Denoise
    calls: int = 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Count, and pass on."""
        self.calls += 1
        return self.denoise(x_t, t)


def _solution(prediction: Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, ...]:
    """Coefficients of x_t and of the output in x, then in eps, shaped like t."""
    a, b = coefficients(prediction, schedule, t)
    determinant = schedule.alpha(t) * b - schedule.sigma(t) * a
    x_gain, eps_gain = gains(prediction, schedule, t)
    return b / determinant, x_gain, -a / determinant, eps_gain


def _told(schedule: Schedule, t: Tensor) -> tuple[Tensor, ...]:
    """Return what "edm" multiplies the input by, and the time that it tells, shaped like t."""
    return 1 / _scale(schedule, t), schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))


def _factors(form: Callable[..., tuple[Tensor, ...]], t: Tensor, like: Tensor, *of: Hashable) -> tuple[Factor, ...]:
    """What form(*of, t) gives, to multiply `like`; numbers for a sampler's time, which serves the whole batch.

    Where gradients are asked for, t may be what they are taken by, and the factors stay tensors.
    """
    if t.ndim == 0 and t.device.type == "cpu" and not torch.is_grad_enabled():
        return _numbers(form, t.item(), t.dtype, *of)
    return tuple(expand(part, like) for part in form(*of, t))


@lru_cache(maxsize=4096)
def _numbers(form: Callable[..., tuple[Tensor, ...]], t: float, dtype: torch.dtype, *of: Hashable) -> tuple[float, ...]:
    """form(*of, t) as plain numbers, kept: a sampler asks at the same few times again and again."""
    return tuple(part.item() for part in form(*of, torch.tensor(t, dtype=dtype)))


def _scale(schedule: Schedule, t: Tensor) -> Tensor:
    """Standard deviation of x_t for data of unit variance."""
    return torch.hypot(schedule.alpha(t), schedule.sigma(t))
