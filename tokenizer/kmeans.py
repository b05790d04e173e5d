"""k-means with explicit randomness: how a codebook starts, and the baseline that a learned one has to beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.noise import uniform

CHUNK = 1 << 16
"""Vectors compared with all centres at once: bounds the memory of a nearest-neighbour search."""

MOST_CENTRES = 1 << 13


@torch.no_grad()
def nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest centre of each vector: indices (n,) int64 and squared distances (n,) float32.

    vectors: (n, d); centres: (k, d). In float32 under autocast too, and around the centres' mean, because
    |v|^2 - 2 v c + |c|^2 cancels badly far from the origin.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        origin = centres.float().mean(0)
        centres = centres.float() - origin
        squares = centres.square().sum(1)  # (k,)
        parts = []
        for part in vectors.split(CHUNK):
            shifted = part.float() - origin
            least, index = torch.addmm(squares, shifted, centres.T, alpha=-2).min(1)
            parts.append((index, (least + shifted.square().sum(1)).clamp_min(0)))
    return torch.cat([index for index, _ in parts]), torch.cat([distance for _, distance in parts])


@torch.no_grad()
def plus_plus(vectors: Tensor, count: int, generator: torch.Generator, distances: Tensor | None = None) -> Tensor:
    """Draw centres by k-means++: each with probability in proportion to its squared distance to those before it.

    vectors: (n, d); distances: (n,) squared, to centres that stand already (none: the first one is drawn uniformly).
    Returns (count, d). Source: Arthur and Vassilvitskii 2007, sec. 2.2. Uniform once every vector is a centre.
    """
    draws = uniform((count,), generator, device=vectors.device)
    weights = vectors.new_ones(len(vectors)) if distances is None else distances.clone()
    chosen = []
    for draw in draws:
        total = weights.double().cumsum(0)
        if total[-1] == 0:
            total = torch.arange(1, len(vectors) + 1, dtype=torch.float64, device=vectors.device)
        index = torch.searchsorted(total, draw * total[-1], right=True).clamp_max(len(vectors) - 1)
        chosen.append(vectors[index])
        fresh = (vectors - vectors[index]).square().sum(1)
        weights = fresh if distances is None and len(chosen) == 1 else torch.minimum(weights, fresh)
    return torch.stack(chosen)


@torch.no_grad()
def lloyd(vectors: Tensor, centres: Tensor, rounds: int) -> Tensor:
    """Move each centre to the mean of its vectors, `rounds` times; an empty one stays. Returns (k, d)."""
    for _ in range(rounds):
        counts, sums = totals(vectors, nearest(vectors, centres)[0], len(centres))
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centres)
    return centres


def totals(vectors: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Count and add up the vectors of each code: (count,) and (count, d), float32."""
    counts = torch.bincount(codes, minlength=count).float()
    sums = torch.zeros(count, vectors.shape[1], device=vectors.device).index_add_(0, codes, vectors.float())
    return counts, sums


@torch.no_grad()
def kmeans(vectors: Tensor, count: int, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """Cluster by k-means++ and Lloyd's rounds: vectors (n, d) -> centres (count, d) float32."""
    vectors = vectors.float()
    return lloyd(vectors, plus_plus(vectors, count, generator), rounds)


def patch_kmeans_psnr(
    train: Tensor, test: Tensor, codes: int, patch: int, *, seed: int = 0, rounds: int = 25
) -> Tensor:
    """PSNR in dB of each test image (n,) when its raw patches are replaced by k-means centres of the training patches.

    The baseline of a VQ-VAE at the same rate: (H / patch) (W / patch) codes of log2(codes) bits per image.
    train, test: (n, 3, H, W) in [-1, 1] (peak to peak 2), sides multiples of patch. At most 65,536 training patches
    are drawn.
    """
    if codes > MOST_CENTRES:
        raise ValueError(f"k-means with {codes:,} centres takes too long, at most {MOST_CENTRES:,} are found")
    generator = torch.Generator().manual_seed(seed)
    patches = _patches(train, patch)
    if len(patches) > CHUNK:
        patches = patches[torch.randperm(len(patches), generator=generator)[:CHUNK]]
    centres = kmeans(patches, codes, generator, rounds)
    _, distances = nearest(_patches(test, patch), centres)
    error = distances.double().view(len(test), -1).sum(1) / test[0].numel()  # (n,)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def _patches(images: Tensor, patch: int) -> Tensor:
    """Cut (n, c, H, W) into (n h w, c patch^2), all patches of an image together."""
    return F.pixel_unshuffle(images, patch).permute(0, 2, 3, 1).flatten(0, 2)
