"""Perceptual distances as losses: LPIPS, where its weights are given, and a distance in a tower of the project's own.

Both compare maps of a frozen network, position by position and as directions over the channels. Unusual: the name tells
which of the two a number is, and of which weights; only the published networks under the published heads are LPIPS.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from backbone.clip import contrastive_hash, image_maps, load_contrastive
from backbone.cure import cure_torchvision

Trunk = Literal["vgg", "alex"]
EPS = 1e-10  # added to the length of a vector of channels
STAGES = 5  # maps of a tower that are compared, at most
SHIFT = (-0.030, -0.088, -0.188)  # of colours in [-1, 1]: ImageNet's mean and deviation
SCALE = (0.458, 0.448, 0.450)


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """Weight of the perceptual distance, and where its network is.

    trunk: file of torchvision's VGG-16 or AlexNet (`net`); heads: file of the linear heads, as the `lpips` package has
    them. Both make it LPIPS; with neither it is the distance in the image tower of a `clip` stage.
    """

    weight: float = 1.0
    trunk: str = ""
    heads: str = ""
    net: Trunk = "vgg"

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight is {self.weight}, expected a number above 0. Use 1, or leave the table out.")
        if self.net != "vgg" and not self.trunk:
            raise ValueError(f"net is {self.net!r}, but no trunk is given. Give trunk and heads, or leave net out.")
        if bool(self.trunk) != bool(self.heads):
            given, missing = ("trunk", "heads") if self.trunk else ("heads", "trunk")
            raise ValueError(
                f"{given} is {getattr(self, given)!r} and {missing} is empty, expected both files (LPIPS) or neither "
                f"(the tower of a clip stage). Give {missing}, or leave {given} out."
            )

    @property
    def smallest(self) -> int:
        """Shortest side of a picture that the network takes; a tower resizes pictures to its own."""
        return TRUNKS[self.net].smallest if self.trunk else 1


class PerceptualDistance(nn.Module, ABC):
    """Distance between pictures in the maps of a frozen network, in its own precision whatever autocast is on.

        E sum_s mean_hw sum_c w_sc (u_sc - v_sc)^2,   u_s = f_s(x_hat) / |f_s(x_hat)|,   v_s = f_s(x) / |f_s(x)|

    The network stays in evaluation mode, and none of its parameters has a gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    @property
    @abstractmethod
    def name(self) -> str:
        """What a report calls the number."""

    @abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps of pictures: (B, 3, H, W) in [-1, 1] -> (B, C_s, h_s, w_s) each."""

    @abstractmethod
    def weighed(self, squares: Sequence[Tensor]) -> Tensor:
        """Distances (B,), of the squared differences (B, C_s, h_s, w_s) between directions."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """x_hat, x: (B, 3, H, W) in [-1, 1]. Returns the mean (), with a gradient to x_hat only."""
        return self.each(x_hat, x).mean()

    def each(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """The distance of each picture, (B,)."""
        dtype = next(self.network.parameters()).dtype
        with torch.autocast(x_hat.device.type, enabled=False):
            with torch.no_grad():
                target = [directions(values) for values in self.maps(x.to(dtype))]
            found = [directions(values) for values in self.maps(x_hat.to(dtype))]
            return self.weighed([(u - v).square() for u, v in zip(found, target, strict=True)])


def directions(values: Tensor) -> Tensor:
    """Vectors of channels at unit length, zero vectors as they are: (B, C, h, w) -> (B, C, h, w)."""
    return values / (torch.linalg.vector_norm(values, dim=1, keepdim=True) + EPS)


@dataclass(frozen=True)
class TrunkShape:
    """A torchvision network as LPIPS cuts it: where five maps end, their channels, the smallest side it takes."""

    name: str
    ends: tuple[int, ...]
    channels: tuple[int, ...]
    smallest: int


TRUNKS: dict[Trunk, TrunkShape] = {
    "vgg": TrunkShape("vgg16", (4, 9, 16, 23, 30), (64, 128, 256, 512, 512), 16),  # relu1_2 2_2 3_3 4_3 5_3
    "alex": TrunkShape("alexnet", (2, 5, 8, 10, 12), (64, 192, 384, 256, 256), 31),  # the five relus
}


class LPIPS(PerceptualDistance):
    """Learned perceptual distance (arXiv:1801.03924, eq. 1, in the released version 0.1 with its scaling of colours).

    trunk: file of torchvision's state dict of the network; heads: file of `lin0.model.1.weight` (1, C, 1, 1) and so on.
    Either is safetensors, or a .pth that holds tensors only. Raises FileNotFoundError and ValueError where they are not
    there or not these. Pictures keep their size.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Path, heads: Path, net: Trunk = "vgg") -> None:
        self.shape = TRUNKS[net]
        super().__init__(_trunk(trunk, self.shape))
        expected = {f"lin{i}.model.1.weight": (1, channels, 1, 1) for i, channels in enumerate(self.shape.channels)}
        found = _checked(heads, expected, f"the lpips package's linear heads for {net}")
        for i, key in enumerate(expected):
            self.register_buffer(f"head{i}", found[key].float()[0])  # (C, 1, 1)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.net: Trunk = net
        self.identity = hashlib.sha256(trunk.read_bytes() + heads.read_bytes()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """LPIPS with network and hash of both files."""
        return f"lpips[{self.net}:{self.identity}]"

    def maps(self, x: Tensor) -> list[Tensor]:
        """The five maps. Raise ValueError for pictures that the network cannot take."""
        if min(x.shape[-2:]) < self.shape.smallest:
            raise ValueError(
                f"pictures of {x.shape[-2]} x {x.shape[-1]} are too small for LPIPS with {self.shape.name}, expected "
                f"sides of {self.shape.smallest} pixels or more. Use vgg (16 pixels) or the tower of a clip stage."
            )
        values, maps = (x - self.shift) / self.scale, []
        for layers in self.network.children():
            values = layers(values)
            maps.append(values)
        return maps

    def weighed(self, squares: Sequence[Tensor]) -> Tensor:
        """Sum over the maps, channels weighed by the linear heads."""
        terms = [(self.get_buffer(f"head{i}") * square).sum(1).mean((1, 2)) for i, square in enumerate(squares)]
        return torch.stack(terms).sum(0)


def _trunk(path: Path, shape: TrunkShape) -> nn.Sequential:
    """The five slices of a torchvision network with the weights of a file."""
    cure_torchvision()
    models: Any = importlib.import_module("torchvision.models")
    with torch.device("meta"):  # nothing is drawn, and the classifier takes no memory
        layers = getattr(models, shape.name)(weights=None).features[: shape.ends[-1]]
    expected = {f"features.{key}": tuple(value.shape) for key, value in layers.state_dict().items()}
    found = _checked(path, expected, f"torchvision's state dict of {shape.name}")
    layers.load_state_dict({key.removeprefix("features."): found[key].float() for key in expected}, assign=True)
    starts = (0, *shape.ends[:-1])
    return nn.Sequential(*(layers[start:end] for start, end in zip(starts, shape.ends, strict=True)))


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file, on the CPU; nothing unpickles."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, expected a .safetensors or .pth file. Check trunk and heads.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a whole file of tensors ({reason}); copy or download it again") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict; save model.state_dict()")
    return state


def _checked(path: Path, expected: dict[str, tuple[int, ...]], what: str) -> dict[str, Tensor]:
    """Tensors of a file that must hold those expected; it may hold others."""
    state = _read(path)
    for key, shape in expected.items():
        found = tuple(state[key].shape) if key in state else "missing"
        if found != shape:
            raise ValueError(
                f"{path} is not {what}: {key} is {found}, expected {shape}. Give that file, or change net."
            )
    return {key: state[key] for key in expected}


class FeatureDistance(PerceptualDistance):
    """Distance in the image tower of a contrastive model that the project trained itself; never called LPIPS.

    Of the tower's maps at most five are compared, spread evenly over its depth, each with the same weight; of
    unit vectors the squared distance is 2 - 2 cos. Pictures of another size are resized first (bilinear, antialiased).
    """

    def __init__(self, model: Any, digest: str) -> None:
        if not hasattr(model.visual, "forward_intermediates"):
            kind = type(model.visual).__name__
            raise ValueError(f"the image tower is a {kind}, which gives no maps. Use a clip stage's ResNet or ViT.")
        super().__init__(model.visual)
        self.digest = digest

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The distance in the tower of a clip stage's folder; raises as `load_contrastive` does."""
        return cls(load_contrastive(folder), contrastive_hash(folder))

    @property
    def name(self) -> str:
        """The distance with the hash of the tower."""
        return f"featdist[indomain-openclip:{self.digest[:12]}]"

    def maps(self, x: Tensor) -> list[Tensor]:
        """At most five maps, spread evenly."""
        size: Any = self.network.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        maps = image_maps(self.network, x)
        count = min(STAGES, len(maps))
        return [maps[(2 * i + 1) * len(maps) // (2 * count)] for i in range(count)]

    def weighed(self, squares: Sequence[Tensor]) -> Tensor:
        """Mean over the maps, channels added up."""
        return torch.stack([square.sum(1).mean((1, 2)) for square in squares]).mean(0)
