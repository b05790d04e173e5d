"""What a report says of the models that it judges: the weights that were used, and how often they were asked."""

import pytest
import torch

from latent.predict import Counted, Estimate
from latent.schedule import Flow
from pipelines.judged_models import drawn_with
from pipelines.samplers import calls_of, grid_of, run_sampler, steps_within
from pipelines.sampling_options import LATENT_SAMPLERS, SIGNAL_SAMPLERS, LatentOptions, Settings


@pytest.mark.parametrize("sampler", LATENT_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_those_that_a_sampler_makes(sampler, steps):
    options = LatentOptions(start=0.999 if sampler in SIGNAL_SAMPLERS else 1.0, langevin_steps=3)
    settings = Settings(sampler=sampler, steps=steps, guidance=1.0, latent=options)
    denoise = Counted(lambda x, t: Estimate(0.5 * x, 0.5 * x))
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    schedule = Flow()
    run_sampler(settings, denoise, schedule, x, grid_of(settings, schedule, 1.0), draws)
    told = calls_of(sampler, steps, 3)
    if sampler == "dormand_prince":
        assert told is None
    else:
        assert told == denoise.calls and steps_within(sampler, told, 3) == steps


def test_settings_are_said_in_words():
    latent = {"rule": "projected", "interval": [0.1, 0.9], "classifier": "match", "tolerance": 1e-3}
    heun = {"sampler": "heun", "steps": 4, "guidance": 3.0, "latent": latent}
    assert drawn_with(heun) == {
        "sampler": "heun", "steps": "4 (7 evaluations)", "guidance": "3, projected, by match, times 0.1 to 0.9",
    }  # fmt: skip
    assert drawn_with(heun | {"sampler": "dormand_prince"})["steps"] == "tolerance 0.001"
    assert drawn_with({"sampler": "autoregressive", "steps": 1, "guidance": 2.0})["steps"] == ""
    bounded = {"sampler": "entropy_bound", "steps": 1, "guidance": 2.5, "masked": {"bound": 0.1}}
    assert drawn_with(bounded)["steps"] == "bound 0.1"
