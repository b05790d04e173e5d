"""Writing texts with any text model: from nothing, behind a prompt, or into the gaps of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from backbone.noise import uniform
from discrete.autoregressive import continue_text
from discrete.d3pm import sample_chain
from discrete.objective import Autoregressive, Blocks, Masked
from discrete.replaced import D3PM, Uniform
from discrete.sample import Remember, block_causal
from discrete.schedule import Linear
from discrete.text_model import TextTransformer
from discrete.uniform import uniform_ancestral, uniform_start
from latent.grid import uniform as uniform_times
from pipelines.errors import PalimpsestError
from pipelines.hardware import device_of
from pipelines.masked_sampling import GAP, block_within, fill_in, of_denoiser, of_draws, on_a_grid, remembers
from pipelines.models import load_text_model
from pipelines.runs import Run, stage_of
from pipelines.sampling_options import Settings
from pipelines.text.config import AnyObjective, TextModelStage
from pipelines.text.corpus import Corpus
from pipelines.text.settings import check_settings, usual_settings
from pipelines.text.watched import Watched, counted, pieces
from tokenizer.plain import PlainTokenizer


class Written(NamedTuple):
    """Texts (B, L) as tokens; how often the network was asked about each, and how many whole texts it read for each.

    revealed: (B, L), the share of the steps after which a token was there for good; None of models that mask nothing.
    """

    ids: Tensor
    evaluations: float
    passes: float
    revealed: Tensor | None = None


class Prompt(NamedTuple):
    """A prompt as tokens (1, L), which of them are known (1, L) bool, and where it ends, its gaps included."""

    ids: Tensor
    known: Tensor
    said: int


@dataclass(frozen=True)
class TextSampler:
    """A text model with its tokenizer."""

    network: TextTransformer
    objective: AnyObjective
    tokenizer: PlainTokenizer
    length: int  # tokens of the windows that it was trained on
    documents: Tensor | None = None  # lengths of the training text's documents, their ends included, where it has any

    @classmethod
    def load(cls, run: Run, name: str) -> Self:
        """Load the stage `name`; raises ArtefactError where its tokenizer is not the one that it was trained with."""
        stage = stage_of(run, name)
        if not isinstance(stage, TextModelStage):
            raise PalimpsestError(f"stage {name!r} is of kind {stage.kind!r}, expected 'text_model'")
        corpus = Corpus.load(run, name)
        network = load_text_model(run, name, corpus.tokenizer)
        lengths = document_lengths(corpus.splits["train"].ids, corpus.tokenizer.end_id)
        return cls(network, stage.objective, corpus.tokenizer, stage.length, lengths)

    def prompt(self, text: str, length: int) -> Prompt:
        """Read a text with gaps: [mask] is one of one token, [mask:12] of twelve; what is not said is behind the text.

        Raises PalimpsestError where it does not fit, or has gaps for a model that fills none.
        """
        gaps = [int(gap[1] or 1) for gap in GAP.finditer(text)]
        if gaps and isinstance(self.objective, Autoregressive):
            raise PalimpsestError(
                "An autoregressive model writes behind a prompt alone, and this one has gaps in it: take a masked "
                "model."
            )
        if sum(gaps) > length or not all(gaps):
            raise PalimpsestError(
                f"The gaps of the prompt have {gaps} tokens, but the text is to have {length}: each is at least 1, and "
                "together they must fit."
            )
        ids, known, start = list[int](), list[bool](), 0
        for gap in [*GAP.finditer(text), None]:
            piece = self.tokenizer.encode(text[start : gap.start() if gap else None]).ids.tolist()
            self._check_read(piece, text)
            ids, known = ids + piece, known + [True] * len(piece)
            if gap is not None:
                size = int(gap[1] or 1)
                ids, known, start = ids + [0] * size, known + [False] * size, gap.end()
        if len(ids) > length:
            raise PalimpsestError(
                f"The prompt has {len(ids)} tokens, but the text is to have {length}: shorten it, or ask for a longer "
                "text."
            )
        rest = length - len(ids)
        return Prompt(torch.tensor([ids + [0] * rest]), torch.tensor([known + [False] * rest]), len(ids))

    def _check_read(self, ids: list[int], text: str) -> None:
        """Refuse letters that the tokenizer does not know, and more than one document."""
        if self.tokenizer.end_id is not None and self.tokenizer.end_id in ids:
            raise PalimpsestError(
                f"The prompt {text[:60]!r} holds {self.tokenizer.separator!r}, which ends a document: write one at a "
                "time."
            )
        if self.tokenizer.unknown_id is not None and self.tokenizer.unknown_id in ids:
            raise PalimpsestError(
                f"The prompt {text[:60]!r} has characters that the training text does not have: leave them out, or "
                'train with unit = "bpe", which reads everything.'
            )

    def texts(self, written: Written) -> list[str]:
        """Return what was written as texts, each up to the end of its document, which stands behind it if it came."""
        rows = written.ids.cpu().tolist()
        if (end := self.tokenizer.end_id) is not None:
            rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
        return [self.tokenizer.decode(row) for row in rows]

    def timed(self, written: Written, row: int = 0) -> list[tuple[str, float]]:
        """One text in pieces, each with when it was revealed; nothing where nobody noted it."""
        if written.revealed is None:
            return []
        ids = written.ids[row].tolist()
        ids = ids[: ids.index(self.tokenizer.end_id) + 1] if self.tokenizer.end_id in ids else ids
        return pieces(self.tokenizer, ids, written.revealed[row].tolist())

    def usual_settings(
        self, length: int | None = None, block: int | None = None, sampler: str | None = None
    ) -> Settings:
        """How `length` tokens are written where no more is said; beyond the windows of the training, by blocks."""
        length = length or self.length
        beyond = isinstance(self.objective, Masked) and length > self.length
        return usual_settings(self.objective, block or (block_within(self.length) if beyond else length), sampler)

    def write(
        self,
        count: int,
        generators: Sequence[torch.Generator],
        settings: Settings,
        *,
        prompt: str = "",
        length: int | None = None,
    ) -> Written:
        """Write `count` texts of `length` tokens around a prompt; longer ones than the model read go by blocks.

        So masked models do; an autoregressive one goes on beyond what it was trained on, the others refuse.

        Where the training text has documents, an autoregressive model ends a text where it will, and a masked one, to
        which lengths were given, writes one as long as one of them, but not less than the prompt.
        """
        if count < 1 or (length is not None and length < 1):
            raise PalimpsestError(f"count is {count} and length {length}: expected at least 1 text and 1 token")
        device = device_of(self.network)
        read = self.prompt(prompt, length or self.length)
        x, known = (part.expand(count, -1).to(device) for part in (read.ids, read.known))
        if self.documents is not None and isinstance(self.objective, Masked):
            x, known = self._ended(self.documents, x, known, read.said, generators)
        return self.fill(x, known, generators, settings)

    def _ended(
        self, lengths: Tensor, x: Tensor, known: Tensor, said: int, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Give each text x (B, L) the length of a document of the training text: from its end on, all are ends."""
        drawn = lengths[(uniform((len(x),), generators) * len(lengths)).long().cpu()].to(x.device)  # (B,)
        places = torch.arange(x.shape[1], device=x.device)
        behind = places >= (drawn - 1).clamp_min(said)[:, None]
        return torch.where(behind, self.tokenizer.end_id or 0, x), known | behind

    @torch.no_grad()
    def fill(self, x: Tensor, known: Tensor, generators: Sequence[torch.Generator], settings: Settings) -> Written:
        """Fill in what is not known of x (B, L). Raises PalimpsestError where the model cannot."""
        check_settings(self.objective, settings)
        _check_known(x, known, self.network.vocab)
        if x.shape[1] > self.length and isinstance(self.objective, Uniform | D3PM):
            raise PalimpsestError(
                f"The text is to have {x.shape[1]} tokens, but this model of kind {self.objective.kind!r} was trained "
                f"on {self.length} and writes them all at once: ask for at most so many, or take a masked model"
            )
        revealed = None
        with counted(self.network) as count:
            match self.objective:
                case Autoregressive():
                    made = _continued(self.network, x, known, generators, settings)
                case Masked():
                    made, revealed = self._unmasked(self.objective, x, known, generators, settings)
                case Blocks():
                    made = self._by_blocks(self.objective.size, x, known, generators, settings)
                case Uniform():
                    made = _replaced(self.objective, self.network, x, known, generators, settings)
                case D3PM():
                    made = _chained(self.objective, self.network, x, known, generators, settings)
                case _:
                    raise AssertionError(self.objective)
        return Written(made, count.rows / len(x), count.tokens / x.numel(), revealed)

    def _unmasked(
        self,
        objective: Masked,
        x: Tensor,
        known: Tensor,
        generators: Sequence[torch.Generator],
        settings: Settings,
    ) -> tuple[Tensor, Tensor | None]:
        """Masked diffusion; texts that are longer than the windows of the training go by blocks within such windows."""
        end_id, allowed = self.tokenizer.end_id, None
        if end_id is not None:  # known ends alone
            allowed = torch.arange(self.network.vocab + 1, device=x.device) != end_id
        plain = objective.logits(self.network, end_id)
        if remembers(settings, timed=self.network.config.time):
            plain = Remember(plain)
        mask_id, window = self.network.mask_id, self.length if x.shape[1] > self.length else None
        options = {"mask_id": mask_id, "generator": generators, "window": window, "allowed": allowed}
        hidden = torch.where(known, x, mask_id)
        watched = Watched(plain, hidden, mask_id)
        made = fill_in(watched, objective.schedule, hidden, known, settings, **options)
        return made, watched.revealed

    def _by_blocks(
        self, size: int, x: Tensor, known: Tensor, generators: Sequence[torch.Generator], settings: Settings
    ) -> Tensor:
        """Block-causal diffusion, at `steps` steps for each block."""
        hidden = torch.where(known, x, self.network.mask_id)
        sampler, times = on_a_grid(settings)
        options = {"generator": generators, "known": known, "sharpen": of_denoiser(settings)}
        return block_causal(self.network, Linear(), hidden, times, sampler=sampler, size=size, **options)


def _continued(
    network: TextTransformer, x: Tensor, known: Tensor, generators: Sequence[torch.Generator], settings: Settings
) -> Tensor:
    """One token after the other, behind what is known."""
    start = int(known[0].sum())
    if not (known == (torch.arange(x.shape[1], device=x.device) < start)).all():
        raise PalimpsestError(
            "An autoregressive model writes behind a prompt alone, as long in every row: what is known here has gaps, "
            "or ends at different places. Take a masked model."
        )
    return continue_text(network, x[:, :start], x.shape[1], generator=generators, sharpen=of_draws(settings))


def _replaced(
    objective: Uniform, network: TextTransformer, x: Tensor, known: Tensor, generators: Sequence[torch.Generator],
    settings: Settings,
) -> Tensor:  # fmt: skip
    """Uniform-state diffusion, from random tokens."""
    start = torch.where(known, x, uniform_start(x.shape, network.vocab, generators, x.device))
    denoise, times = objective.denoise(network), uniform_times(settings.steps)
    common = {"vocab": network.vocab, "generator": generators, "known": known}
    return uniform_ancestral(denoise, objective.schedule, start, times, **common)


def _chained(
    objective: D3PM, network: TextTransformer, x: Tensor, known: Tensor, generators: Sequence[torch.Generator],
    settings: Settings,
) -> Tensor:  # fmt: skip
    """All steps of the chain that was trained."""
    if settings.steps != objective.steps:
        raise PalimpsestError(
            f"steps is {settings.steps}, but this model was trained on a chain of {objective.steps} steps and takes "
            "them all"
        )
    chain = objective.chain(network.vocab, x.device)
    random = uniform_start(x.shape, network.vocab, generators, x.device)
    start = torch.full_like(x, network.mask_id) if objective.transition == "absorbing" else random
    start = torch.where(known, x, start)
    return sample_chain(objective.denoise(network), chain, start, generator=generators, known=known)


def document_lengths(ids: Tensor, end_id: int | None) -> Tensor | None:
    """Tokens of each document of a text (N,) that is not empty, its end included; None where nothing ends."""
    if end_id is None:
        return None
    ends = (ids == end_id).nonzero()[:, 0]
    lengths = ends.diff(prepend=ends.new_tensor([-1]))
    return lengths[lengths > 1]


def _check_known(x: Tensor, known: Tensor, vocab: int) -> None:
    """Raise PalimpsestError where what is known does not belong to x, or is no token."""
    if known.shape != x.shape or known.dtype != torch.bool:
        raise PalimpsestError(
            f"What is known is {known.dtype} of shape {tuple(known.shape)}, but the tokens have {tuple(x.shape)}: give "
            "one bool for each token"
        )
    if outside := [int(token) for token in x[known].unique() if not 0 <= token < vocab]:
        raise PalimpsestError(f"The known tokens {outside[:5]} are outside the vocabulary, which has 0 to {vocab - 1}")
