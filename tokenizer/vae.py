"""Variational autoencoder (arXiv:1312.6114): images to a diagonal Gaussian over latents, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from backbone.codec import CodecConfig, decoder_of, encoder_of
from backbone.conv import check_divides
from backbone.folded import FoldedConfig
from backbone.noise import Randomness
from tokenizer.loss import SCALES, Reconstruction, VAELoss, elbo_loss, vae_loss
from tokenizer.posterior import DrawnGaussian, Gaussian
from tokenizer.prior import LearnedConfig, NormalConfig, PriorConfig, prior_of


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Networks and loss of a VAE.

    variance: none weighs `reconstruction` against the KL; fixed and learned make the loss the evidence bound of 8-bit
    images under a normal law around the decoder's picture, whose scale is given or learned (sigma-VAE,
    arXiv:2006.13202), and kl_weight is then 1 where none is given, the bound itself.
    """

    kind: Literal["vae"] = "vae"
    network: CodecConfig = field(default_factory=FoldedConfig)
    latent_channels: int = 4
    reconstruction: Reconstruction = "mixed"
    kl_weight: float | None = None  # times nats per latent value (2e-3 is usual), or of the KL in the bound (1)
    kl_warmup: float = 0.0  # share of the steps over which the weight rises from 0
    free_bits: float = 0.0  # nats per latent value of each channel that cost nothing
    variance: Literal["none", "fixed", "learned"] = "none"
    scale: float = 0.1  # standard deviation of a colour value in [-1, 1]; where it is learned, its start
    prior: PriorConfig = field(default_factory=NormalConfig)

    def __post_init__(self) -> None:
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels is {self.latent_channels}, expected at least 1. Use 4 for small images.")
        object.__setattr__(self, "kl_weight", self.weight)  # so that a manifest names it
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"kl_weight is {self.kl_weight}, expected 0 or a positive number. Try 2e-3.")
        if not 0 <= self.kl_warmup <= 1:
            raise ValueError(f"kl_warmup is {self.kl_warmup}, expected a share from 0 (none) to 1. Try 0.1.")
        if not 0 <= self.free_bits < float("inf"):
            raise ValueError(f"free_bits is {self.free_bits}, expected 0 nats (none) or more. Try 0.1.")
        if self.weight == 0 and (self.kl_warmup or self.free_bits):
            raise ValueError(
                f"kl_weight is 0, so that kl_warmup {self.kl_warmup} and free_bits {self.free_bits} do nothing. Leave "
                "them out, or try kl_weight = 2e-3."
            )
        if not SCALES[0] <= self.scale <= SCALES[1]:
            raise ValueError(f"scale is {self.scale}, expected {SCALES[0]:g} to {SCALES[1]:g}. Try 0.1.")
        idle, reason = (
            ("scale", "weighs `reconstruction` instead")
            if self.variance == "none"
            else ("reconstruction", "measures pictures by a normal law")
        )
        if getattr(self, idle) != getattr(type(self), idle):
            raise ValueError(
                f"{idle} is {getattr(self, idle)!r}, but variance = {self.variance!r} {reason}. Leave {idle} out."
            )
        if isinstance(self.prior, LearnedConfig):
            self.prior.check(self.latent_channels)
            if not self.prior.detached:
                self._check_felt()

    @property
    def weight(self) -> float:
        """Of the KL: as given, else 1 in the bound and 2e-3 beside `reconstruction`."""
        if self.kl_weight is not None:
            return self.kl_weight
        return 2e-3 if self.variance == "none" else 1.0

    def _check_felt(self) -> None:
        """Refuse what does not go with a prior that the autoencoder feels."""
        if self.free_bits:
            raise ValueError(
                f"free_bits is {self.free_bits}, but the joint density of a learned prior has no nats of a channel. "
                "Use 0, or prior.detached = true."
            )
        if self.weight == 0:
            raise ValueError(
                "kl_weight is 0, but a learned prior learns by the KL alone. Try 2e-3, or use prior.detached = true."
            )


class VAEOutput(NamedTuple):
    """One pass: the reconstruction (B, 3, H, W), the posterior it comes from, and the scale of the law around it.

    log_prior: log p(z) of the drawn z under a learned prior, (B,); of a detached one its gradient ends at z.
    """

    x_hat: Tensor
    posterior: Gaussian
    log_scale: Tensor | None  # (), where the configuration has a variance
    log_prior: Tensor | None = None
    detached: bool = False

    def loss(self, x: Tensor, *, kind: Reconstruction, weight: float, free: float = 0.0) -> VAELoss:
        """`elbo_loss` where there is a variance, else `vae_loss`; x: (B, 3, H, W).

        A detached prior adds its own term to the total, -log p(z) at weight 1 in the same unit, and leaves the others.
        """
        posterior = self.posterior if self.detached else self.matched
        if self.log_scale is None:
            found, values = vae_loss(self.x_hat, x, posterior, kind=kind, weight=weight, free=free), posterior.mean
        else:
            found, values = elbo_loss(self.x_hat, x, posterior, self.log_scale, weight=weight, free=free), x
        if self.log_prior is None or not self.detached:
            return found
        return found._replace(total=found.total - self.log_prior.mean() / values[0].numel())

    def bound(self, x: Tensor) -> Tensor:
        """Negative evidence bound under the model's own prior in nats per colour value, (); it takes a variance."""
        assert self.log_scale is not None
        return elbo_loss(self.x_hat, x, self.matched, self.log_scale).total

    @property
    def matched(self) -> Gaussian:
        """The posterior, whose KL is to the learned prior where there is one."""
        if self.log_prior is None:
            return self.posterior
        return DrawnGaussian(self.posterior.mean, self.posterior.log_var, self.log_prior)

    @property
    def prior_nats(self) -> Tensor | None:
        """-log p(z) in nats per latent value under the learned prior, ()."""
        return None if self.log_prior is None else -self.log_prior.mean() / self.posterior.mean[0].numel()


class VAE(nn.Module):
    """Encoder to a Gaussian over (B, c, H/factor, W/factor), and a decoder from its samples."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder_of(config.network, 2 * config.latent_channels)
        self.decoder = decoder_of(config.network, config.latent_channels)
        self.prior = prior_of(config.prior, config.latent_channels)
        self.log_scale: Tensor | None = None
        if config.variance != "none":
            start = torch.tensor(config.scale).log()
            self.log_scale = nn.Parameter(start, requires_grad=config.variance == "learned")

    @property
    def downsample(self) -> int:
        """Pixels per latent position along one side."""
        return self.config.network.factor

    def encode(self, x: Tensor) -> Gaussian:
        """x: (B, 3, H, W) in [-1, 1]. Raise ValueError when the factor does not divide both sides."""
        return Gaussian.of(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """z: (B, c, h, w), not normalised -> (B, 3, H, W) float32 around [-1, 1], not clamped."""
        return self.decoder(z).float()

    def forward(self, x: Tensor, generator: Randomness) -> VAEOutput:
        """Encode, draw once, decode, and price what was drawn where the prior is a learned one."""
        posterior = self.encode(x)
        z, prior = posterior.sample(generator), self.config.prior
        found = VAEOutput(self.decode(z), posterior, self.log_scale)
        if not isinstance(prior, LearnedConfig):
            return found
        log_prior = self.prior.log_prob(z.detach() if prior.detached else z)
        return found._replace(log_prior=log_prior, detached=prior.detached)

    @torch.no_grad()
    def sample(self, count: int, size: int, generator: Randomness) -> Tensor:
        """Pictures of latents from the prior: (count, 3, size, size). The factor must divide size, else ValueError."""
        check_divides(torch.empty(size, size), self.downsample)
        side = size // self.downsample
        return self.decode(self.prior.sample((count, self.config.latent_channels, side, side), generator))
