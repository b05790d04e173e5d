"""Averages of two lengths with snapshots while a stage trains, and any other length of them afterwards.

snapshots/000500.safetensors    both averages of what learns, float32, under the names 0/... and 1/...
snapshots/ema.safetensors       the averaged weights that training left, where it kept an average
snapshots/index.json            lengths, hashes and the facts of the training; written last
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipelines.artefact import ArtefactError, fingerprint, read_json, write_atomically, write_json
from pipelines.power_average import LONGEST, Profile, beta, exponent, synthesis
from pipelines.rows import local, save_looked_at
from pipelines.training_files import problem

SNAPSHOTS, INDEX = "snapshots", "index.json"
log = logging.getLogger("palimpsest")


@dataclass(frozen=True, kw_only=True)
class PosthocEMA:
    """Two averages by power functions, of relative lengths (their widths as shares of the steps), kept in float32.

    every: steps between snapshots of both; the last step has one as well.
    """

    every: int
    lengths: tuple[float, float] = (0.05, 0.10)

    def __post_init__(self) -> None:
        """Refuse lengths that are none."""
        if self.every < 1:
            raise ValueError(f"posthoc.every = {self.every}, expected a number of steps, such as 500")
        if not 0 < self.lengths[0] < self.lengths[1] <= LONGEST:
            raise ValueError(
                f"posthoc.lengths = {list(self.lengths)}, expected two rising shares up to {LONGEST:.3f}, such as "
                "[0.05, 0.1]"
            )


class Tracked:
    """The averages of what learns in a network."""

    def __init__(self, network: nn.Module, config: PosthocEMA) -> None:
        self.config, self.gammas = config, [exponent(length) for length in config.lengths]
        self.averages = [
            {name: value.detach().float().clone() for name, value in learned(network).items()} for _ in self.gammas
        ]

    @torch.no_grad()
    def update(self, network: nn.Module, t: int) -> None:
        """Take in the weights after step t, counted from 1; those of a step that was left out are those before it."""
        weights = learned(network)
        for gamma, average in zip(self.gammas, self.averages, strict=True):
            for name, mine in average.items():
                local(mine).lerp_(local(weights[name]).to(mine.dtype), 1 - beta(gamma, t))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by number and name."""
        return {f"{i}/{name}": value for i, part in enumerate(self.averages) for name, value in part.items()}

    def load_state_dict(self, kept: dict[str, Tensor]) -> None:
        """Take over what a checkpoint holds. Raises ValueError where it is of other weights."""
        own = self.state_dict()
        if kept.keys() != own.keys():
            raise ValueError("its tracked averages are of other weights")
        for name, value in own.items():
            value.copy_(kept[name])

    def snapshot(self, folder: Path, step: int, *, main: bool = True) -> None:
        """Let the main process write both averages; where they are sharded, all must call it.

        A full disk costs the snapshot, and lengths made without it some precision.
        """
        try:
            save_looked_at(folder / SNAPSHOTS / f"{step:06d}.safetensors", self.state_dict(), main=main)
        except ArtefactError as error:
            log.warning("No snapshot of the averages at step %d: %s", step, error)

    def finish(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the index of the snapshots, with the facts of the training that they are of."""
        root, ema = folder / SNAPSHOTS, folder / "ema.safetensors"
        if ema.exists():
            write_atomically(root / ema.name, lambda temporary: shutil.copyfile(ema, temporary))
        files = {path.name: fingerprint(path) for path in sorted(root.glob("*.safetensors"))}
        write_json(root / INDEX, {"lengths": self.config.lengths, "files": files, "facts": facts})


def learned(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that learn, under all their names."""
    named = network.named_parameters(remove_duplicate=False)
    return {name: value for name, value in named if value.requires_grad}


def begin_anew(folder: Path) -> None:
    """Remove the snapshots of an earlier training."""
    shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a stage's snapshots. Raises ArtefactError where there are none or one is not whole."""
    if not (folder / SNAPSHOTS / INDEX).exists():
        raise ArtefactError(
            f"{folder} has no snapshots to make an average of another length from: set training.posthoc = "
            "{ every = 500 } and train it anew."
        )
    index = read_json(folder / SNAPSHOTS / INDEX)
    if fault := problem(folder / SNAPSHOTS, index["files"]):
        raise ArtefactError(f"The snapshots in {folder / SNAPSHOTS} are damaged: {fault}. Train the stage anew.")
    return index


def steps_of(index: dict[str, Any]) -> list[int]:
    """Return the steps of the snapshots in an index, rising."""
    return sorted(int(Path(name).stem) for name in index["files"] if Path(name).stem.isdigit())


def synthesise(
    folder: Path, index: dict[str, Any], length: float, step: int | None = None
) -> tuple[dict[str, Tensor], float]:
    """Return the weights of a stage averaged over another length, and the error of the profile (a share).

    step: that of a snapshot, at which the average ends as if training had; None is the last. What does not learn is
    that of model.safetensors. Raises ValueError for a length that is none.
    """
    steps = [found for found in steps_of(index) if step is None or found <= step]
    gammas = [exponent(found) for found in index["lengths"]]
    kept = [Profile(gamma, step) for step in steps for gamma in gammas]
    factors, error = synthesis(kept, Profile(exponent(length), steps[-1]))
    state = load_file(folder / "model.safetensors")
    sums: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        with safe_open(folder / SNAPSHOTS / f"{step:06d}.safetensors", "pt") as snapshot:
            for key in snapshot.keys():
                which, _, name = key.partition("/")
                part = factors[len(gammas) * number + int(which)] * snapshot.get_tensor(key).double()
                sums[name] = sums[name] + part if name in sums else part
    return {**state, **{name: value.float() for name, value in sums.items()}}, error
