"""An autoregressive model as a judge of texts: what each costs under it, and where it ends in its feature space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from discrete.attend import causal
from discrete.objective import Autoregressive
from eval.generative import Scores
from eval.text import sequence_entropy
from pipelines.errors import PalimpsestError
from pipelines.hardware import device_of
from pipelines.runs import Run
from pipelines.text.sampler import TextSampler

BATCH = 64


@dataclass(frozen=True)
class Scorer:
    """A frozen autoregressive model and its name with the hash of its weights."""

    model: TextSampler
    name: str

    @classmethod
    def load(cls, run: Run, stage: str) -> Self:
        """Load a stage as a judge. Raises PalimpsestError where it is not autoregressive."""
        model = TextSampler.load(run, stage)
        if not isinstance(model.objective, Autoregressive):
            raise PalimpsestError(
                f"The scorer {stage} is no autoregressive model: name one, whose costs are no bounds."
            )
        return cls(model, f"{stage}:{run.manifest(stage)['hash'][:8]}")

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> tuple[Scores, NDArray[np.float32]]:
        """Costs of texts in the scorer's own tokens, and the state (n, dim) behind the last token of each.

        The end of a document is priced, but never read: the last state is then that in front of it.
        """
        network, nats, states = self.model.network, list[float](), list[NDArray[np.float32]]()
        encoded = [torch.from_numpy(self.model.tokenizer.encode(text).ids).long() for text in texts]
        for start in range(0, len(encoded), BATCH):
            rows = encoded[start : start + BATCH]
            lengths = torch.tensor([len(row) for row in rows])
            x = torch.stack([F.pad(row, (0, int(lengths.max()) - len(row))) for row in rows])
            read = F.pad(x, (1, 0), value=network.mask_id).to(device_of(network))  # (B, 1 + L)
            seen = network.states(read, torch.zeros(()), mask=causal(read.shape[1], read.device))
            logits = network.score(seen[:, :-1]).float().flatten(0, 1)
            costs = F.cross_entropy(logits, x.flatten().to(read.device), reduction="none").view_as(x).cpu().double()
            nats += torch.where(torch.arange(x.shape[1]) < lengths[:, None], costs, 0).sum(1).tolist()
            ended = torch.tensor([int(row[-1]) == self.model.tokenizer.end_id for row in rows])
            states += list(seen[torch.arange(len(rows)), lengths - ended.long()].float().cpu().numpy())
        tokens = [len(row) for row in encoded]
        entropies = [sequence_entropy(row.tolist()) for row in encoded]
        characters = [len(text) for text in texts]
        scores = Scores(scorer=self.name, nats=nats, tokens=tokens, characters=characters, entropies=entropies)
        return scores, np.stack(states)
