"""What the guides show is run: their additions obey the laws."""

import re

import pytest
import torch

from latent.grid import uniform
from latent.guide import classifier_free
from latent.predict import as_model, corrupt
from latent.sample import ddim
from tests.conftest import ROOT
from tests.latent.oracle import SCHEDULES, double, exact, name, randn

PREAMBLE = """
from dataclasses import dataclass
from typing import Literal
import torch
from torch import Tensor
from latent.guide import Rule, extrapolate
from latent.predict import Denoise, Estimate
from latent.sample.step import steps
from latent.schedule import Schedule, expand
"""


def shown(heading):
    """Run the first indented block under a heading of docs/diffusion.md up to a line that uses what it defines."""
    text = (ROOT / "docs" / "diffusion.md").read_text()
    part = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"(?:^    .*\n|^\n)+", part, re.M)[0]
    code = "\n".join(line[4:] for line in block.splitlines()).split("\ndenoise =")[0]
    scope = {"__name__": "guide"}
    exec(PREAMBLE + code, scope)
    return scope


def test_the_added_schedule_obeys_the_laws():
    schedule = shown("Add a schedule")["Quadratic"]()
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    for rate, function in zip(schedule.rates(t), (schedule.alpha, schedule.sigma), strict=True):
        torch.testing.assert_close(rate, torch.func.jvp(function, (t,), (torch.ones_like(t),))[1])
    assert (schedule.half_log_snr(t).diff() < 0).all()
    assert (schedule.alpha(t[-1]), schedule.sigma(t[0])) == (0, 0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_added_sampler_is_ddim(schedule):
    sampler, times, x = shown("Add a sampler")["exponential_euler"], uniform(6, 0.99), randn(4, 3)
    torch.testing.assert_close(
        sampler(exact(schedule), schedule, x, times), ddim(exact(schedule), schedule, x, times), rtol=1e-9, atol=1e-9
    )


def test_the_added_guidance_caps_its_change_and_stays_on_the_path():
    capped, schedule, t, x_t = shown("Add a guidance")["capped"], SCHEDULES[0], double(0.5)[0], randn(3, 4)
    model = as_model(lambda x_t, t, cond: x_t * cond[0][:, None], schedule, "x")
    cond, null = (double(1, 5, 9),), (double(0, 0, 0),)
    plain = classifier_free(model, cond, null, 1.0)(x_t, t)
    found = classifier_free(model, cond, null, capped(3.0, 2.0))(x_t, t)
    assert ((found.x - plain.x).norm(dim=1) <= 2 * 2.0 + 1e-9).all()
    torch.testing.assert_close(corrupt(schedule, found.x, found.eps, t), x_t)


def test_the_recipe_of_the_guide_is_valid():
    from pipelines.config import parse_recipe

    text = (ROOT / "docs" / "diffusion.md").read_text().split("## In a recipe\n", 1)[1]
    block = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    import tomllib

    smoke = tomllib.loads((ROOT / "recipes" / "smoke.toml").read_text())
    added = tomllib.loads(block)["stage"]
    stages = {key: smoke["stage"][key] for key in ("bpe", "vae", "vqvae", "clip", "encode")}
    recipe = parse_recipe({**smoke, "name": "guide", "stage": {**stages, **added}}, "docs/diffusion.md")
    assert recipe.stage["pictures"].latent.rule == "projected"
