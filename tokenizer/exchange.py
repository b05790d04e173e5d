"""Autoencoders in folders of the layout that diffusers reads: `config.json` and safetensors, both ways.

What fits is a pyramid with a plain VAE (`AutoencoderKL`) or with one codebook (`VQModel`); anything else is refused by
name. The scaling that stage two applies to latents travels as their mean and deviation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backbone.pyramid import PyramidConfig
from tokenizer.quantize import VQConfig
from tokenizer.vae import VAE, VAEConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
HALF = "diffusion_pytorch_model.fp16.safetensors"  # read where it is the only one
NAMES = {  # ours and theirs, where they differ
    "encoder.projection.": "quant_conv.",
    "decoder.projection.": "post_quant_conv.",
    "quantizer.codebook": "quantize.embedding.weight",
}
OLDER = {"query.": "to_q.", "key.": "to_k.", "value.": "to_v.", "proj_attn.": "to_out.0."}  # theirs, before 2023
OWN = ("log_scale", "prior.", "quantizer.cluster_size", "quantizer.sums")  # what theirs have no place for
DEFAULT_SCALING = 0.18215


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of latents by channel, by which stage two normalises them: (c,) each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ForeignFolderError(ValueError):
    """A folder that holds no autoencoder of a kind that fits."""


def read_vae(folder: Path, wanted: VAEConfig) -> tuple[VAE, Scaling]:
    """Return the VAE of an `AutoencoderKL` folder and its scaling; `wanted` gives the loss, the folder the networks.

    Weights in half precision become float32. Raises ForeignFolderError where the folder is no such autoencoder.
    """
    vae = VAE(vae_config(folder, wanted))
    _load(vae, folder)
    return vae, _scaling(_document(folder, "AutoencoderKL"), vae.config.latent_channels)


def vae_config(folder: Path, wanted: VAEConfig) -> VAEConfig:
    """Return the configuration of the VAE that `read_vae` returns, without reading its weights."""
    document = _document(folder, "AutoencoderKL")
    projected = bool(document.get("use_quant_conv", True))
    if projected != bool(document.get("use_post_quant_conv", True)):
        raise ForeignFolderError(f"{folder} has a 1x1 convolution on one side of the latents only, which is not built")
    network = _pyramid(folder, document, projected=projected)
    return replace(wanted, network=network, latent_channels=int(document.get("latent_channels", 4)))


def write_vae(vae: VAE, folder: Path, scaling: Scaling, size: int) -> None:
    """Write a VAE of pyramids as an `AutoencoderKL` folder. Raises ForeignFolderError for other networks.

    Pipelines of diffusers unscale latents by latents_std / scaling_factor and latents_mean, or, older ones, by
    1 / scaling_factor alone; the factor is the inverse of the channels' mean deviation and the deviations are in its
    unit, so that the former are exact and the latter as near as one number can be. A learned prior and a variance have
    no place there and stay behind.
    """
    network = _network(vae.config.network)
    if network.inner is not None:
        raise ForeignFolderError("AutoencoderKL knows no inner channels: train with network.inner left out")
    factor = len(scaling.std) / sum(scaling.std)
    document = {
        **_common(network, size),
        "_class_name": "AutoencoderKL",
        "latent_channels": vae.config.latent_channels,
        "use_quant_conv": network.projected,
        "use_post_quant_conv": network.projected,
        "scaling_factor": factor,
        "latents_mean": list(scaling.mean),
        "latents_std": [std * factor for std in scaling.std],
    }
    _write(folder, document, vae)


def read_vqvae(folder: Path, wanted: VQVAEConfig) -> VQVAE:
    """Return the VQ-VAE of a `VQModel` folder; `wanted` gives the loss. Raises ForeignFolderError as `read_vae` does.

    Its codebook is one that is learned by gradient.
    """
    model = VQVAE(vqvae_config(folder, wanted))
    _load(model, folder)
    return model


def vqvae_config(folder: Path, wanted: VQVAEConfig) -> VQVAEConfig:
    """Return the configuration of the VQ-VAE that `read_vqvae` returns, without reading its weights."""
    document = _document(folder, "VQModel")
    if document.get("norm_type", "group") != "group":
        raise ForeignFolderError(f"{folder}: norm_type is {document['norm_type']!r}, and only 'group' is built")
    inner = int(document.get("latent_channels", 3))
    dim = int(document.get("vq_embed_dim") or inner)
    network = replace(_pyramid(folder, document, projected=True), inner=None if inner == dim else inner)
    quantizer = VQConfig(codes=int(document.get("num_vq_embeddings", 256)), dim=dim, learn="gradient")
    started = max(wanted.initial_vectors, quantizer.codes)
    return replace(wanted, network=network, quantizer=quantizer, initial_vectors=started)


def write_vqvae(model: VQVAE, folder: Path, size: int) -> None:
    """Write a VQ-VAE of pyramids with a Euclidean codebook as a `VQModel` folder.

    Raises ForeignFolderError for other networks and quantisers.
    """
    network, quantizer = _network(model.config.network), model.config.quantizer
    if not isinstance(quantizer, VQConfig) or quantizer.distance != "euclidean" or model.top is not None:
        raise ForeignFolderError(
            f"VQModel has one Euclidean codebook, but the quantisers are {model.config.levels}: train one of kind 'vq'"
        )
    if not network.projected:
        raise ForeignFolderError("VQModel has 1x1 convolutions beside its codebook: train with network.projected")
    document = {
        **_common(network, size),
        "_class_name": "VQModel",
        "latent_channels": network.inner or quantizer.dim,
        "vq_embed_dim": quantizer.dim,
        "num_vq_embeddings": quantizer.codes,
        "norm_type": "group",
    }
    _write(folder, document, model)


def _document(folder: Path, kind: str) -> dict[str, Any]:
    """Return a folder's configuration, once it is one of `kind`."""
    try:
        document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ForeignFolderError(
            f"{folder} has no {CONFIG}: give the folder of a downloaded autoencoder, such as the vae/ folder of a "
            "Stable Diffusion repository"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ForeignFolderError(f"{folder / CONFIG} is damaged ({error}): download it again") from error
    found = document.get("_class_name") if isinstance(document, dict) else None
    if found != kind:
        raise ForeignFolderError(f"{folder} holds a {found}, expected a {kind}: give another folder")
    return document


def _pyramid(folder: Path, document: Mapping[str, Any], *, projected: bool) -> PyramidConfig:
    """Return the networks that a configuration describes; refuse what a pyramid cannot be."""
    widths = tuple(document.get("block_out_channels", (64,)))
    expected = {
        "in_channels": (3, 3),
        "out_channels": (3, 3),
        "act_fn": ("silu", "silu"),
        "down_block_types": (["DownEncoderBlock2D"], ["DownEncoderBlock2D"] * len(widths)),
        "up_block_types": (["UpDecoderBlock2D"], ["UpDecoderBlock2D"] * len(widths)),
    }
    for key, (default, wanted) in expected.items():
        found = document.get(key, default)
        if (list(found) if isinstance(found, Sequence) and not isinstance(found, str) else found) != wanted:
            raise ForeignFolderError(f"{folder}: {key} is {found!r}, and only {wanted!r} is built")
    return PyramidConfig(
        channels=widths,
        blocks=int(document.get("layers_per_block", 1)),
        attention=bool(document.get("mid_block_add_attention", True)),
        groups=int(document.get("norm_num_groups", 32)),
        projected=projected,
    )


def _common(network: PyramidConfig, size: int) -> dict[str, Any]:
    levels = len(network.channels)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(network.channels),
        "layers_per_block": network.blocks,
        "norm_num_groups": network.groups,
        "mid_block_add_attention": network.attention,
        "sample_size": size,
    }


def _network(config: object) -> PyramidConfig:
    if not isinstance(config, PyramidConfig):
        kind = getattr(config, "kind", type(config).__name__)
        raise ForeignFolderError(
            f"the networks are of kind {kind!r}, expected 'pyramid', the only ones that diffusers has: train the "
            "autoencoder with network.kind = 'pyramid' in its model table"
        )
    return config


def _scaling(document: Mapping[str, Any], channels: int) -> Scaling:
    """Return mean and deviation: z = latents std / factor + mean, or z = latents / factor + shift."""
    mean, std = document.get("latents_mean"), document.get("latents_std")
    factor = float(document.get("scaling_factor") or DEFAULT_SCALING)
    if mean and std:
        return Scaling(tuple(map(float, mean)), tuple(float(one) / factor for one in std))
    shift = float(document.get("shift_factor") or 0.0)
    return Scaling((shift,) * channels, (1 / factor,) * channels)


def _load(module: nn.Module, folder: Path) -> None:
    """Load weights under their foreign names; every name and shape must fit, but for those that are ours alone."""
    path = next((folder / name for name in (WEIGHTS, HALF) if (folder / name).exists()), None)
    if path is None:
        raise ForeignFolderError(f"{folder} has no {WEIGHTS}: download it; weights in other formats are not read")
    try:
        state = {_ours(name): value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ForeignFolderError(f"{path} is damaged ({error}): download it again") from error
    own = module.state_dict()
    state |= {name: value for name, value in own.items() if name.startswith(OWN)}
    missing, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or strange or wrong:
        parts = [f"{len(missing)} missing", f"{len(strange)} unknown", f"{len(wrong)} of another shape"]
        first = next(iter(missing or strange or wrong))
        raise ForeignFolderError(
            f"{path} are weights of another architecture than {CONFIG} describes: {', '.join(parts)}, {first} the "
            "first. Download both files again."
        )
    module.load_state_dict(state)


def _ours(name: str) -> str:
    for ours, theirs in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    for older, newer in OLDER.items():
        if f".attentions.0.{older}" in name:
            return name.replace(older, newer)
    return name


def _theirs(name: str) -> str:
    for ours, theirs in NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _write(folder: Path, document: Mapping[str, Any], module: nn.Module) -> None:
    """Write a folder; the configuration last, so that one without it is unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {
        _theirs(name): value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
        if not name.startswith(OWN)
    }
    temporary = folder / f".{WEIGHTS}.tmp"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.replace(folder / WEIGHTS)
    temporary = folder / f".{CONFIG}.tmp"
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / CONFIG)
