"""The frozen stages that make a cache, and what they make of a batch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.data.shard_writer import Record
from pipelines.hardware import device_of
from pipelines.models import load_bpe, load_vae, load_vqvae
from pipelines.runs import Run
from tokenizer.embed import TextEncoder, load_text_encoder
from tokenizer.text import BPE
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE


@dataclass(frozen=True)
class Encoders:
    """The frozen stages that make a cache."""

    vae: VAE
    vqvae: VQVAE | None  # where codes are asked for
    bpe: BPE
    text: TextEncoder

    @classmethod
    def load(cls, run: Run, name: str) -> Encoders:
        """Load those that stage `name` needs."""
        vae, bpe, clip = (run.need(name, kind)[0] for kind in ("vae", "bpe", "clip"))
        vqvae = run.need(name, "vqvae")[0] if run.recipe.of_kind(name, "vqvae") else None
        images = load_vae(run, vae)
        text = load_text_encoder(run.stage_folder(clip)).to(device_of(images))
        return cls(images, load_vqvae(run, vqvae) if vqvae else None, load_bpe(run, bpe), text)


@torch.no_grad()
def encoded(batch: Mapping[str, Any], encoders: Encoders) -> tuple[list[Record], int]:
    """Encode the samples of a batch; returns their members and how many captions were cut."""
    x = batch["image"].to(device_of(encoders.vae))
    posterior = encoders.vae.encode(x)
    moments = torch.stack([posterior.mean, posterior.log_var], 1).half().cpu().numpy()  # (B, 2, c, h, w)
    codes = None if encoders.vqvae is None else encoders.vqvae.codes(x).int().cpu().numpy()  # (B, L)
    text = encoders.bpe.encode(batch["caption"])
    records: list[Record] = [
        {
            "latent.npy": _npy(moments[i]),
            **({} if codes is None else {"codes.npy": _npy(codes[i])}),
            "text.npy": _npy(text.tokens[i].numpy()),
            "txt": batch["caption"][i],
            "json": json.dumps({"key": key, **batch["label"][i]}),
        }
        for i, key in enumerate(batch["key"])
    ]
    return records, int(text.truncated.sum())


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
