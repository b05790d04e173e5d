import dataclasses
import json

import pytest
import torch

from latent.dit import DiT, DiTConfig
from latent.mmdit import MMDiT, MMDiTConfig
from latent.sizes import TRANSFORMER_SIZES, UNET_SIZES
from latent.unet import UNet, UNetConfig
from pipelines.config import read_config

TABLES = {DiTConfig: TRANSFORMER_SIZES, MMDiTConfig: TRANSFORMER_SIZES, UNetConfig: UNET_SIZES}
every_config = pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
every_size = pytest.mark.parametrize("size", ["S", "B", "L", "XL"])


def count(network):
    return sum(p.numel() for p in network.parameters())


@every_config
@every_size
def test_a_size_fills_the_fields_it_names_and_no_others(make, size):
    made, plain = make(size=size), make()
    assert {name: getattr(made, name) for name in TABLES[make][size]} == TABLES[make][size]
    rest = {f.name for f in dataclasses.fields(make)} - {*TABLES[make][size], "size"}
    assert all(getattr(made, name) == getattr(plain, name) for name in rest)


@every_config
def test_an_explicit_value_beside_a_size_must_agree_with_it(make):
    for name, value in TABLES[make]["B"].items():
        assert make(size="B", **{name: value}) == make(size="B")
        own = getattr(make(), name)
        for other in {own, value + 8} - {value}:  # a written default is no less explicit
            with pytest.raises(
                ValueError, match=f"{name} is {other}, expected {value} with size 'B'; leave out {name}"
            ):
                make(size="B", **{name: other})


@every_config
def test_a_size_nobody_knows_is_refused(make):
    with pytest.raises(ValueError, match="size is 'XXL', expected one of S, B, L, XL"):
        make(size="XXL")


@every_config
@pytest.mark.parametrize("size", [None, "L"])
def test_a_configuration_survives_manifests_and_changes(make, size):
    made = make(size=size)
    assert all(type(getattr(made, name)) is int for name in TABLES[make]["S"])
    plain = json.loads(json.dumps(dataclasses.asdict(made)))
    assert read_config(make, plain, "here") == made
    assert read_config(make, {"size": size}, "here") == made
    assert dataclasses.replace(dataclasses.replace(made, channels=7), channels=made.channels) == made


@every_size
def test_one_letter_means_about_as_many_parameters_for_a_dit_and_a_unet_of_four_levels(size):
    with torch.device("meta"):
        dit = DiT(DiTConfig(size=size))
        unet = UNet(UNetConfig(size=size, multipliers=(1, 2, 3, 4), attention_levels=(1, 2, 3)))
    assert count(unet) == pytest.approx(count(dit), rel=0.15)


@every_config
def test_larger_letters_mean_more_parameters(make):
    build = {DiTConfig: DiT, MMDiTConfig: MMDiT, UNetConfig: UNet}[make]
    with torch.device("meta"):
        counts = [count(build(make(size=size))) for size in ("S", "B", "L", "XL")]
    assert counts == sorted(set(counts))
