"""What is looked at while a stage trains: figures on held-out data, and sample pictures, of the averaged network."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from pipelines.artefact import is_full, write_atomically
from pipelines.checkpoints import BEST
from pipelines.errors import PalimpsestError
from pipelines.hardware import autocast, device_of, from_main
from pipelines.rows import save_looked_at, save_whole
from pipelines.sharding import open_to_all
from pipelines.state import State
from pipelines.task import Task, Training
from pipelines.together import together

log = logging.getLogger("palimpsest")


@dataclass(kw_only=True)
class Views:
    """The main process looks while the others wait; at a sharded network all look together, and the main one writes."""

    task: Task
    training: Training
    state: State
    folder: Path
    name: str
    main: bool
    figures: dict[str, float] = field(default_factory=dict)  # of the last validation

    @property
    def sharded(self) -> bool:
        """Whether the network lies on several processes."""
        return isinstance(self.state.network, FSDPModule)

    @property
    def taking_part(self) -> bool:
        """Whether this process looks."""
        return self.main or self.sharded

    @property
    def shown(self) -> nn.Module:
        """The averaged network, or the network itself where no average is kept."""
        return self.state.average if self.state.average is not None else self.state.network

    def keep(self) -> None:
        """Write the weights that stay: those of the last step, and the average or those that validated best."""
        state, best = self.state, from_main(self.state.best)
        save_whole(self.folder / "model.safetensors", state.network.state_dict(), main=self.main)
        ema = self.folder / "ema.safetensors"
        if best is None and state.average is not None:
            save_whole(ema, state.average.state_dict(), main=self.main)
        with together():
            if self.main and best is not None:
                kept = self.folder / BEST.format(best[0])
                write_atomically(ema, lambda temporary: shutil.copyfile(kept, temporary))

    def validate(self) -> dict[str, float]:
        """Return figures on held-out data, and keep the weights that are best by them where that is asked for."""
        found: dict[str, float] = self._look(self.task.validate)
        found = from_main(found) if self.sharded else found
        self.figures = {name: value for name, value in found.items() if math.isfinite(value)}
        if self.training.keep == "best":
            figure = found[self.task.criterion]
            if math.isfinite(figure) and (self.state.best is None or figure < self.state.best[1]):
                self.state.best = (self.state.step, figure)
                save_looked_at(self.folder / BEST.format(self.state.step), self.shown.state_dict(), main=self.main)
        return found

    def draw(self, step: int) -> None:
        """Keep sample pictures of the averaged network. What they are drawn with may be wrong; training goes on."""
        try:
            for name, picture in self._look(self.task.pictures).items():
                if self.main:
                    (self.folder / "pictures").mkdir(exist_ok=True)
                    picture.save(self.folder / "pictures" / f"{name}-{step:06d}.png")
        except (PalimpsestError, ValueError, OSError) as error:
            if isinstance(error, OSError) and not is_full(error, self.folder):
                raise
            log.warning("%s: no sample pictures at step %d: %s", self.name, step, error)

    def _look(self, view: Callable[[nn.Module], Any]) -> Any:
        """Look at the network. One that is sharded and has no average computes in the type that it is gathered in."""
        network = self.shown
        network.eval()
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(open_to_all(network))
                if self.sharded and self.state.average is None:
                    stack.enter_context(autocast(device_of(network), self.training.bf16))
                return view(network)
        finally:
            self.state.network.train()
