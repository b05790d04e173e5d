"""Bits per dimension of latents: where the bound ends, and that the report has both."""

import json
import math

import pytest
import torch

from latent.likelihood import variational_bound
from latent.schedule import VE, Cosine, Flow
from pipelines import latent_likelihood
from pipelines.hardware import step_generator
from pipelines.latent_likelihood import START, last_noise
from pipelines.latent_stage import CachedLatents
from pipelines.runs import reopen_run


@pytest.mark.parametrize(
    ("schedule", "t"),
    [(Flow(), 0.05 / 1.05), (Cosine(), math.atan(0.05) * 2 / math.pi), (VE(), math.log(25) / math.log(40000))],
)
def test_the_bound_ends_where_the_path_has_the_noise_of_the_latents(schedule, t):
    assert last_noise(schedule, 0.05) == pytest.approx(t, rel=1e-9)


def test_latents_without_noise_of_their_own_end_at_the_start_and_those_of_noise_half_way():
    assert last_noise(Flow(), 0.0) == START
    assert last_noise(Flow(), 5.0) == 0.5


@pytest.mark.slow
def test_the_spread_is_what_two_draws_of_a_latent_differ_by(smoke):
    run = reopen_run(smoke)
    data = CachedLatents(run, "latent", run.recipe.stage["latent"].training)
    moments = next(data.validating(torch.device("cpu")))["latent"]
    first, second = (data.draw(moments, step_generator(seed, 0, 0)) for seed in range(2))
    assert (first - second).std().item() / math.sqrt(2) == pytest.approx(data.spread(moments), rel=0.02)


@pytest.mark.slow
def test_the_bound_is_taken_down_to_that_noise(smoke, monkeypatch):
    """The posterior of these latents has a standard deviation of `spread`, so Flow ends at spread / (1 + spread)."""
    asked = []

    def noted(*args, start, **settings):
        asked.append(start)
        return variational_bound(*args, start=start, **settings)

    monkeypatch.setattr(latent_likelihood, "variational_bound", noted)
    run = reopen_run(smoke)
    latent_likelihood.latent_bits(run, "latent", 2)
    data = CachedLatents(run, "latent", run.recipe.stage["latent"].training)
    spread = data.spread(next(data.validating(torch.device("cpu")))["latent"][:2])
    assert asked == [pytest.approx(spread / (1 + spread), rel=1e-6)]


@pytest.mark.slow
def test_the_report_has_the_density_and_its_bound(smoke):
    figures = json.loads((smoke / "eval" / "report.json").read_text())["figures"]
    ode, bound = (figures[f"latent.bits_per_dim[{how}]"] for how in ("ode", "bound"))
    assert ode["n"] == bound["n"] >= 2
    assert ode["low"] < ode["value"] < ode["high"]
    assert bound["value"] > ode["low"]
