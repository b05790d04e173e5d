"""Students of few steps, taught in the plane as stages of kind `distill` teach them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from latent.distill import consistency, noise_beside, progressive
from latent.grid import uniform
from latent.loss import diffusion_loss
from latent.predict import corrupt
from latent.sample import heun
from scripts.toy_models import Lesson, Loss, Net, Pairs, denoiser, fit, noised

RATE = 3e-3
WAYS = 16  # steps of the teacher along which a consistency student is taught
PAIRS = 64  # batches of noise and the teacher's sample for reflow


Target = Callable[..., Tensor]
"""(net, x_t, and the times of the teacher's steps from there) -> x that the student is to say."""


def halving(teacher: Net, lesson: Lesson, steps: int) -> Net:
    """A student whose `steps` DDIM steps do the work of twice as many of the teacher's."""
    schedule, denoise = lesson.objective.schedule, denoiser(teacher, lesson.objective)

    def target(net: Net, x_t: Tensor, *times: Tensor) -> Tensor:
        return progressive(denoise, schedule, x_t, *times)

    return _taught(teacher, lesson, _told(lesson, steps, 2, target))


def consistent(teacher: Net, lesson: Lesson) -> Net:
    """A student that says the same x all along a way of the teacher."""
    schedule, denoise = lesson.objective.schedule, denoiser(teacher, lesson.objective)

    def target(net: Net, x_t: Tensor, *times: Tensor) -> Tensor:
        return consistency(denoise, denoiser(net, lesson.objective), schedule, x_t, *times)

    return _taught(teacher, lesson, _told(lesson, WAYS, 1, target))


def reflowed(teacher: Net, lesson: Lesson) -> Net:
    """A student of the pairs of noise and sample that the teacher makes: its ways are straighter."""
    generator = torch.Generator().manual_seed(lesson.seed + 1)
    eps = torch.randn(PAIRS * lesson.batch, 2, generator=generator)
    x = heun(denoiser(teacher, lesson.objective), lesson.objective.schedule, eps, uniform(32))
    chosen = torch.randint(len(eps), (lesson.steps, lesson.batch), generator=generator)

    return _taught(teacher, lesson, noised(lesson), (x[chosen], eps[chosen]))


def _told(lesson: Lesson, steps: int, halves: int, target: Target) -> Loss:
    """The loss of a student that is told x at one of `steps` times; the teacher takes `halves` steps from there."""
    schedule, times = lesson.objective.schedule, uniform(halves * steps)

    def loss(net: Net, x: Tensor, label: Tensor, t: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
        del label, kept
        first = halves * (steps * (1 - t)).long().clamp(0, steps - 1)
        t, *following = (times[first + i] for i in range(halves + 1))
        x_t = corrupt(schedule, x, eps, t)
        x = target(net, x_t, t, *following)
        return diffusion_loss(net, lesson.objective, x, (), t, noise_beside(schedule, x_t, x, t)).mean()

    return loss


def _taught(teacher: Net, lesson: Lesson, loss: Loss, pairs: Pairs | None = None) -> Net:
    student = copy.deepcopy(teacher).requires_grad_(True)
    return fit(student, replace(lesson, rate=RATE), loss, pairs)
