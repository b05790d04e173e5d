"""What `toys.py` draws from: densities in the plane, a small network that learns one, and a distance to fresh data.

Unusual: an item may be one point (B, 2) or a whole cloud (B, n, 2); the network takes both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.embed import timestep_embedding
from backbone.noise import uniform
from latent.couple import transport
from latent.loss import Objective, diffusion_loss
from latent.predict import Denoise, as_model, bind, corrupt
from latent.times import TimeLaw, UniformTimes, sample_times

REACH = 0.2
"""Distances in units of the data's standard deviation beyond which points count as simply far."""

Labelled = tuple[Tensor, Tensor]
"""Points (n, 2) float32 and the class of each, (n,) int64: 0 or 1."""


def moons(count: int, generator: torch.Generator) -> Labelled:
    """Two half circles that reach into each other; the class is the moon."""
    label, angle = _coin(count, generator), math.pi * uniform((count,), generator)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    return _blur(torch.where(label[:, None] == 0, upper, lower), 0.15, generator), label


def checkerboard(count: int, generator: torch.Generator) -> Labelled:
    """The black squares of a board of 4 x 4, evenly filled; the class is the half."""
    column = (4 * uniform((count,), generator)).floor()
    row = 2 * (2 * uniform((count,), generator)).floor() + column % 2
    return torch.stack([column, row], 1) + uniform((count, 2), generator), (column >= 2).long()


def spirals(count: int, generator: torch.Generator) -> Labelled:
    """Two arms that turn once around each other; the class is the arm."""
    label, length = _coin(count, generator), (0.05 + uniform((count,), generator)).sqrt()
    angle = 2 * math.pi * length + math.pi * label
    return _blur(length[:, None] * torch.stack([angle.cos(), angle.sin()], 1), 0.03, generator), label


DENSITIES: Mapping[str, Callable[[int, torch.Generator], Labelled]] = {
    "moons": moons,
    "checkerboard": checkerboard,
    "spirals": spirals,
}


def draw(name: str, count: int, generator: torch.Generator) -> Labelled:
    """Draw from a density, brought to mean 0 and variance 1 on each axis."""
    points, label = DENSITIES[name](count, generator)
    mean, std = _moments(name)
    return ((points - mean) / std).float(), label


class Net(nn.Module):
    """Network((B, ..., 2), t (B,), cond) -> (B, ..., 2): a perceptron of four layers. cond: () or (one-hot label,).

    It sees `waves` waves of the place as well, for a perceptron learns fine structure late (arXiv:2006.10739).
    """

    def __init__(self, labels: int, width: int, waves: int, features: int = 16) -> None:
        super().__init__()
        self.features, self.waves = features, waves
        sizes = [2 + 4 * waves + features + labels, width, width, width]
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x_t: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        """cond: shaped like x_t."""
        place = (x_t[..., None] * torch.arange(1, self.waves + 1)).flatten(-2)
        time = timestep_embedding(t, self.features).reshape(len(t), *(1,) * (x_t.ndim - 2), self.features)
        return self.layers(torch.cat([x_t, place.sin(), place.cos(), time.expand(*x_t.shape[:-1], -1), *cond], -1))


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a network learns, and for how long.

    labelled: it is told the class, except in a tenth of the cases, for guidance. coupled: noise and data meet by
    minibatch optimal transport. width, waves: of `Net`.
    """

    objective: Objective
    density: str = "spirals"
    times: TimeLaw = field(default_factory=UniformTimes)
    steps: int = 1200
    batch: int = 512
    width: int = 128
    waves: int = 6
    rate: float = 1e-2
    labelled: bool = False
    coupled: bool = False
    seed: int = 0


Loss = Callable[[Net, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(net, x (B, 2), label (B,), t (B,), eps (B, 2), kept (B, 1)) -> what is to become small."""

Pairs = tuple[Tensor, Tensor]


def learn(lesson: Lesson) -> Net:
    """Train a network on `latent.loss.diffusion_loss`."""
    return fit(new_net(lesson), lesson, noised(lesson))


def noised(lesson: Lesson) -> Loss:
    """`diffusion_loss` of a lesson."""

    def loss(net: Net, x: Tensor, label: Tensor, t: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
        cond = (one_hot(label) * kept,) if lesson.labelled else ()
        return diffusion_loss(net, lesson.objective, x, cond, t, eps).mean()

    return loss


def learn_classifier(lesson: Lesson) -> Net:
    """Train log p(class | x_t) on noisy points, for classifier guidance: the outputs are logits.

    Its gradient is what counts, and waves would ripple it: better without.
    """

    def loss(net: Net, x: Tensor, label: Tensor, t: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
        del kept
        return F.cross_entropy(net(corrupt(lesson.objective.schedule, x, eps, t), t.float(), ()), label)

    return fit(new_net(lesson), lesson, loss)


def new_net(lesson: Lesson) -> Net:
    """An untrained network as the lesson wants it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        return Net(2 if lesson.labelled else 0, lesson.width, lesson.waves)


def fit(net: Net, lesson: Lesson, loss: Loss, pairs: Pairs | None = None) -> Net:
    """Train by AdamW with a cosine; every draw of the run is made at once, since inverting a schedule is slow.

    pairs: x and eps (steps, batch, 2) each, in place of data and independent noise.
    """
    generator = torch.Generator().manual_seed(lesson.seed)
    shape = (lesson.steps, lesson.batch)
    points, label = draw(lesson.density, math.prod(shape), generator)
    x, label = points.reshape(*shape, 2), label.reshape(shape)
    t = sample_times(lesson.times, lesson.objective.schedule, shape, generator)
    eps = torch.randn(x.shape, generator=generator)
    x, eps = pairs or (x, eps)
    kept = uniform((*shape, 1), generator) < 0.9
    optimizer = torch.optim.AdamW(net.parameters(), lr=lesson.rate, weight_decay=0.0, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, lesson.steps)
    for i in range(lesson.steps):
        noise = transport(x[i], eps[i]) if lesson.coupled else eps[i]
        optimizer.zero_grad()
        loss(net, x[i], label[i], t[i], noise, kept[i]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        cosine.step()
    return net.requires_grad_(False)


def denoiser(net: Net, objective: Objective, cond: tuple[Tensor, ...] = ()) -> Denoise:
    """Return the trained network as the samplers want it."""
    return bind(as_model(net, objective.schedule, objective.prediction), cond)


def one_hot(label: Tensor) -> Tensor:
    """(...) -> (..., 2)."""
    return F.one_hot(label, 2).float()


class Distance(NamedTuple):
    """An energy distance and the ends of its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def energy_distance(x: Tensor, y: Tensor, generator: torch.Generator, draws: int = 200) -> Distance:
    """Unbiased energy distance of two samples, and its 95% bootstrap interval.

        D = 2 E r(x, y) - E r(x, x') - E r(y, y'),   r(a, b) = 1 - exp(-|a - b| / REACH),   0 for equal distributions

    With r = |a - b| noise and a spiral of equal variance are near each other; this r looks at what lies close by.
    x: (n, 2); y: (m, 2). The bootstrap gives each point a weight, how often it was drawn. Pairs of a point with itself
    are left out, so that the resampled D has no bias either; D itself may come out below 0.
    """
    across, within_x, within_y = (_far(a, b) for a, b in ((x, y), (x, x), (y, y)))
    u, v = _weights(draws, len(x), generator), _weights(draws, len(y), generator)
    found = 2 * _mean(across, u, v) - _mean_of_pairs(within_x, u) - _mean_of_pairs(within_y, v)
    low, high = found[1:].quantile(torch.tensor([0.025, 0.975])).tolist()
    return Distance(found[0].item(), low, high)


def _coin(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator)


def _blur(points: Tensor, width: float, generator: torch.Generator) -> Tensor:
    return points + width * torch.randn(points.shape, generator=generator, dtype=points.dtype)


@lru_cache
def _moments(name: str) -> tuple[Tensor, Tensor]:
    points, _ = DENSITIES[name](200_000, torch.Generator().manual_seed(0))
    return points.mean(0), points.std(0)


def _weights(draws: int, count: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` points is drawn, (1 + draws, count); the first row is the sample itself."""
    chosen = torch.randint(count, (draws, count), generator=generator)
    drawn = torch.zeros(draws, count).scatter_add_(1, chosen, torch.ones(draws, count))
    return torch.cat([torch.ones(1, count), drawn])


def _far(a: Tensor, b: Tensor) -> Tensor:
    return -torch.expm1(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / -REACH)


def _mean(distances: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (u @ distances * v).sum(1) / (u.sum(1) * v.sum(1))


def _mean_of_pairs(distances: Tensor, u: Tensor) -> Tensor:
    return (u @ distances * u).sum(1) / (u.sum(1) ** 2 - (u**2).sum(1))
