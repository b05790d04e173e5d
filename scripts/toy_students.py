"""Students of few steps, taught in the plane as stages of kind `distill` teach them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from latent.distill import consistency, noise_beside, progressive
from latent.grid import uniform
from latent.loss import diffusion_loss
from latent.predict import corrupt
from latent.sample import heun
from scripts.toy_models import Lesson, Loss, Net, denoiser, fit

RATE = 3e-3
WAYS = 16  # steps of the teacher along which a consistency student is taught
PAIRS = 64  # batches of noise and the teacher's sample for reflow


def halving(teacher: Net, lesson: Lesson, steps: int) -> Net:
    """A student whose `steps` DDIM steps do the work of twice as many of the teacher's."""
    schedule, denoise, times = lesson.objective.schedule, denoiser(teacher, lesson.objective), uniform(2 * steps)

    def loss(net: Net, x: Tensor, label: Tensor, t: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
        del label, kept
        first = 2 * _place(t, steps)
        t, middle, s = (times[first + i] for i in range(3))
        x_t = corrupt(schedule, x, eps, t)
        x = progressive(denoise, schedule, x_t, t, middle, s)
        return diffusion_loss(net, lesson.objective, x, (), t, noise_beside(schedule, x_t, x, t)).mean()

    return _taught(teacher, lesson, loss)


def consistent(teacher: Net, lesson: Lesson) -> Net:
    """A student that says the same x all along a way of the teacher."""
    schedule, denoise, times = lesson.objective.schedule, denoiser(teacher, lesson.objective), uniform(WAYS)

    def loss(net: Net, x: Tensor, label: Tensor, t: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
        del label, kept
        first = _place(t, WAYS)
        t, s = times[first], times[first + 1]
        x_t = corrupt(schedule, x, eps, t)
        x = consistency(denoise, denoiser(net, lesson.objective), schedule, x_t, t, s)
        return diffusion_loss(net, lesson.objective, x, (), t, noise_beside(schedule, x_t, x, t)).mean()

    return _taught(teacher, lesson, loss)


def reflowed(teacher: Net, lesson: Lesson) -> Net:
    """A student of the pairs of noise and sample that the teacher makes: its ways are straighter."""
    generator = torch.Generator().manual_seed(lesson.seed + 1)
    eps = torch.randn(PAIRS * lesson.batch, 2, generator=generator)
    x = heun(denoiser(teacher, lesson.objective), lesson.objective.schedule, eps, uniform(32))
    chosen = torch.randint(len(eps), (lesson.steps, lesson.batch), generator=generator)

    def loss(net: Net, x: Tensor, label: Tensor, t: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
        del label, kept
        return diffusion_loss(net, lesson.objective, x, (), t, eps).mean()

    return _taught(teacher, lesson, loss, (x[chosen], eps[chosen]))


def _place(t: Tensor, steps: int) -> Tensor:
    """Which of `steps` even steps from t = 1 down a time lies in."""
    return (steps * (1 - t)).long().clamp(0, steps - 1)


def _taught(teacher: Net, lesson: Lesson, loss: Loss, pairs: tuple[Tensor, Tensor] | None = None) -> Net:
    student = copy.deepcopy(teacher).requires_grad_(True)
    return fit(student, replace(lesson, rate=RATE), loss, pairs)
