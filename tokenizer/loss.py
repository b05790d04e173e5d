"""Losses of stage one: reconstruction, VAE and VQ-VAE. Every term comes back by name, so that it can be logged."""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never

import torch.nn.functional as F
from torch import Tensor

from tokenizer.posterior import Gaussian

Reconstruction = Literal["l1", "l2", "mixed"]


class VAELoss(NamedTuple):
    """total is what is minimised; kl is in nats per latent value, before its weight. All ()."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class VQVAELoss(NamedTuple):
    """total is what is minimised; codebook and commitment are mean squared distances before their weights. All ()."""

    total: Tensor
    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor


def reconstruction_loss(x_hat: Tensor, x: Tensor, kind: Reconstruction) -> Tensor:
    """Mean over all values of |d| (l1), d^2 (l2) or |d| + 2 d^2 (mixed), d = x_hat - x. Returns () float32."""
    difference = x_hat.float() - x.float()
    match kind:
        case "l1":
            return difference.abs().mean()
        case "l2":
            return difference.square().mean()
        case "mixed":
            return difference.abs().mean() + 2 * difference.square().mean()
        case _:
            assert_never(kind)


def vae_loss(x_hat: Tensor, x: Tensor, posterior: Gaussian, *, kind: Reconstruction, weight: float) -> VAELoss:
    """Negative evidence bound with a weight on the KL term (arXiv:1312.6114, eq. 3).

        total = reconstruction + weight KL / (c h w)

    x_hat, x: (B, 3, H, W); posterior: (B, c, h, w). The KL counts per latent value, so the weight fits every size.
    """
    reconstruction = reconstruction_loss(x_hat, x, kind)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return VAELoss(reconstruction + weight * kl, reconstruction, kl)


def codebook_terms(vectors: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """Codebook and commitment terms (arXiv:1711.00937, eq. 3), neither weighted.

        codebook = |sg(vectors) - codewords|^2;   commitment = |vectors - sg(codewords)|^2

    vectors, codewords: the same shape. Means over all values, so () each: the first moves only the codebook (and moves
    nothing when an EMA does that), the second only the encoder.
    """
    return F.mse_loss(codewords, vectors.detach()), F.mse_loss(vectors, codewords.detach())


def vqvae_loss(
    x_hat: Tensor, x: Tensor, codebook: Tensor, commitment: Tensor, *, kind: Reconstruction, beta: float
) -> VQVAELoss:
    """Loss of a VQ-VAE (arXiv:1711.00937, eq. 3): beta weighs the encoder's term, never the codebook's.

    total = reconstruction + codebook + beta commitment;   x_hat, x: (B, 3, H, W), the terms of `codebook_terms`.
    """
    reconstruction = reconstruction_loss(x_hat, x, kind)
    return VQVAELoss(reconstruction + codebook + beta * commitment, reconstruction, codebook, commitment)
