"""What the tokens that a model of [text | image] reads stand for: their layout, and the tokenizers of both sides."""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from discrete.layout import Layout
from pipelines.artefact import ArtefactError
from pipelines.cache import open_cache
from pipelines.models import load_bpe, load_vqvae
from pipelines.pictures import to_pil
from pipelines.runs import Run
from tokenizer.text import BPE
from tokenizer.vqvae import VQVAE


class Vocabulary(NamedTuple):
    """The layout of a cache, and what wrote its tokens."""

    layout: Layout
    bpe: BPE
    vqvae: VQVAE


def load_vocabulary(run: Run, name: str) -> Vocabulary:
    """Load the tokenizers of the cache that stage `name` is trained on.

    Raises ArtefactError where the text tokenizer is not the one that wrote it.
    """
    cache = open_cache(run, name)
    bpe_name, vqvae = (run.need(name, kind)[0] for kind in ("bpe", "vqvae"))
    bpe = load_bpe(run, bpe_name)
    if bpe.hash != cache.manifest["tokenizer"]:
        raise ArtefactError(
            f"{run.stage_folder(bpe_name)} is the tokenizer {bpe.hash[:12]}, but {name} was trained with "
            f"{cache.manifest['tokenizer'][:12]}. Train {name} again, or put the old tokenizer back."
        )
    return Vocabulary(cache.layout, bpe, load_vqvae(run, vqvae))


@torch.no_grad()
def pictures_of(codes: Tensor, layout: Layout, vqvae: VQVAE) -> list[Image.Image]:
    """Decode codes (B, image_length) to pictures."""
    pixels = layout.side * vqvae.downsample
    return to_pil(vqvae.decode_codes(codes, pixels, pixels))
