"""The Inception network of FID, and torchvision's, from weights on disk (arXiv:1512.00567).

Unusual: the network is a table. FID's network is the one that TensorFlow published on 2015-12-05, in the layout in
which torch-fidelity and pytorch-fid keep it; torchvision's has other weights and differs in how it pools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

Variant = Literal["2015-12-05", "torchvision"]
SIZE, DIM = 299, 2048
CLASSES: Mapping[Variant, int] = {"2015-12-05": 1008, "torchvision": 1000}
Pool = Literal["average", "max", "halve"]  # halve: a maximum with stride 2


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, normalised, rectified; beside stride 2 nothing is padded."""

    name: str
    width: int
    kernel: int | tuple[int, int]
    stride: int = 1


Step = Conv | Pool | tuple[Conv, Conv]  # a pair: both read what comes in, and stand side by side behind
Branches = Sequence[Sequence[Step]]


def _first(pooled: int) -> Branches:
    double = [Conv("branch3x3dbl_1", 64, 1), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3)]
    five = [Conv("branch5x5_1", 48, 1), Conv("branch5x5_2", 64, 5)]
    return [Conv("branch1x1", 64, 1)], five, double, ["average", Conv("branch_pool", pooled, 1)]


def _second(width: int) -> Branches:
    down, across = (7, 1), (1, 7)
    single = [Conv("branch7x7_1", width, 1), Conv("branch7x7_2", width, across), Conv("branch7x7_3", 192, down)]
    double = [
        Conv("branch7x7dbl_1", width, 1),
        Conv("branch7x7dbl_2", width, down),
        Conv("branch7x7dbl_3", width, across),
        Conv("branch7x7dbl_4", width, down),
        Conv("branch7x7dbl_5", 192, across),
    ]
    return [Conv("branch1x1", 192, 1)], single, double, ["average", Conv("branch_pool", 192, 1)]


def _third(pool: Pool) -> Branches:
    def pair(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    single = [Conv("branch3x3_1", 384, 1), pair("branch3x3_2")]
    double = [Conv("branch3x3dbl_1", 448, 1), Conv("branch3x3dbl_2", 384, 3), pair("branch3x3dbl_3")]
    return [Conv("branch1x1", 320, 1)], single, double, [pool, Conv("branch_pool", 192, 1)]


STEM = (Conv("Conv2d_1a_3x3", 32, 3, 2), Conv("Conv2d_2a_3x3", 32, 3), Conv("Conv2d_2b_3x3", 64, 3))
NECK = (Conv("Conv2d_3b_1x1", 80, 1), Conv("Conv2d_4a_3x3", 192, 3))
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
HALF: Branches = (
    [Conv("branch3x3", 384, 3, 2)],
    [Conv("branch3x3dbl_1", 64, 1), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3, 2)],
    ["halve"],
)
QUARTER: Branches = (
    [Conv("branch3x3_1", 192, 1), Conv("branch3x3_2", 320, 3, 2)],
    [
        Conv("branch7x7x3_1", 192, 1),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, 3, 2),
    ],
    ["halve"],
)
BLOCKS: Mapping[str, Branches] = {
    **{f"Mixed_5{letter}": _first(pooled) for letter, pooled in zip("bcd", (32, 64, 64), strict=True)},
    "Mixed_6a": HALF,
    **{f"Mixed_6{letter}": _second(width) for letter, width in zip("bcde", (128, 160, 160, 192), strict=True)},
    "Mixed_7a": QUARTER,
    "Mixed_7b": _third("average"),
}
LAST: Mapping[Variant, Pool] = {"2015-12-05": "max", "torchvision": "average"}  # of Mixed_7c


class Unit(nn.Module):
    """A convolution with its norm."""

    def __init__(self, narrow: int, conv: Conv) -> None:
        super().__init__()
        height, width = (conv.kernel, conv.kernel) if isinstance(conv.kernel, int) else conv.kernel
        padded = conv.stride == 1 and conv.name not in UNPADDED
        padding = (height // 2, width // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(narrow, conv.width, (height, width), conv.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(conv.width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, narrow, h, w) -> (B, width, ...)."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches that read the same maps, one behind the other in the result."""

    def __init__(self, narrow: int, branches: Branches, count_border: bool) -> None:
        super().__init__()
        self.branches, self.count_border, self.width = branches, count_border, 0
        for branch in branches:
            width = narrow
            for step in branch:
                if isinstance(step, str):
                    continue
                units = (step,) if isinstance(step, Conv) else step
                for conv in units:
                    self.add_module(conv.name, Unit(width, conv))
                width = sum(conv.width for conv in units)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        """(B, narrow, h, w) -> (B, width, ...)."""
        return torch.cat([self._along(branch, x) for branch in self.branches], 1)

    def _along(self, branch: Sequence[Step], x: Tensor) -> Tensor:
        for step in branch:
            match step:
                case "average":
                    x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.count_border)
                case "max":
                    x = F.max_pool2d(x, 3, 1, 1)
                case "halve":
                    x = F.max_pool2d(x, 3, 2)
                case Conv():
                    x = getattr(self, step.name)(x)
                case _:
                    x = torch.cat([getattr(self, conv.name)(x) for conv in step], 1)
        return x


class Inception(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 2048): the means of the last maps."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant: Variant = variant
        width = 3
        for conv in (*STEM, *NECK):
            self.add_module(conv.name, Unit(width, conv))
            width = conv.width
        blocks = {**BLOCKS, "Mixed_7c": _third(LAST[variant])}
        for name, branches in blocks.items():
            block = Mixed(width, branches, count_border=variant == "torchvision")
            self.add_module(name, block)
            width = block.width
        self.blocks = tuple(blocks)
        self.fc = nn.Linear(width, CLASSES[variant])

    def forward(self, x: Tensor) -> Tensor:
        """Features; see the class."""
        if self.variant == "2015-12-05":  # which takes (v - 128) / 128 of values v in [0, 255]
            x = (x + 1) * (127.5 / 128) - 1
        for group in (STEM, NECK):
            for conv in group:
                x = getattr(self, conv.name)(x)
            x = F.max_pool2d(x, 3, 2)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


def load_inception(path: Path, variant: Variant) -> Inception:
    """Read weights, a .pth of plain tensors or safetensors; evaluation mode, on the CPU.

    Raises ValueError where the file holds anything but the tensors of the variant; nothing else is unpickled.
    """
    found = _tensors(path)
    model = Inception(variant).eval().requires_grad_(False)
    wanted = model.state_dict()
    found = {name: value for name, value in found.items() if not name.startswith("AuxLogits.")}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = [name for name in wanted.keys() - counters if name not in found or found[name].shape != wanted[name].shape]
    more = found.keys() - wanted.keys()
    if wrong or more:
        name = min(wrong or more)
        there = tuple(found[name].shape) if name in found else "nothing"
        asked = tuple(wanted[name].shape) if name in wanted else "nothing"
        raise ValueError(
            f"{path} does not hold the Inception weights of {variant}: it has {there} for {name}, expected {asked}. "
            "Take the file of torch-fidelity or pytorch-fid for 2015-12-05, that of torchvision for torchvision."
        )
    model.load_state_dict({**wanted, **found})
    return model


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no file of plain tensors ({reason}); download it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds something else than a table of tensors; take the published weights")
    return found
