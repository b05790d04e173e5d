"""Losses of stage one: reconstruction, VAE and VQ-VAE. Every term comes back by name, so that it can be logged."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.posterior import Gaussian
from tokenizer.ranks import averaged

Reconstruction = Literal["l1", "l2", "charbonnier", "mixed"]
CHARBONNIER = 1e-3  # where its square turns into a line: an eighth of a level of 8 bits
SCALES = (1e-3, 10.0)  # of the law around a picture: a quarter of a level of 8 bits, and five times their range
HALF_LEVEL = 1 / 255  # half the step between two levels of 8 bits in [-1, 1]


class VAELoss(NamedTuple):
    """total is what is minimised; kl is in nats per latent value, before its weight. All ()."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class VQVAELoss(NamedTuple):
    """total is what is minimised; own is the quantiser's own term, commitment a distance before its weight. All ()."""

    total: Tensor
    reconstruction: Tensor
    own: Tensor
    commitment: Tensor


def reconstruction_loss(x_hat: Tensor, x: Tensor, kind: Reconstruction) -> Tensor:
    """Mean over all values of |d| (l1), d^2 (l2), sqrt(d^2 + 1e-6) (charbonnier) or |d| + 2 d^2 (mixed).

    d = x_hat - x. Returns () float32.
    """
    difference = x_hat.float() - x.float()
    match kind:
        case "l1":
            return difference.abs().mean()
        case "l2":
            return difference.square().mean()
        case "charbonnier":
            return (difference.square() + CHARBONNIER**2).sqrt().mean()
        case "mixed":
            return difference.abs().mean() + 2 * difference.square().mean()
        case _:
            assert_never(kind)


def vae_loss(
    x_hat: Tensor, x: Tensor, posterior: Gaussian, *, kind: Reconstruction, weight: float, free: float = 0.0
) -> VAELoss:
    """Reconstruction with a weighted KL term (arXiv:1312.6114, eq. 3, up to the reconstruction's scale).

        total = reconstruction + weight KL / (c h w)

    x_hat, x: (B, 3, H, W); posterior: (B, c, h, w). The KL counts per latent value, so the weight fits every size.
    free: nats per value and channel, in the mean over all ranks, that cost nothing (free bits, arXiv:1606.04934,
    app. C.8); `kl` is the whole, of this rank. The KL is to the prior that the posterior knows of: the normal law, or a
    learned one (`DrawnGaussian`).
    """
    reconstruction = reconstruction_loss(x_hat, x, kind)
    kl = posterior.kl_per_channel()  # (c,)
    return VAELoss(reconstruction + weight * _paid(kl, free), reconstruction, kl.mean())


def elbo_loss(
    x_hat: Tensor, x: Tensor, posterior: Gaussian, log_scale: Tensor, *, weight: float = 1.0, free: float = 0.0
) -> VAELoss:
    """Negative evidence bound in nats per colour value; at weight 1 and free 0 a bound on the images' own cost.

        total = (-log p(x | z) + weight KL) / (3 H W)

    reconstruction is -log p(x | z) per colour value under `levels_nll`; the rest is as in `vae_loss`.
    """
    values = x[0].numel()
    reconstruction, kl = levels_nll(x_hat, x, log_scale).mean(), posterior.kl_per_channel()
    paid = _paid(kl, free) * posterior.mean[0].numel() / values
    return VAELoss(reconstruction + weight * paid, reconstruction, kl.mean())


def _paid(kl: Tensor, free: float) -> Tensor:
    """Mean over channels of what their nats (c,) cost, all of them or at least `free`: ()."""
    return averaged(kl).clamp_min(free).mean() if free else kl.mean()


def levels_nll(x_hat: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    """-log p of the 8-bit level of each value under a normal law around x_hat, discretised: the shape of x, in nats.

        p(x) = Phi((x + 1/255 - x_hat) / scale) - Phi((x - 1/255 - x_hat) / scale),   the outermost levels open

    so the 256 levels add up to 1, and bounds are bits per dimension of the images themselves (as arXiv:1701.05517,
    eq. 2, has it for logistic laws). x in [-1, 1] at levels of 8 bits; scales are held within SCALES, with the gradient
    of the bound itself beyond it, so that a learned one comes back. In float64, since the gradient of the tails
    cancels; returned in float32.
    """
    x, x_hat, log_scale = x.double(), x_hat.double(), log_scale.double()
    held = log_scale.clamp(*map(math.log, SCALES))
    scale = (log_scale + (held - log_scale).detach()).exp()
    low = torch.where(x < -1 + HALF_LEVEL, -torch.inf, (x - HALF_LEVEL - x_hat) / scale)
    high = torch.where(x > 1 - HALF_LEVEL, torch.inf, (x + HALF_LEVEL - x_hat) / scale)
    flip = low > 0  # on the side where both tails are small
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return -(above + torch.log1p(-torch.exp((below - above).clamp_max(-1e-12)))).float()


def codebook_terms(vectors: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """Codebook and commitment terms (arXiv:1711.00937, eq. 3), neither weighted.

        codebook = |sg(vectors) - codewords|^2;   commitment = |vectors - sg(codewords)|^2

    vectors, codewords: the same shape. Means over all values, so () each: the first moves only the codebook (and moves
    nothing when an EMA does that), the second only the encoder.
    """
    return F.mse_loss(codewords, vectors.detach()), F.mse_loss(vectors, codewords.detach())


def vqvae_loss(
    x_hat: Tensor, x: Tensor, own: Tensor, commitment: Tensor, *, kind: Reconstruction, beta: float
) -> VQVAELoss:
    """Loss of a VQ-VAE (arXiv:1711.00937, eq. 3): beta weighs the encoder's term, never the codebook's.

    total = reconstruction + own + beta commitment;   x_hat, x: (B, 3, H, W); own, commitment: of `Quantized`.
    """
    reconstruction = reconstruction_loss(x_hat, x, kind)
    return VQVAELoss(reconstruction + own + beta * commitment, reconstruction, own, commitment)
