"""Embedders that turn pictures into features for the distances, and the honest names of what comes out.

No distance of this project is called FID: that name belongs to one set of weights. A key names the embedder, its hash,
the resize, both sample sizes and the split; only figures with equal keys may stand side by side.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eval.resize import Pictures, Resize, resize_id, resized, scaled

BATCH = 256
NOTE = "made by a judge that a run of this project trained: not comparable with published FID, KID or CLIP scores"


class Embedder(Protocol):
    """A frozen map from pictures to features; the hash covers everything that decides the result."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    @property
    def dim(self) -> int:
        """Width of the features."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the weights in hexadecimal digits."""
        ...

    @property
    def resize(self) -> str:
        """How pictures reach the embedder's size, such as `none` or `clean-32`."""
        ...

    def embed(self, images: Pictures) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32."""
        ...


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What a figure over features was made of; `str` is its honest name. `metric`: fd, kd, prdc-k5, cosine ..."""

    metric: str
    name: str
    sha256: str
    resize: str
    generated: int
    reference: int
    split: str

    def __str__(self) -> str:
        sizes = f"n={self.generated}/{self.reference}"
        return f"{self.metric}[{self.name}:{self.sha256[:8]}|resize={self.resize}|{sizes}|split={self.split}]"


def feature_key(metric: str, embedder: Embedder, *, generated: int, reference: int, split: str) -> FeatureKey:
    """Key of a figure made with this embedder from so many pictures, against a reference split."""
    return FeatureKey(
        metric=metric,
        name=embedder.name,
        sha256=embedder.sha256,
        resize=embedder.resize,
        generated=generated,
        reference=reference,
        split=split,
    )


def comparable(a: FeatureKey, b: FeatureKey) -> bool:
    """Whether two figures may stand side by side: all parts of their keys agree, the sample sizes included."""
    return a == b


def require_comparable(a: FeatureKey, b: FeatureKey) -> None:
    """Raise ValueError that names every part in which the keys differ."""
    parts = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(FeatureKey)]
    differing = [f"{name} {mine!r} and {other!r}" for name, mine, other in parts if mine != other]
    if differing:
        raise ValueError(f"{a} cannot be compared with {b}: {'; '.join(differing)}. Recompute both with one setting.")


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Any image network as an embedder: `network` maps (B, 3, size, size) in [-1, 1] to (B, dim)."""

    name: str
    sha256: str
    dim: int
    size: int
    network: Callable[[Tensor], Tensor]
    how: Resize = "none"
    device: str = "cpu"
    batch: int = BATCH  # pictures at once

    @property
    def resize(self) -> str:
        """Resize id with the side."""
        return resize_id(self.how, self.size)

    @torch.inference_mode()
    def embed(self, images: Pictures) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32. Raises ValueError where the network gives another shape or NaN."""
        batches = [
            self.network(x.to(self.device)).float().cpu() for x in _batches(images, self.size, self.how, self.batch)
        ]
        features = torch.cat(batches).numpy()
        if features.shape != (len(images), self.dim) or not np.isfinite(features).all():
            wanted = (len(images), self.dim)
            raise ValueError(
                f"{self.name} gave shape {features.shape} or NaN, expected finite values of shape {wanted}"
            )
        return features


@dataclass(frozen=True, kw_only=True)
class RandomConv:
    """Random convolutions (arXiv:1502.01852, eq. 10), frozen: a judge that no data has biased (arXiv:2002.09797)."""

    seed: int = 0
    dim: int = 64
    size: int = 32
    how: Resize = "none"

    @property
    def name(self) -> str:
        """Name with the seed's role left to the hash."""
        return "random-conv"

    @property
    def resize(self) -> str:
        """Resize id with the side."""
        return resize_id(self.how, self.size)

    @property
    def sha256(self) -> str:
        """Hash of the weights."""
        return _digest(*(w.numpy() for w in self.weights))

    @cached_property
    def weights(self) -> list[Tensor]:
        """Kernels (out, in, 3, 3) with variance 2 / fan-in."""
        generator = torch.Generator().manual_seed(self.seed)
        widths = [3, self.dim // 4, self.dim // 2, self.dim]
        shapes = [(wide, narrow, 3, 3) for narrow, wide in pairwise(widths)]
        return [torch.randn(s, generator=generator) * (2 / (9 * s[1])) ** 0.5 for s in shapes]

    @torch.inference_mode()
    def embed(self, images: Pictures) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32: means of the last map."""
        return torch.cat([self._means(x) for x in _batches(images, self.size, self.how)]).numpy()

    def _means(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = F.relu(F.conv2d(x, weight, stride=2, padding=1))
        return x.mean((2, 3))


@dataclass(frozen=True, kw_only=True)
class PixelsPCA:
    """Projection of the pixels on the leading directions of a training set: cheap, and blind to fine shape."""

    mean: NDArray[np.float64]  # (size * size * 3,)
    directions: NDArray[np.float64]  # (dim, size * size * 3), orthonormal rows
    size: int
    how: Resize = "none"

    @classmethod
    def fit(cls, images: Pictures, *, dim: int, size: int, how: Resize = "none") -> "PixelsPCA":
        """Fit on (n, H, W, 3) training pictures, a thousand are enough. Raises ValueError unless n > dim."""
        if len(images) <= dim:
            raise ValueError(f"pixels-pca with dim={dim} needs more than {dim} pictures, got {len(images)}")
        x = _flat(images, size, how)
        mean = x.mean(0)
        directions = np.linalg.svd(x - mean, full_matrices=False)[2][:dim]
        pivots = directions[np.arange(len(directions)), np.abs(directions).argmax(1)]
        return cls(mean=mean, directions=directions * np.sign(pivots)[:, None], size=size, how=how)

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "pixels-pca"

    @property
    def dim(self) -> int:
        """Number of directions."""
        return len(self.directions)

    @property
    def resize(self) -> str:
        """Resize id with the side."""
        return resize_id(self.how, self.size)

    @property
    def sha256(self) -> str:
        """Hash of mean and directions."""
        return _digest(self.mean, self.directions)

    def embed(self, images: Pictures) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32."""
        return ((_flat(images, self.size, self.how) - self.mean) @ self.directions.T).astype(np.float32)


def paired_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far a picture's features moved: mean over features of the squared difference, (n, dim) twice -> (n,).

    For features of length sqrt(dim) this is 2 - 2 cosine, in [0, 4]. It is not LPIPS, whose networks and weights it
    does not have. Raises ValueError for shapes that differ.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"paired features need one shape (n, dim), got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("paired features hold NaN or infinite values: check the embedder and its pictures")
    return ((x - y) ** 2).mean(1)


def quantise(images: Tensor) -> Pictures:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8, rounded: truncation alone would cost 6 dB. NaN becomes black."""
    values = images.float().nan_to_num(nan=-1.0).clamp(-1, 1) * 127.5 + 127.5
    return values.round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _batches(images: Pictures, size: int, how: Resize, batch: int = BATCH) -> Iterator[Tensor]:
    """Batches (B, 3, size, size) in [-1, 1]; the last one is as long as what is left."""
    if not len(images):
        raise ValueError("there are no pictures to embed")
    for start in range(0, len(images), batch):
        yield scaled(images[start : start + batch], size, how)


def _flat(images: Pictures, size: int, how: Resize) -> NDArray[np.float64]:
    return resized(images, size, how).reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def _digest(*arrays: NDArray) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
