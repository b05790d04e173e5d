"""Averages by power functions, and other lengths of them afterwards, against closed forms and direct tracking."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import integrate, stats
from torch import nn

from pipelines import averages
from pipelines.artefact import ArtefactError
from pipelines.errors import Interrupted, PalimpsestError
from pipelines.posthoc import PosthocEMA, Tracked, read_index, synthesise
from pipelines.power_average import LONGEST, Profile, beta, exponent, length_of, norms, products, synthesis
from tests.conftest import ROOT
from tests.pipelines.test_loop import TRAINING, Line, run

PAIR = (0.05, 0.10)
POSTHOC = dataclasses.replace(TRAINING, steps=120, posthoc=PosthocEMA(every=10))


def profile(gamma, t):
    return lambda tau: (gamma + 1) * tau**gamma / t ** (gamma + 1) if 0 < tau <= t else 0.0


@pytest.mark.parametrize("length", [0.02, 0.05, 0.10, 0.25, LONGEST])
def test_the_exponent_is_that_of_a_profile_whose_relative_spread_is_the_length(length):
    """p over tau / t is a beta distribution of gamma + 1 and 1."""
    gamma = exponent(length)
    assert stats.beta(gamma + 1, 1).std() == pytest.approx(length, rel=1e-9)
    assert length_of(gamma) == pytest.approx(length, rel=1e-9)


def test_the_exponents_of_the_paper():
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3) and exponent(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3])
def test_no_profile_has_another_length(length):
    with pytest.raises(ValueError, match="expected a share above 0"):
        exponent(length)


@pytest.mark.parametrize("gamma", [0.0, 2.5, 16.97])
def test_the_recursion_weighs_each_step_by_the_integral_of_the_profile_over_it(gamma):
    t, weights = 50, np.zeros(50)
    for step in range(1, t + 1):
        weights *= beta(gamma, step)
        weights[step - 1] = 1 - beta(gamma, step)
    parts = [integrate.quad(profile(gamma, t), step - 1, step)[0] for step in range(1, t + 1)]
    assert weights == pytest.approx(np.array(parts), abs=1e-12) and weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(("one", "other"), [((6.9, 40), (17, 100)), ((17, 100), (6.9, 40)), ((3, 10), (3, 10))])
def test_products_and_norms_are_integrals(one, other):
    both = [Profile(*one), Profile(*other)]
    end = min(one[1], other[1])
    inner = integrate.quad(lambda tau: profile(*one)(tau) * profile(*other)(tau), 0, end)[0]
    assert products(both[:1], both[1:])[0, 0] * norms(both).prod() == pytest.approx(inner, rel=1e-8)
    square = integrate.quad(lambda tau: profile(*one)(tau) ** 2, 0, one[1])[0]
    assert norms(both)[0] == pytest.approx(math.sqrt(square), rel=1e-8)


def kept_at(steps, lengths=PAIR):
    return [Profile(exponent(length), step) for step in steps for length in lengths]


def test_a_tracked_average_is_met_exactly():
    kept = kept_at(range(10, 101, 10))
    factors, error = synthesis(kept, kept[-1])
    assert error < 1e-6 and factors == pytest.approx(np.eye(len(kept))[-1], abs=1e-5)


@pytest.mark.parametrize("length", [0.04, 0.07, 0.15, 0.20])
def test_the_error_is_the_distance_of_the_profiles_and_falls_with_more_snapshots(length):
    errors = []
    for every in (200, 50, 10):
        kept, wanted = kept_at(range(every, 401, every)), Profile(exponent(length), 400)
        factors, error = synthesis(kept, wanted)
        grid = (np.arange(40_000) + 0.5) / 100
        aim = np.array([profile(*wanted)(tau) for tau in grid])
        made = sum(f * np.where(grid <= p.t, (p.gamma + 1) * grid**p.gamma / p.t ** (p.gamma + 1), 0)
                   for f, p in zip(factors, kept, strict=True))  # fmt: skip
        distance = np.linalg.norm(made - aim) / np.linalg.norm(aim)
        assert error == pytest.approx(distance, abs=2e-3)
        errors.append(error)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


def test_the_errors_of_the_guide_are_those_of_the_profiles():
    rows = re.findall(r"^\| (\d+) \|(.*%) \|$", (ROOT / "docs" / "training.md").read_text(), re.M)
    assert len(rows) == 3
    for count, cells in rows:
        kept = kept_at(np.arange(1, int(count) + 1) * 1000 / int(count))
        for length, cell in zip((0.03, 0.07, 0.12, 0.15, 0.20, 0.25), cells.split("|"), strict=True):
            error = synthesis(kept, Profile(exponent(length), 1000))[1]
            assert error == pytest.approx(float(cell.strip(" %")) / 100, rel=0.08), (count, length)


class Walk(nn.Module):
    """Weights on a known way, and one that does not learn."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.full((3,), 7.0), requires_grad=False)


def walked(folder, every, length):
    """Take a walk with snapshots; returns the synthesis of a length, direct tracking of it, and the error."""
    network, generator = Walk(), torch.Generator().manual_seed(0)
    tracked, gamma = Tracked(network, PosthocEMA(every=every, lengths=PAIR)), exponent(length)
    direct = torch.zeros(8, dtype=torch.float64)
    for step in range(1, 401):
        with torch.no_grad():
            network.weight += 0.1 * torch.randn(8, generator=generator, dtype=torch.float64) + 0.01
        tracked.update(network, step)
        direct = direct * beta(gamma, step) + network.weight.detach() * (1 - beta(gamma, step))
        if step % every == 0:
            tracked.snapshot(folder, step)
    from pipelines.artefact import save_weights

    save_weights(folder / "model.safetensors", network.state_dict())
    tracked.finish(folder, {})
    state, error = synthesise(folder, read_index(folder), length)
    return state, direct, error


@pytest.mark.parametrize("length", [0.05, 0.07, 0.12, 0.20])
def test_a_length_made_afterwards_is_the_one_tracked_directly(tmp_path, length):
    state, direct, error = walked(tmp_path / "many", 10, length)
    scale = direct.abs().mean()
    assert (state["weight"] - direct).abs().max() < 0.01 * scale and error < 0.01
    assert torch.equal(state["frozen"], torch.full((3,), 7.0)) and state["weight"].dtype == torch.float32
    if length != 0.05:  # fewer snapshots, a larger error
        few, _, far = walked(tmp_path / "few", 200, length)
        assert far > 5 * error and (few["weight"] - direct).abs().max() > (state["weight"] - direct).abs().max()


def files(folder, *names):
    return [(folder / name).read_bytes() for name in names]


def test_an_interrupted_run_has_the_snapshots_of_the_uninterrupted_one(tmp_path):
    run(Line(), tmp_path / "whole", POSTHOC)
    for stop_at in (7, 55, 58):
        with pytest.raises(Interrupted):
            run(Line(stop_at=stop_at), tmp_path / "parts", POSTHOC)
    run(Line(), tmp_path / "parts", POSTHOC)
    names = ["model.safetensors", *(f"snapshots/{step:06d}.safetensors" for step in range(10, 121, 10))]
    assert files(tmp_path / "whole", *names) == files(tmp_path / "parts", *names)
    plain = dataclasses.replace(POSTHOC, posthoc=None)
    run(Line(), tmp_path / "plain", plain)
    weights = ("model.safetensors", "ema.safetensors")
    assert files(tmp_path / "plain", *weights) == files(tmp_path / "whole", *weights)  # the training is the same


def test_averages_that_a_checkpoint_does_not_hold_are_refused(tmp_path):
    with pytest.raises(Interrupted):
        run(Line(stop_at=7), tmp_path, dataclasses.replace(POSTHOC, posthoc=None))
    with pytest.raises(PalimpsestError, match=r"it holds no state of averages of other lengths \(training.posthoc\)"):
        run(Line(), tmp_path, POSTHOC)


class Near(Line):
    """Validates by the distance to one average of a length that is known beforehand."""

    criterion = "distance"
    aim = None

    def validate(self, network):
        if self.aim is None:
            return {"distance": 1.0}
        return {"distance": float(sum((v - self.aim[k]).square().sum() for k, v in network.named_parameters()))}


def test_of_several_lengths_the_one_that_validates_best_is_kept_and_none_brings_back_what_training_left(tmp_path):
    facts = run(Near(), tmp_path, POSTHOC)
    before, index = files(tmp_path, "ema.safetensors"), read_index(tmp_path)
    aim, error = synthesise(tmp_path, index, 0.12)

    def ask(*lengths, by=None):
        (tmp_path / averages.ASKED).write_text(json.dumps({"lengths": lengths, "by": by}))
        task = Near()
        task.aim = aim
        return run_again(task)

    def run_again(task):
        from pipelines.loop import train

        return train(task, POSTHOC, tmp_path, seed=3, name="line")

    found = ask(0.05, 0.12, 0.2)
    assert found["ema_length"] == 0.12 and found["ema_error"] == pytest.approx(error, abs=1e-6)
    assert list(found["ema_compared"]) == ["0.05", "0.12", "0.2"]
    assert {key: found[key] for key in facts} == json.loads(json.dumps(facts))
    kept = load_file(tmp_path / "ema.safetensors")
    assert all(torch.equal(kept[name], aim[name]) for name in aim)
    with pytest.raises(PalimpsestError, match=r"no figure 'loss': give --by one of distance"):
        ask(0.05, 0.12, by="loss")
    assert ask() == json.loads(json.dumps(facts)) and files(tmp_path, "ema.safetensors") == before


def test_damaged_or_missing_snapshots_are_a_sentence(tmp_path):
    with pytest.raises(ArtefactError, match=r"has no snapshots .*training\.posthoc"):
        read_index(tmp_path)
    run(Line(), tmp_path, POSTHOC)
    path = tmp_path / "snapshots" / "000050.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtefactError, match=r"are damaged: 000050\.safetensors is not what was written"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": 5, "lengths": (0.1, 0.05)}, {"every": 5, "lengths": (0.1, 0.5)}]
)
def test_lengths_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match=r"posthoc\.(every|lengths) = "):
        PosthocEMA(**{"every": 5, **options})
