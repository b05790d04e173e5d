"""One mask-based call for all that a masked model does: text to image, captions, texts, infilling in either modality.

What is known stands in the sequence, what is not is masked, and one sampler fills it in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor

from discrete.guide import Condition, classifier_free, conditional, hide
from discrete.layout import Layout
from discrete.model import MaskedTransformer
from discrete.sample import Remember
from discrete.schedule import Linear, Schedule, Spans
from pipelines.errors import PalimpsestError
from pipelines.hardware import device_of
from pipelines.masked_sampling import GAP, fill_in, remembers
from pipelines.models import load_masked
from pipelines.pair_schedule import spans
from pipelines.runs import Run
from pipelines.sampling_options import BY_TOKEN_SAMPLERS, MaskedOptions, Settings
from pipelines.stage_config import MdlmStage
from pipelines.vocabulary import load_vocabulary, pictures_of
from tokenizer.text import BPE
from tokenizer.vqvae import VQVAE


def masked_share(x_t: Tensor, layout: Layout) -> Tensor:
    """The time that a network with time conditioning is trained on: the share of each sequence that is masked, (B,)."""
    return (x_t == layout.mask_id).float().mean(1)


class Filled(NamedTuple):
    """Sequences (B, L) without masks, and how often the network was asked about each; guidance counts once."""

    x: Tensor
    evaluations: float


@dataclass(frozen=True)
class MaskedSampler:
    """A masked model with its tokenizers."""

    network: MaskedTransformer
    schedule: Schedule
    layout: Layout
    bpe: BPE
    vqvae: VQVAE
    pair_schedule: Spans | None = None  # of both sides at once, where one was learned

    @classmethod
    def load(cls, run: Run, name: str, network: MaskedTransformer | None = None) -> Self:
        """Load the stage `name`, or take a network that is being trained for it."""
        stage = run.recipe.stage[name]
        assert isinstance(stage, MdlmStage)
        layout, bpe, vqvae = load_vocabulary(run, name)
        powers = None if network is not None else run.manifest(name).get("powers")
        pair = None if powers is None else spans(powers, layout.text_length, layout.image_length)
        network = network or load_masked(run, name, layout)
        return cls(network, stage.sampling_schedule, layout, bpe, vqvae, pair)

    def pictures(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> list[Image.Image]:
        """Draw one picture per prompt."""
        return self.illustrate(prompts, generators, settings)[0]

    def illustrate(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> tuple[list[Image.Image], float]:
        """Draw one picture per prompt: pictures, and evaluations of the network for each."""
        codes, evaluations = self.codes(prompts, generators, settings)
        return self.decode(codes), evaluations

    def codes(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> tuple[Tensor, float]:
        """Draw the codes (B, image_length) of one picture per prompt, and evaluations of the network for each."""
        text = self.bpe.encode(prompts).tokens
        x = self.layout.join(text, None).to(self.device)
        known = self.layout.is_text().to(self.device).expand_as(x)
        filled = self.fill(x, known, generators, settings, condition=known)
        return self.layout.split(filled.x)[1], filled.evaluations

    def caption_settings(self, settings: Settings) -> Settings:
        """How captions are written where nothing is said: the surest token alone, since words depend on each other."""
        own = {"sampler": "confidence", "temperature": 1.0, "choice_temperature": 0.0}
        own |= {"guidance": settings.caption_guidance, "masked": MaskedOptions()}
        return dataclasses.replace(settings, steps=self.layout.text_length, **own)

    def describe(
        self, images: Tensor, generators: Sequence[torch.Generator], settings: Settings
    ) -> tuple[list[str], float]:
        """Describe pictures (B, 3, H, W) with any sampler: captions, and evaluations of the network for each."""
        x = self.layout.join(None, self.encode(images))
        known = ~self.layout.is_text().to(self.device).expand_as(x)
        filled = self.fill(x, known, generators, settings, condition=known, schedule=Linear())
        text, _ = self.layout.split(filled.x)
        return self.bpe.decode(text), filled.evaluations

    def pairs(self, generators: Sequence[torch.Generator], settings: Settings) -> tuple[list[Image.Image], list[str]]:
        """Make pictures and their captions from nothing, both at once.

        Samplers that ask for one share of all tokens do not heed a schedule that was learned for each side.
        """
        x = self.layout.masked(len(generators), self.device)
        schedule = self.pair_schedule if settings.sampler in BY_TOKEN_SAMPLERS else None
        known = torch.zeros_like(x, dtype=torch.bool)
        filled = self.fill(x, known, generators, settings, schedule=schedule)
        text, codes = self.layout.split(filled.x)
        return self.decode(codes), self.bpe.decode(text)

    def texts(self, generators: Sequence[torch.Generator], settings: Settings) -> list[str]:
        """Write texts on the short sequence, which means that there is no picture."""
        x = self.layout.masked(len(generators), self.device)[:, self.layout.text]
        known = torch.zeros_like(x, dtype=torch.bool)
        filled = self.fill(x, known, generators, settings, schedule=Linear())
        return self.bpe.decode(filled.x)

    def infill(
        self, images: Tensor, caption: str, box: tuple[float, float, float, float] | None,
        generators: Sequence[torch.Generator], settings: Settings,
    ) -> tuple[Image.Image, str]:  # fmt: skip
        """Fill a box (left, top, right, bottom, as shares) of a picture (1, 3, H, W) and its caption's open words.

        box: None leaves the picture as it is. Guidance leads towards the caption's known words. Raises PalimpsestError
        for a caption that does not fit.
        """
        text, text_known = self._open_words(caption)
        x = self.layout.join(text.to(self.device), self.encode(images))
        known = torch.cat([text_known.to(self.device), ~self.hidden_box(box)[None]], 1)
        x = torch.where(known, x, self.layout.mask_id)
        said = known & self.layout.is_text().to(self.device)
        words, codes = self.layout.split(self.fill(x, known, generators, settings, condition=said).x)
        return self.decode(codes)[0], self.bpe.decode(words)[0]

    def _open_words(self, caption: str) -> tuple[Tensor, Tensor]:
        """Tokens (1, L) of a caption and which of them are known: [mask] is one open token, [mask:3] three."""
        if not caption.strip():
            return torch.zeros(1, self.layout.text_length, dtype=torch.int64), torch.zeros(
                1, self.layout.text_length
            ).bool()
        pieces: list[tuple[list[int], bool]] = []
        for word in GAP.sub(r" \g<0> ", caption).split():
            if gap := GAP.fullmatch(word):
                if gap[1] and not int(gap[1]):
                    raise PalimpsestError(f"The gap {word} of the caption has no tokens, expected at least 1.")
                pieces.append(([0] * int(gap[1] or 1), False))
                continue
            ids = self.bpe.encode([word])
            if bool(ids.truncated[0]):
                raise PalimpsestError(
                    f"The word {word[:40]!r} is longer than a caption of {self.layout.text_length} tokens."
                )
            pieces.append((ids.tokens[0, : int(ids.lengths[0]) - 1].tolist(), True))
        flat = [(token, known) for ids, known in pieces for token in ids]
        if len(flat) >= self.layout.text_length:
            raise PalimpsestError(
                f"The caption has {len(flat)} tokens, but the model reads {self.layout.text_length - 1} and an end "
                "token: shorten it, or train with a larger bpe.length."
            )
        flat.append((self.bpe.end_id, True))
        flat += [(self.bpe.pad_id, True)] * (self.layout.text_length - len(flat))
        tokens, known = zip(*flat, strict=True)
        return torch.tensor([tokens]), torch.tensor([known])

    def hidden_box(self, box: tuple[float, float, float, float] | None) -> Tensor:
        """Which codes a box touches, (image_length,) bool; None touches none. Raises ValueError for one outside."""
        if box is None:
            return torch.zeros(self.layout.image_length, dtype=torch.bool, device=self.device)
        left, top, right, bottom = box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(
                f"box {box}, expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1, as shares of the side"
            )
        touched = []
        for side in self.layout.sides:
            near, far = torch.arange(side) / side, (torch.arange(side) + 1) / side
            columns, rows = (near < right) & (far > left), (near < bottom) & (far > top)
            touched.append((rows[:, None] & columns).flatten())
        return torch.cat(touched).to(self.device)

    @torch.no_grad()
    def fill(
        self,
        x: Tensor,
        known: Tensor,
        generators: Sequence[torch.Generator],
        settings: Settings,
        *,
        condition: Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> Filled:
        """Fill in what is masked and not known: x (B, L) -> (B, L).

        condition: (B, L) bool, the known tokens that guidance leads towards; None does not guide.
        """
        cond = Condition(x, known)
        calls = rows = 0

        def network(x_t: Tensor, _: Tensor) -> Tensor:
            nonlocal calls, rows
            calls, rows = calls + 1, rows + len(x_t)
            return self.network.logits(x_t, masked_share(x_t, self.layout))

        remembered = remembers(settings, timed=self.network.config.time)
        model = Remember(network) if remembered else network
        scale = 1.0 if condition is None else settings.guidance
        null = hide(cond, self.layout.mask_id, condition)
        logits = classifier_free(conditional(model), cond, null, scale, interval=settings.masked.interval)
        made = fill_in(
            logits, schedule or self.schedule, x, known, settings, mask_id=self.layout.mask_id, generator=generators
        )
        branches = 1 if scale == 1 else 2
        return Filled(made, rows / max(1, len(x)) / branches if remembered else float(calls))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, image_length) of pictures (B, 3, H, W)."""
        return self.vqvae.codes(images.to(self.device))

    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of codes (B, image_length)."""
        return pictures_of(codes, self.layout, self.vqvae)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self.network)
