"""Few steps: what a student should say of x at x_t, so that one of its steps does the work of several of its teacher.

Each function gives a clean sample x; with the noise that then follows from x_t (`noise_beside`), the loss of
`latent.loss.diffusion_loss` trains the student on it whatever its prediction and weighting. The second stage of
rectified flow (arXiv:2209.03003, algorithm 1) needs no function: its pairs are the teacher's noise as eps and the
teacher's sample as x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latent.predict import Denoise, corrupt
from latent.schedule import Schedule, expand


@torch.no_grad()
def progressive(teacher: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor) -> Tensor:
    """x from which one DDIM step, t to s, lands where the teacher's two, by `middle`, do (arXiv:2202.00512, alg. 2).

        x = (x_s - r x_t) / (alpha_s - r alpha_t),   r = sigma_s / sigma_t

    x_t: (B, ...); t > middle > s: () or (B,), sigma > 0 at the middle. Returns (B, ...).
    """
    x_middle = corrupt(schedule, *teacher(x_t, t), middle)
    x_s = corrupt(schedule, *teacher(x_middle, middle), s)
    ratio = schedule.sigma(s) / schedule.sigma(t)
    return (x_s - expand(ratio, x_t) * x_t) / expand(schedule.alpha(s) - ratio * schedule.alpha(t), x_t)


@torch.no_grad()
def consistency(teacher: Denoise, student: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The student's own x one step of the teacher nearer to the data (arXiv:2303.01469, eq. 7).

        x_s = alpha_s x_teacher + sigma_s eps_teacher;   x = x_student(x_s, s), and x_s / alpha_s at s = 0

    The student as it stands serves as its own target network, as arXiv:2310.14189, section 3.2, has it for training
    without a teacher. Its estimate of x is the consistency function: where predictions v, velocity and edm meet the
    data it is x_t itself, as the paper asks. x_t: (B, ...); t > s: () or (B,). Returns (B, ...).
    """
    x_s = corrupt(schedule, *teacher(x_t, t), s)
    clean = expand(s == 0, x_t).bool()
    asked = torch.where(s == 0, t, s)  # no network is asked about the end of the path
    return torch.where(clean, x_s / expand(schedule.alpha(s), x_t), student(x_s, asked).x)


def noise_beside(schedule: Schedule, x_t: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return eps such that x_t = alpha x + sigma eps. x_t, x: (B, ...); t: () or (B,), sigma > 0."""
    return (x_t - expand(schedule.alpha(t), x_t) * x) / expand(schedule.sigma(t), x_t)
