"""LPIPS of reconstructions, by weights that lie on this machine, under a name that says which they are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval.towers import file_sha256
from pipelines.errors import PalimpsestError
from pipelines.judging import Pictures
from pipelines.models import device
from pipelines.pictures import from_uint8
from tokenizer.perceptual import LPIPS, Trunk

BATCH = 32


class Published(NamedTuple):
    """Files of the published LPIPS 0.1, and how their sha256 begin; torchvision names its files by theirs."""

    trunk: str
    heads: str
    trunk_hash: str
    heads_hash: str


PUBLISHED: dict[Trunk, Published] = {
    "alex": Published("alexnet-owt-7be5be79.pth", "alex.pth", "7be5be79", "df73285e35b22355"),
    "vgg": Published("vgg16-397923af.pth", "vgg.pth", "397923af", "a78928a0af1e5f0f"),
}


class LocalLPIPS:
    """The network of a folder with torchvision's trunk and the lpips package's heads, AlexNet's where it has both."""

    def __init__(self, folder: Path) -> None:
        self.net, trunk, heads = weights_in(folder)
        try:
            self.network = LPIPS(trunk, heads, self.net).to(device())
        except ValueError as error:
            raise PalimpsestError(f"lpips: {error}") from error
        known, hashes = PUBLISHED[self.net], (file_sha256(trunk), file_sha256(heads))
        published = hashes[0].startswith(known.trunk_hash) and hashes[1].startswith(known.heads_hash)
        self.name = f"lpips[{self.net}{'' if published else f', unknown weights:{hashes[0][:8]}/{hashes[1][:8]}'}]"
        self.about = f"{self.net}, trunk {hashes[0][:8]}, heads {hashes[1][:8]}, version 0.1"

    @torch.no_grad()
    def each(self, real: Pictures, again: Pictures) -> NDArray[np.float64]:
        """Distance of each picture (n, H, W, 3) from its reconstruction, (n,).

        Raises ValueError for bytes that are none, shapes that differ, and pictures too small for the network.
        """
        if real.shape != again.shape or {real.dtype, again.dtype} != {np.dtype(np.uint8)} or not len(real):
            raise ValueError(
                f"LPIPS compares 8-bit pictures of one shape (n, H, W, 3), got {real.dtype} {real.shape} and "
                f"{again.dtype} {again.shape}"
            )
        found = []
        for start in range(0, len(real), BATCH):
            pair = [from_uint8(side[start : start + BATCH]).to(device()) for side in (again, real)]
            found.append(self.network.each(*pair).double().cpu().numpy())
        return np.concatenate(found)


def weights_in(folder: Path) -> tuple[Trunk, Path, Path]:
    """The network whose two files a folder holds. Raises PalimpsestError where there are none."""
    for net, known in PUBLISHED.items():
        trunk, heads = folder / known.trunk, folder / known.heads
        if trunk.is_file() and heads.is_file():
            return net, trunk, heads
    wanted = " or ".join(f"{known.trunk} and {known.heads}" for known in PUBLISHED.values())
    raise PalimpsestError(
        f"lpips = {str(folder)!r} holds no weights of LPIPS, expected {wanted}: torchvision's file of AlexNet or "
        "VGG-16, and the heads from lpips/weights/v0.1 of the lpips package."
    )
