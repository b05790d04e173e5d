"""Losses of two players: the critic's and the generator's, penalties on the critic, the weight between two gradients.

Unusual: logits come in maps, one for each patch. A loss is the mean over patches and items; a penalty is taken of a
picture's value, the mean of its map, so that neither depends on how many patches a picture has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

Adversarial = Literal["hinge", "non_saturating", "wasserstein"]


class CriticLoss(NamedTuple):
    """total is what the critic minimises; penalty and lecam are before their weights. All ()."""

    total: Tensor
    real: Tensor
    fake: Tensor
    penalty: Tensor
    lecam: Tensor


def critic_terms(real: Tensor, fake: Tensor, kind: Adversarial) -> tuple[Tensor, Tensor]:
    """The critic's losses of its logits on real and on made pictures, () each.

        hinge (arXiv:1705.02894):           max(0, 1 - D(x)),    max(0, 1 + D(x_hat))
        non_saturating (arXiv:1406.2661):   softplus(-D(x)),     softplus(D(x_hat))
        wasserstein (arXiv:1704.00028):     -D(x),               D(x_hat)

    real, fake: logits of any shape.
    """
    match kind:
        case "hinge":
            return F.relu(1 - real).mean(), F.relu(1 + fake).mean()
        case "non_saturating":
            return F.softplus(-real).mean(), F.softplus(fake).mean()
        case "wasserstein":
            return -real.mean(), fake.mean()
        case _:
            assert_never(kind)


def generator_term(fake: Tensor, kind: Adversarial) -> Tensor:
    """The generator's loss of the critic's logits, (): softplus(-D) where it does not saturate, else -D."""
    return F.softplus(-fake).mean() if kind == "non_saturating" else -fake.mean()


def slopes(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Length of the gradient of each picture's value, (B,), in float32 or wider whatever autocast is on.

        |d/dx_i mean(D(x_i))|_2

    x: (B, ...), detached here; critic: (B, ...) -> (B, ...), no item depending on another. The result has a gradient to
    the critic's parameters.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_(True)
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        values = critic(x).reshape(len(x), -1).mean(1)  # (B,)
        (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1)  # its gradient at 0 is 0


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """E |grad D(x)|^2 / 2 over pictures real: (B, ...) (arXiv:1801.04406, eq. 9, before its weight). Returns ()."""
    return slopes(critic, real).square().mean() / 2


def between_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """E (|grad D(x')| - 1)^2 on the way between real and made pictures (arXiv:1704.00028, eq. 3, before its weight).

        x' = u x + (1 - u) x_hat

    real, fake: (B, ...); share: u (B,), uniform in [0, 1). Returns ().
    """
    u = share.view(-1, *[1] * (real.ndim - 1))
    return (slopes(critic, u * real + (1 - u) * fake) - 1).square().mean()


def lecam_term(real: Tensor, fake: Tensor, averages: Tensor) -> Tensor:
    """LeCam regularisation, a pull of each side's logits to the other's average (arXiv:2104.03310, before its weight).

        E (D(x) - a_fake)^2 + E (D(x_hat) - a_real)^2

    real, fake: logits of any shape; averages: (2,), the moving averages of logits on real and made pictures.
    """
    return (real - averages[1]).square().mean() + (fake - averages[0]).square().mean()


def gradients_at(terms: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """Gradient of each term at one weight, and at nothing else; the graph stays for the backward pass.

    terms: () each, all depending on the weight. Over micro-batches and ranks, gradients of means add up and lengths of
    gradients do not: average what this returns before `adaptive_weight` takes it.
    """
    return [torch.autograd.grad(term, weight, retain_graph=True)[0] for term in terms]


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """Weight of the adversarial term that makes the two pull equally hard (arXiv:2012.09841, eq. 7).

        |reconstruction| / (|adversarial| + 1e-6), at most 1e4

    Both are gradients at the decoder's last weight, of one shape. Returns () without a gradient.
    """
    lengths = [torch.linalg.vector_norm(gradient.detach()) for gradient in (reconstruction, adversarial)]
    return (lengths[0] / (lengths[1] + 1e-6)).clamp(0, 1e4)
