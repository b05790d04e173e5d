import math

import pytest
import torch
from scipy import special, stats

from latent.schedule import EDM, VP, Flow
from latent.times import LogitNormalTimes, LogNormalTimes, ModeTimes, UniformTimes, sample_times
from tests.latent.oracle import SCHEDULES, generator, name

LAWS = [UniformTimes(), LogitNormalTimes(mean=0.7, std=0.5), LogNormalTimes(), ModeTimes(), ModeTimes(scale=-1.0)]
every_law = pytest.mark.parametrize("law", LAWS, ids=name)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_uniform_times_are_uniform(low_discrepancy):
    t = sample_times(UniformTimes(), Flow(), (20_000,), generator(), low_discrepancy=low_discrepancy)
    assert t.dtype == torch.float64
    assert 0 < t.min() < t.max() < 1
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("low_discrepancy", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 1.5)])
def test_logit_normal_times_have_the_moments_of_scipy(mean, std, low_discrepancy):
    t = sample_times(
        LogitNormalTimes(mean=mean, std=std), Flow(), (50_000,), generator(1), low_discrepancy=low_discrepancy
    )
    assert stats.kstest(special.logit(t.numpy()), stats.norm(mean, std).cdf).pvalue > 1e-3
    for power in (1, 2):
        expected = stats.norm(mean, std).expect(lambda n, p=power: special.expit(n) ** p)
        assert t.pow(power).mean().item() == pytest.approx(expected, abs=0.005)


def test_low_discrepancy_times_are_evenly_spread_over_the_batch():
    t = sample_times(UniformTimes(), Flow(), (64,), generator(), low_discrepancy=True)
    assert (64 * t).long().sort().values.tolist() == list(range(64))


def test_low_discrepancy_leaves_the_distribution_of_a_single_time():
    source = generator()
    first = torch.cat(
        [sample_times(UniformTimes(), Flow(), (8,), source, low_discrepancy=True)[:1] for _ in range(2_000)]
    )
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3


def test_low_discrepancy_makes_the_batch_mean_steadier():
    def spread(low_discrepancy):
        draws = [
            sample_times(LogitNormalTimes(), Flow(), (32,), generator(s), low_discrepancy=low_discrepancy).mean()
            for s in range(99)
        ]
        return torch.stack(draws).std()

    assert spread(True) < spread(False) / 5


def test_times_of_an_item_with_its_own_generator_do_not_depend_on_the_batch():
    full = sample_times(LogitNormalTimes(), Flow(), (5,), [generator(s) for s in range(5)])
    torch.testing.assert_close(
        full[3:4], sample_times(LogitNormalTimes(), Flow(), (1,), [generator(3)]), rtol=0, atol=0
    )


def test_low_discrepancy_with_one_generator_per_item_is_refused():
    with pytest.raises(ValueError, match="single generator"):
        sample_times(UniformTimes(), Flow(), (2,), [generator(0), generator(1)], low_discrepancy=True)


@every_law
@every_schedule
def test_times_stay_inside_the_path_and_grow_with_their_quantile(law, schedule):
    u = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    assert (law.quantile(u, schedule).diff() >= 0).all()
    t = sample_times(law, schedule, (2_000,), generator(), low_discrepancy=True)
    assert 0 < t.min() < t.max() < 1


def test_log_normal_times_have_the_noise_levels_of_edm():
    """ln sigma ~ N(-1.2, 1.2^2) for data of standard deviation 0.5 (arXiv:2206.00364, table 1)."""
    t = sample_times(LogNormalTimes(mean=-1.2), EDM(), (50_000,), generator())
    assert stats.kstest(EDM().sigma(t).log().numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    assert LogNormalTimes().mean == pytest.approx(-1.2 + math.log(2), abs=0.01)


def test_log_normal_times_mean_the_same_noise_levels_on_every_path():
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    levels = [s.log_snr(LogNormalTimes().quantile(u, s)) for s in (Flow(), VP(), EDM())]
    torch.testing.assert_close(levels[1], levels[0])
    torch.testing.assert_close(levels[2], levels[0])


def test_mode_times_are_those_of_diffusers():
    training_utils = pytest.importorskip("diffusers.training_utils")
    torch.manual_seed(0)
    theirs = training_utils.compute_density_for_timestep_sampling("mode", 50_000, mode_scale=1.29)
    ours = sample_times(ModeTimes(), Flow(), (50_000,), generator())
    assert stats.ks_2samp(ours.numpy(), theirs.double().numpy()).pvalue > 1e-3


def test_a_shift_moves_the_times_of_training_as_it_moves_grids():
    plain, shifted = (sample_times(UniformTimes(), Flow(), (9,), generator(), factor=f) for f in (1.0, 3.0))
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))


@pytest.mark.parametrize("law", [LogitNormalTimes, LogNormalTimes])
@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_normal_without_width_is_refused(law, std):
    with pytest.raises(ValueError, match="std > 0"):
        law(std=std)


@pytest.mark.parametrize("scale", [-1.1, 1.8, math.nan])
def test_mode_times_that_would_fold_back_are_refused(scale):
    with pytest.raises(ValueError, match=r"scale <= 1\.75"):
        ModeTimes(scale=scale)
