"""Drawing pictures with an autoregressive model of their codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from discrete.picture_prior import PicturePrior, draw_codes
from discrete.predict import sharpener
from pipelines.hardware import device_of
from pipelines.models import load_prior
from pipelines.runs import Run
from pipelines.sampling_options import Settings
from pipelines.vocabulary import Vocabulary, load_vocabulary, pictures_of


@dataclass(frozen=True)
class ArSampler:
    """An autoregressive model with its tokenizers."""

    network: PicturePrior
    vocabulary: Vocabulary

    @classmethod
    def load(cls, run: Run, name: str, network: PicturePrior | None = None) -> Self:
        """Load the stage `name`, or take a network that is being trained for it."""
        vocabulary = load_vocabulary(run, name)
        return cls(network or load_prior(run, name, vocabulary.layout), vocabulary)

    def pictures(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> list[Image.Image]:
        """Draw one picture per prompt."""
        return self.decode(self.codes(prompts, generators, settings))

    def codes(self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings) -> Tensor:
        """Draw the codes (B, image_length) of one picture per prompt."""
        options = settings.masked
        sharpen = sharpener(temperature=settings.temperature, top_k=options.top_k, top_p=options.top_p)
        text = self.vocabulary.bpe.encode(prompts).tokens.to(device_of(self.network))
        return draw_codes(self.network, text, generator=generators, scale=settings.guidance, sharpen=sharpen)

    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of codes (B, image_length)."""
        layout, _, vqvae = self.vocabulary
        return pictures_of(codes, layout, vqvae)
