"""Features of sets of pictures, kept by what made them: the pixels, the weights, the resize."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray

from eval.features import BATCH, Embedder
from pipelines.artefact import digest, write_atomically
from pipelines.hardware import from_main
from pipelines.progress import meter
from pipelines.scoring.sets import Picture, PictureSet
from pipelines.together import together

FORMAT = 1  # of the files, and of how features are made
Features = NDArray[np.float32]  # (n, dim)
log = logging.getLogger("palimpsest")


class FeatureCache:
    """A folder of features; what another set, other weights or another resize has made is never met."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, embedder: Embedder, pictures: PictureSet) -> Features:
        """Features of all pictures, (n, dim); made and kept where there are none. Raises ValueError for NaN."""
        path, made_of = self._place(embedder, pictures)
        if (kept := _read(path, made_of)) is not None:
            return kept
        made = embed(embedder, pictures)
        write_atomically(path, lambda temporary: _write(temporary, made, made_of))
        return made

    def make_together(self, embedder: Embedder, pictures: PictureSet) -> None:
        """Make features that are not kept yet, each process of a run those of a part; `of` then finds them.

        All processes must call it. What is made is what one process makes, in its order; the main process keeps it.
        """
        processes = PartialState(cpu=not torch.cuda.is_available())
        path, made_of = self._place(embedder, pictures)
        if from_main(_read(path, made_of) is not None):
            return
        with together():
            mine = np.array_split(np.arange(len(pictures)), processes.num_processes)[processes.process_index]
            part = [embed(embedder, pictures.at(mine.tolist()))] if len(mine) else []
        made = np.concatenate(gather_object(part))
        with together():
            if processes.is_main_process:
                write_atomically(path, lambda temporary: _write(temporary, made, made_of))

    def _place(self, embedder: Embedder, pictures: PictureSet) -> tuple[Path, dict[str, Any]]:
        """The file of some features, and what they are made of."""
        made_of = {
            "format": FORMAT,
            "pictures": pictures.sha256,
            "count": len(pictures),
            "embedder": embedder.name,
            "weights": embedder.sha256,
            "resize": embedder.resize,
            "made_by": [torch.__version__, str(getattr(embedder, "device", "cpu"))],
        }
        return self.folder / f"{embedder.name}-{embedder.sha256[:8]}-{digest(made_of)[:16]}.npz", made_of


def embed(embedder: Embedder, pictures: PictureSet) -> Features:
    """Features of pictures of any sizes, (n, dim), in their order."""
    rows = []
    with meter(embedder.name, len(pictures)) as shown:
        for group in _alike(pictures, getattr(embedder, "batch", BATCH)):
            rows.append(embedder.embed(np.stack(group)))
            shown.advance(len(group))
    return np.concatenate(rows)


def _alike(pictures: PictureSet, most: int) -> Iterator[list[Picture]]:
    """Pictures in a row that have the same size, at most so many at once."""
    group: list[Picture] = []
    for picture in pictures:
        if group and (len(group) == most or group[0].shape != picture.shape):
            yield group
            group = []
        group.append(picture)
    yield group


def _write(path: Path, features: Features, made_of: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, features=features, made_of=np.array(json.dumps(made_of)))


def _read(path: Path, made_of: dict[str, Any]) -> Features | None:
    """What a file holds; None where there is none, or one that is damaged or of something else."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            if json.loads(str(found["made_of"])) == made_of:
                return found["features"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s) and is made again.", path, error)
    return None
