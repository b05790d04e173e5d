"""What training says of a codebook: by level, with what helps the quantiser at hand, and before it cannot start."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from backbone.folded import FoldedConfig
from pipelines.codebooks import check_start, warning_of, worst_grid
from pipelines.config import RecipeError, load_recipe
from pipelines.errors import PalimpsestError
from tests.conftest import ROOT
from tokenizer.hierarchy import TopConfig
from tokenizer.quantize import (
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    SimVQConfig,
    VQConfig,
    quantizer_of,
)
from tokenizer.vqvae import VQVAEConfig

MODEL = VQVAEConfig(quantizer=ResidualConfig(depth=3, level=VQConfig(codes=64, dim=2)))


def codes_of(*used: int) -> torch.Tensor:
    """Codes (4, 3 x 64) of MODEL, so many of each grid in use."""
    generator = torch.Generator().manual_seed(0)
    parts = [64 * i + torch.randint(n, (4, 64), generator=generator) for i, n in enumerate(used)]
    return torch.cat(parts, 1)


def test_the_use_of_a_codebook_is_that_of_its_worst_level():
    codes = codes_of(64, 5, 20)
    level, used = worst_grid(codes.numpy(), MODEL)
    counts = np.bincount(codes[:, 64:128].flatten() - 64, minlength=64)
    assert level == 1 and used.tokens == 256
    assert used.perplexity == pytest.approx(np.exp(entropy(counts)))
    assert used.usage == 5 / 64 and used.top_share == counts.max() / 256


def test_a_level_that_collapses_is_named_though_all_codes_together_look_well():
    codes = codes_of(64, 64, 1)
    assert np.exp(entropy(np.bincount(codes.flatten()))) > 0.03 * MODEL.codes
    said = warning_of(MODEL, *worst_grid(codes.numpy(), MODEL))
    assert said.startswith("Codebook 3 of 3 collapses: 1 of 64 codes occur in 256 tokens, as if there were 1")
    assert not warning_of(MODEL, *worst_grid(codes_of(64, 64, 8).numpy(), MODEL))


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (VQConfig(), "revive more often"),
        (MODEL.quantizer, "revive more often"),
        (LFQConfig(bits=6), "Raise its entropy_weight"),
        (FSQConfig(), "Lower the learning rate"),
        (SimVQConfig(), "Lower the learning rate"),
    ],
)
def test_a_remedy_is_one_that_the_quantiser_has(config: QuantizerConfig, remedy: str):
    quantizer, model = quantizer_of(config), VQVAEConfig(quantizer=config)
    size = quantizer.vocabulary // quantizer.grids
    codes = torch.arange(quantizer.grids).repeat_interleave(256)[None] * size
    said = warning_of(model, *worst_grid(codes.numpy(), model))
    assert remedy in said and ("revive" in said) == quantizer.starts_from_data
    assert ("entropy_weight" in said) == (config.kind == "lfq")


def test_a_codebook_that_the_data_cannot_start_is_refused_with_what_to_set():
    config = VQVAEConfig(network=FoldedConfig(factor=4), quantizer=VQConfig(codes=100), initial_vectors=500)
    check_start(config, 32, 16)  # 512 vectors
    with pytest.raises(
        PalimpsestError, match=r"31 training pictures of 16 pixels have 496 vectors, fewer than .* 496 or"
    ):
        check_start(config, 31, 16)
    with pytest.raises(PalimpsestError, match=r"have 96 vectors, too few to start 100 codes from: .* at most 96 codes"):
        check_start(config, 6, 16)
    check_start(VQVAEConfig(quantizer=LFQConfig(bits=14)), 1, 16)  # starts from nothing


def test_each_level_needs_vectors_for_its_own_codes():
    """50 pictures have 200 vectors of the upper level, 800 of the lower one."""

    def config(top: int, bottom: int, vectors: int) -> VQVAEConfig:
        upper = TopConfig(quantizer=VQConfig(codes=top))
        network = FoldedConfig(factor=4)
        return VQVAEConfig(network=network, quantizer=VQConfig(codes=bottom), top=upper, initial_vectors=vectors)

    check_start(config(200, 800, 800), 50, 16)
    with pytest.raises(PalimpsestError, match=r"200 vectors, too .* 201 codes from: give the top\.quantizer at "):
        check_start(config(201, 16, 800), 50, 16)
    with pytest.raises(PalimpsestError, match=r"have 800 vectors, too .* 801 codes from: give the quantizer at most"):
        check_start(config(16, 801, 801), 50, 16)
    with pytest.raises(PalimpsestError, match=r"have 800 vectors, fewer than .* = 801: set it to 800 or less"):
        check_start(config(16, 16, 801), 50, 16)


def test_a_time_to_revive_is_refused_where_nothing_is_revived():
    with pytest.raises(RecipeError, match=r"stage\.vqvae: revive_until is 0\.5, but .* of kind 'fsq'"):
        load_recipe(
            ROOT / "recipes" / "smoke.toml",
            ["stage.vqvae.model={quantizer={kind='fsq'}}", "stage.vqvae.revive_until=0.5"],
        )
