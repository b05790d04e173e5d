"""Our networks beside those of diffusers, of the same width, depth and patch and nearly the same parameter count.

The DiT meets PixArtTransformer2DModel, not DiTTransformer2DModel: it reads text by cross-attention in every block, as
ours does, so that a step has the same products; the other one knows classes alone. What is adjusted to meet its count
is the width of our condition; of the U-Net it is the width of the feed-forward network, since theirs has three matrices
where ours has two. Both are given the text and its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Activation
from backbone.clip import cure_torchvision
from latent.condition import Condition
from latent.dit import DiT, DiTConfig
from latent.unet import UNet, UNetConfig
from pipelines.hardware import autocast
from pipelines.task import blocks_of

cure_torchvision()  # diffusers imports it for its networks
WORDS = 32
TEXT_WIDTH = 128
THEIR_ACTIVATIONS: Mapping[Activation, str] = {"relu2": "gelu-approximate", "gelu": "gelu"}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a training step is given: x_t (B, 4, side, side), t (B,), the text, and the target."""

    x_t: Tensor
    t: Tensor
    cond: Condition
    target: Tensor


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A network, its forward pass, and its repeated parts, to be compiled."""

    network: nn.Module
    forward: Callable[[Batch], Tensor]
    parts: list[nn.Module]

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return count(self.network)


Pair = Mapping[str, Rival]
"""Ours and theirs."""


def batch_of(size: int, side: int, device: torch.device) -> Batch:
    """Noise in the place of everything; most texts are shorter than they may be."""
    g = torch.Generator().manual_seed(0)
    x_t, target = torch.randn(2, size, 4, side, side, generator=g)
    tokens = torch.randn(size, WORDS, TEXT_WIDTH, generator=g)
    mask = torch.arange(WORDS) < torch.randint(8, WORDS + 1, (size, 1), generator=g)
    cond = Condition(tokens, mask, torch.zeros(size, TEXT_WIDTH))
    return Batch(
        x_t=x_t.to(device),
        t=torch.rand(size, generator=g).to(device),
        cond=Condition(*(part.to(device) for part in cond)),
        target=target.to(device),
    )


def transformers(
    dim: int, layers: int, heads: int, side: int, device: torch.device, activation: Activation = "relu2"
) -> Pair:
    """DiT and PixArt-alpha. activation: "relu2" gives each its own default, "gelu" both the exact GELU."""
    rival = diffusers.PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        cross_attention_dim=dim,
        sample_size=side,
        patch_size=2,
        activation_fn=THEIR_ACTIVATIONS[activation],
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    ).to(device)
    base = DiTConfig(
        dim=dim, layers=layers, heads=heads, text_dim=dim, text_heads=heads, refiner_layers=0, text_width=TEXT_WIDTH,
        text_length=WORDS, pooled_width=TEXT_WIDTH, activation=activation,
    )  # fmt: skip
    config = nearest(DiT, [replace(base, cond_dim=c) for c in range(8, 2 * dim, 8)], count(rival))
    unneeded: dict[str, Any] = {"resolution": None, "aspect_ratio": None}

    def forward(batch: Batch) -> Tensor:
        cond = batch.cond
        return rival(
            batch.x_t, encoder_hidden_states=cond.tokens, timestep=1000 * batch.t, added_cond_kwargs=unneeded,
            encoder_attention_mask=cond.mask.to(batch.x_t), return_dict=False,
        )[0]  # fmt: skip

    return {
        "ours": _ours(DiT(config).to(device)),
        "theirs": Rival(network=rival, forward=forward, parts=list(rival.transformer_blocks)),
    }


def unets(width: int, blocks: int, side: int, device: torch.device) -> Pair:
    """U-Nets of two levels that attend on the lower one, with the time as scale and shift of the second norm."""
    del side  # both take any
    heads = 2 * width // 32
    rival = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=blocks,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=heads,  # the number of heads, by an old error of theirs
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    ).to(device)
    base = UNetConfig(
        width=width, blocks=blocks, cond_dim=4 * width, text_dim=TEXT_WIDTH, refiner_layers=0, text_width=TEXT_WIDTH,
        text_length=WORDS, pooled_width=TEXT_WIDTH, head_width=32,
    )  # fmt: skip
    config = nearest(UNet, [replace(base, mlp_ratio=ratio / 4) for ratio in range(4, 48)], count(rival))

    def forward(batch: Batch) -> Tensor:
        cond = batch.cond
        mask = cond.mask.to(batch.x_t)
        return rival(batch.x_t, 1000 * batch.t, cond.tokens, encoder_attention_mask=mask, return_dict=False)[0]

    parts = [*rival.down_blocks, rival.mid_block, *rival.up_blocks]
    return {
        "ours": _ours(UNet(config).to(device)),
        "theirs": Rival(network=rival, forward=forward, parts=parts),
    }


def step_of(
    rival: Rival, batch: Batch, device: torch.device, *, bf16: bool, compiled: bool = False
) -> Callable[[], None]:
    """One step of `pipelines.loop.Loop`, without its accelerator, averages and records."""
    parameters = list(rival.network.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    for part in rival.parts if compiled else []:
        part.compile(dynamic=False)

    def step() -> None:
        with autocast(device, bf16):
            output = rival.forward(batch)
        loss = F.mse_loss(output.float(), batch.target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def nearest(make: Callable[[Any], nn.Module], configs: list[Any], wanted: int) -> Any:
    """Return the configuration whose network comes nearest to a number of parameters, without its memory."""
    with torch.device("meta"):
        return min(configs, key=lambda config: abs(count(make(config)) - wanted))


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _ours(network: DiT | UNet) -> Rival:
    def forward(batch: Batch) -> Tensor:
        return network(batch.x_t, batch.t, batch.cond)

    return Rival(network=network, forward=forward, parts=blocks_of(network))
