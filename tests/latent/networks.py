"""Tiny networks of every kind, and what goes into them."""

import torch

from latent.condition import Condition, ImageCondition
from latent.dit import DiT, DiTConfig
from latent.mmdit import MMDiT, MMDiTConfig
from latent.unet import UNet, UNetConfig

TEXT = dict(text_width=12, text_length=6, pooled_width=10, text_dim=16, text_heads=2, cond_dim=16)
TRANSFORMER = dict(dim=32, layers=2, heads=2)
CONVOLUTIONS = dict(width=16, blocks=1, head_width=16)
KINDS = {
    "dit": (DiT, DiTConfig, TRANSFORMER),
    "mmdit": (MMDiT, MMDiTConfig, TRANSFORMER),
    "unet": (UNet, UNetConfig, CONVOLUTIONS),
}


def config(kind, **changes):
    _, make, sizes = KINDS[kind]
    return make(**{**TEXT, **sizes, **changes})


def network(kind, *, trained=True, **changes):
    torch.manual_seed(0)
    made = KINDS[kind][0](config(kind, **changes))
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def inputs(batch=3, side=8, seed=0, image_channels=0):
    g = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch, 4, side, side, generator=g)
    tokens = torch.randn(batch, 6, 12, generator=g)
    mask = torch.arange(6) < torch.tensor([4, 6, 2, 5])[:batch, None]
    t, cond = torch.rand(batch, generator=g), Condition(tokens, mask, torch.randn(batch, 10, generator=g))
    if image_channels:
        image = torch.randn(batch, image_channels, side, side, generator=g)
        cond = ImageCondition(*cond, image, torch.rand(batch, generator=g))
    return x_t, t, cond


def farthest(a, b):
    """Largest difference within each item: (B,)."""
    return (a - b).abs().flatten(1).amax(1)
