"""Stochastic samplers: laws over all schedules, closed forms, and diffusers step by step."""

import math
from functools import partial
from itertools import count, pairwise

import pytest
import torch

from latent.grid import at_log_snr, discrete, karras, uniform
from latent.predict import Estimate
from latent.sample import annealed_langevin, edm_stochastic, euler_maruyama, heun, predictor_corrector
from latent.schedule import EDM, VE, VP, Cosine, Flow, SubVP
from tests.latent.oracle import (
    MEAN,
    PURE,
    SCHEDULES,
    STD,
    double,
    exact,
    generator,
    marginal,
    name,
    quantiles,
    randn,
    raw_network,
)

FEW = {"steps_per_level": 3}
SAMPLERS = {
    "euler_maruyama": euler_maruyama,
    "predictor_corrector": predictor_corrector,
    "edm_stochastic": edm_stochastic,
    "annealed_langevin": partial(annealed_langevin, **FEW),
}
SDE = {key: SAMPLERS[key] for key in ("euler_maruyama", "edm_stochastic")}
SCORED = [euler_maruyama, predictor_corrector, annealed_langevin]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
every_sde = pytest.mark.parametrize("sampler", SDE.values(), ids=SDE)


def start_of(schedule):
    return 0.999 if schedule in PURE else 1.0


def full_grid(schedule, steps):
    """From (nearly) pure noise to data; steps even in t are poor where sigma explodes."""
    return karras(schedule, steps) if schedule.kind in ("ve", "edm") else uniform(steps, start_of(schedule))


@pytest.fixture
def moments(monkeypatch):
    """Exact mean and standard deviation of a sampler that is affine in x and in its draws, without chance.

    Column k alone gets the noise of draw k, so that its distance from column 0, which gets none, is the weight of that
    draw; row 1 starts one standard deviation above row 0.
    """

    def measure(sampler, schedule, times, draws, denoise=None, start=None):
        mean, std = start or marginal(schedule, times[0])
        x = torch.stack([mean, mean + std])[:, None].repeat(1, draws + 1)
        columns = count(1)

        def unit(shape, *, generator, dtype, device):
            z = torch.zeros(shape, dtype=dtype)
            z[:, next(columns)] = 1
            return z

        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", unit)
            out = sampler(denoise or exact(schedule), schedule, x, times, generator=generator())
        return out[0, 0].item(), ((out[1, 0] - out[0, 0]) ** 2 + (out[0] - out[0, 0]).square().sum()).sqrt().item()

    return measure


def error(moments, sampler, schedule, times, draws):
    """The larger error of mean and standard deviation at the end of the grid."""
    found, expected = moments(sampler, schedule, times, draws), marginal(schedule, times[-1])
    return max(abs(a - b.item()) for a, b in zip(found, expected, strict=True))


# Gaussian marginals


@every_sde
@every_schedule
def test_samples_tend_to_gaussian_data_as_steps_grow(moments, sampler, schedule):
    coarse, fine = (error(moments, sampler, schedule, full_grid(schedule, n), n) for n in (64, 512))
    assert fine < 0.006
    assert fine < max(coarse / 4, 5e-4)


CURVED = [Flow(), VP(), SubVP(), Cosine(), Cosine(offset=0.008), EDM(sigma_max=5.0)]


@pytest.mark.parametrize("schedule", CURVED, ids=name)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(euler_maruyama, 1), (partial(edm_stochastic, churn=5.0), 2)],
    ids=["euler_maruyama", "edm_stochastic"],
)
def test_moments_converge_at_the_stated_order(moments, sampler, order, schedule):
    """The churn is small, so that every level can be raised on the way down from t = 0.95."""
    coarse, fine = (error(moments, sampler, schedule, uniform(n, 0.95, 0.5), n) for n in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@every_schedule
def test_annealed_langevin_tends_to_gaussian_data_with_the_inverse_of_levels(moments, schedule):
    """A bound, since the lag behind the levels and the noise of the last one pull in opposite directions."""
    sampler = partial(annealed_langevin, steps_per_level=25, step=0.8)
    for levels in (16, 32, 64):
        assert error(moments, sampler, schedule, full_grid(schedule, levels), 25 * (levels + 1)) < 0.9 / levels


def test_the_error_of_annealed_langevin_is_as_stated_and_goes_with_the_inverse_of_levels_steps_and_step(moments):
    def off(levels, steps_per_level, step):
        sampler = partial(annealed_langevin, steps_per_level=steps_per_level, step=step)
        found = moments(sampler, VE(), karras(VE(), levels), (levels + 1) * steps_per_level)[1]
        return found / math.hypot(STD, 0.002) - 1

    default = off(30, 100, 0.2)
    assert default == pytest.approx(0.03, abs=0.003)
    for doubled in ((60, 100, 0.2), (30, 200, 0.2), (30, 100, 0.4)):
        assert off(*doubled) == pytest.approx(default / 2, rel=0.15)


@every_schedule
def test_predictor_corrector_samples_tend_to_gaussian_data(schedule):
    times = full_grid(schedule, 192)
    mean, std = marginal(schedule, times[0])
    x = mean + std * randn(100, 256)
    samples = predictor_corrector(exact(schedule), schedule, x, times, generator=generator(1), snr=0.1)
    mean, std = marginal(schedule, times[-1])
    assert samples.mean().item() == pytest.approx(mean.item(), abs=0.015)
    assert samples.std().item() == pytest.approx(std.item(), abs=0.015)


@pytest.mark.parametrize(("snr", "coordinates"), [(0.16, 1000), (0.3, 1000), (0.16, 50), (0.1, 50)])
def test_many_corrections_settle_at_the_stated_spread(snr, coordinates):
    """v = v (1 - a / m)^2 + 2 a with a = 2 snr^2 m^2 / v has the solution v = m (1 + snr^2), m being the marginal's.

    The fluctuations of |z|^2 and |score|^-2 within an item of d coordinates add 2 / d each.
    """
    schedule, times = VE(), double(0.52, 0.5)
    mean, std = (value.item() for value in marginal(schedule, times[-1]))
    x = mean + std * randn(40_000 // coordinates, coordinates)
    sampler = partial(predictor_corrector, snr=snr, corrections=400)
    samples = sampler(exact(schedule), schedule, x, times, generator=generator())
    expected = std * math.sqrt(1 + snr**2 + 4 / coordinates)
    assert samples.std().item() == pytest.approx(expected, rel=0.008)


@pytest.mark.parametrize("schedule", [VE(), VP(), Flow()], ids=name)
@pytest.mark.parametrize("step", [0.2, 1.0])
def test_annealed_langevin_of_point_data_has_the_variance_of_an_autoregression(moments, schedule, step):
    """x <- (1 - step / 2) x + sqrt(step) sigma z settles at sigma^2 / (1 - step / 4)."""

    def denoise(x_t, t):
        x = torch.full_like(x_t, MEAN)
        return Estimate(x, (x_t - schedule.alpha(t) * x) / schedule.sigma(t))

    times, rounds = double(0.6, 0.5, 0.3), 7
    variance, before = 4.0, times[0]
    for t in times:
        variance *= (schedule.alpha(t) / schedule.alpha(before)).item() ** 2
        settled = schedule.sigma(t).item() ** 2 / (1 - step / 4)
        variance, before = settled + (variance - settled) * (1 - step / 2) ** (2 * rounds), t
    sampler = partial(annealed_langevin, steps_per_level=rounds, step=step)
    start = schedule.alpha(times[0]) * MEAN, double(2.0)[0]
    mean, std = moments(sampler, schedule, times, 3 * rounds, denoise, start)
    assert mean == pytest.approx(schedule.alpha(times[-1]).item() * MEAN, abs=1e-12)
    assert std == pytest.approx(math.sqrt(variance), rel=1e-12)


# Against diffusers


def test_euler_maruyama_takes_the_steps_of_diffusers_on_the_variance_preserving_path():
    deprecated = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_sde_vp")
    schedule, steps = VP(), 20
    scheduler = deprecated.ScoreSdeVpScheduler()
    scheduler.set_timesteps(steps)

    def denoise(x_t, t):
        eps = raw_network(x_t, t, ())
        return Estimate((x_t - schedule.sigma(t) * eps) / schedule.alpha(t), eps)

    times = uniform(steps)[:-1]  # theirs has no step to t = 0
    found = euler_maruyama(denoise, schedule, randn(4, 3), times, generator=generator(5))
    x, source = randn(4, 3), generator(5)
    for t in times[:-1]:
        x, _ = scheduler.step_pred(raw_network(x, t, ()), x, t, source)
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def raw_denoise(schedule):
    def denoise(x_t, t):
        eps = raw_network(x_t, schedule.sigma(t).to(x_t.dtype), ())
        return Estimate((x_t - schedule.sigma(t) * eps) / schedule.alpha(t), eps)

    return denoise


@pytest.mark.parametrize("schedule", [VE(), VP()], ids=name)
def test_the_corrector_takes_the_steps_of_diffusers(schedule):
    """Theirs is that of VE; on VP the step is 1 - beta times as long, beta being that of the step just made."""
    diffusers = pytest.importorskip("diffusers")
    times, denoise = double(0.6, 0.5), raw_denoise(schedule)
    kept = (schedule.alpha(times[0]) / schedule.alpha(times[1])).item() ** 2  # 1 - beta
    scheduler = diffusers.ScoreSdeVeScheduler(snr=0.16 * kept**0.5)
    scheduler.set_timesteps(10)
    x = randn(1, 3, 4).float()  # they average norms over the batch, so it has one item
    found = predictor_corrector(denoise, schedule, x, times, generator=generator(2), corrections=3)
    source = generator(2)
    x = euler_maruyama(denoise, schedule, x, times, generator=source)
    for _ in range(3):
        score = -denoise(x, times[1]).eps / schedule.sigma(times[1])
        x = scheduler.step_correct(score, x, generator=source).prev_sample
    torch.testing.assert_close(found, x.to(found.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("churn", [2.0, 40.0])
@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.05, 50.0)])
def test_edm_stochastic_takes_the_steps_of_diffusers_karras_ve(churn, interval):
    deprecated = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_karras_ve")
    schedule, steps = EDM(sigma_max=160.0), 12  # every level can be raised
    low, high = interval
    scheduler = deprecated.KarrasVeScheduler(s_noise=1.007, s_churn=churn, s_min=low, s_max=high)
    scheduler.set_timesteps(steps)
    times = karras(schedule, steps, sigma_max=100.0)
    settings = {"churn": churn, "noise": 1.007, "interval": interval}
    x = 100 * randn(4, 3).float()
    found = edm_stochastic(raw_denoise(schedule), schedule, x, times, generator=generator(3), **settings)
    source, sigmas = generator(3), schedule.sigma(times).float()
    for sigma, after in pairwise(sigmas):
        _, sigma_hat = scheduler.add_noise_to_input(x, sigma, generator())  # theirs draws even where it adds nothing
        x_hat = scheduler.add_noise_to_input(x, sigma, source)[0] if sigma_hat > sigma else x
        step = scheduler.step(-raw_network(x_hat, sigma_hat, ()), sigma_hat, after, x_hat)
        x = step.prev_sample
        if after > 0:
            output = -raw_network(x, after, ())
            x = scheduler.step_correct(output, sigma_hat, after, x_hat, x, step.derivative).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


# Relations between samplers and between paths


@every_schedule
def test_edm_stochastic_without_churn_is_heun(schedule):
    for times in (uniform(6), full_grid(schedule, 6)):
        x = quantiles(schedule, times[0], 20)
        still = edm_stochastic(exact(schedule), schedule, x, times, generator=generator(), churn=0.0)
        torch.testing.assert_close(still, heun(exact(schedule), schedule, x, times), rtol=0, atol=0)


@every_schedule
def test_a_predictor_without_corrections_is_euler_maruyama(schedule):
    times = full_grid(schedule, 6)
    alone = predictor_corrector(exact(schedule), schedule, randn(4, 3), times, generator=generator(), corrections=0)
    expected = euler_maruyama(exact(schedule), schedule, randn(4, 3), times, generator=generator())
    torch.testing.assert_close(alone, expected, rtol=0, atol=0)


@every_schedule
def test_churn_raises_the_same_ratio_by_the_same_noise_on_every_path(schedule):
    """One step to data returns the estimate at the raised level, a function of x / alpha and sigma / alpha alone."""
    if schedule.sigma(double(0.0)) > 0:
        pytest.skip("the path never becomes free of noise")

    def sample(path):
        t = at_log_snr(path, double(-2 * math.log(3.0)))
        x, times = path.alpha(t) * (MEAN + 3 * randn(5, 2)), torch.cat([t, double(0.0)])
        return edm_stochastic(exact(path), path, x, times, generator=generator(4), noise=1.1, churn=0.3)

    torch.testing.assert_close(sample(schedule), sample(EDM()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VE(), EDM()], ids=name)
def test_nothing_is_churned_at_pure_noise_or_beyond_the_path(schedule):
    seen = []

    def denoise(x_t, t):
        seen.append(t.item())
        return exact(schedule)(x_t, t)

    times = karras(schedule, 8) if schedule.kind in ("ve", "edm") else uniform(8)
    edm_stochastic(denoise, schedule, randn(2, 3), times, generator=generator())
    assert seen[0] == times[0]
    assert any(times[k] < seen[2 * k] <= 1 for k in range(1, 8))


# What every sampler keeps


@every_sampler
@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grids_give_no_nan_and_the_denoiser_sees_noise_and_a_scalar_time(sampler, schedule, dtype):
    def denoise(x_t, t):
        assert (t.shape, t.dtype, t.device.type) == ((), torch.float64, "cpu")
        assert schedule.sigma(t) > 0
        assert x_t.isfinite().all()
        return exact(schedule)(x_t, t)

    start = start_of(schedule)
    for times in (uniform(7, start), uniform(7, start).float(), uniform(1, start), full_grid(schedule, 7), discrete(7)):
        x = schedule.sigma(times[0]).to(dtype) * randn(5, 20).to(dtype)
        samples = sampler(denoise, schedule, x, times, generator=generator())
        assert samples.isfinite().all()
        assert samples.dtype == dtype


@pytest.mark.parametrize("schedule", PURE, ids=name)
def test_edm_stochastic_starts_in_pure_noise(schedule):
    times = uniform(256)
    samples = edm_stochastic(exact(schedule), schedule, randn(20_000), times, generator=generator(2))
    mean, std = marginal(schedule, times[-1])
    assert samples.mean().item() == pytest.approx(mean.item(), abs=0.02)
    assert samples.std().item() == pytest.approx(std.item(), abs=0.02)


@every_schedule
@pytest.mark.parametrize(
    ("sampler", "to_zero", "to_noise"),
    [
        (euler_maruyama, 6, 6),
        (predictor_corrector, 11, 12),
        (partial(predictor_corrector, corrections=3), 21, 24),
        (edm_stochastic, 11, 12),
        (partial(annealed_langevin, **FEW), 19, 21),
    ],
    ids=["euler_maruyama", "one_correction", "three_corrections", "edm_stochastic", "annealed_langevin"],
)
def test_the_number_of_calls_is_as_stated(schedule, sampler, to_zero, to_noise):
    seen = []

    def denoise(x_t, t):
        seen.append(t.item())
        return exact(schedule)(x_t, t)

    times = full_grid(schedule, 6)
    sampler(denoise, schedule, randn(3, 4), times, generator=generator())
    assert len(seen) == (to_noise if schedule.sigma(times[-1]) > 0 else to_zero)


@every_sampler
@pytest.mark.parametrize("schedule", [Flow(), VP(), EDM()], ids=name)
def test_the_last_step_to_zero_returns_the_estimate(sampler, schedule):
    def denoise(x_t, t):
        return Estimate(torch.full_like(x_t, 0.7), x_t / schedule.sigma(t))

    found = sampler(denoise, schedule, randn(3, 2), uniform(4, start_of(schedule)), generator=generator())
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-15)


@every_sampler
@every_schedule
def test_an_item_with_its_own_generator_does_not_depend_on_its_batch(sampler, schedule):
    times, x = full_grid(schedule, 6), randn(4, 3, 5)
    full = sampler(exact(schedule), schedule, x, times, generator=[generator(s) for s in range(4)])
    alone = sampler(exact(schedule), schedule, x[2:3], times, generator=[generator(2)])
    torch.testing.assert_close(full[2:3], alone, rtol=0, atol=0)


@every_sampler
def test_sampling_repeats_with_the_seed_and_leaves_the_global_random_state(sampler):
    before = torch.get_rng_state()
    first, again, other = (
        sampler(exact(VP()), VP(), randn(3, 8), uniform(5), generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_an_untrained_network_that_predicts_no_noise_is_not_corrected():
    def denoise(x_t, t):
        return Estimate(x_t, torch.zeros_like(x_t))

    samples = predictor_corrector(denoise, VE(), randn(2, 5), uniform(3), generator=generator())
    assert samples.isfinite().all()


# Refusals


@pytest.mark.parametrize("schedule", PURE, ids=name)
@pytest.mark.parametrize("sampler", SCORED, ids=lambda f: f.__name__)
def test_a_start_without_signal_is_refused_with_a_remedy(sampler, schedule):
    with pytest.raises(ValueError, match=rf"{sampler.__name__} from t = 1.*alpha = 0.*start=0\.999"):
        sampler(exact(schedule), schedule, randn(2, 3), uniform(3), generator=generator())


@pytest.mark.parametrize(
    ("sampler", "settings", "sentence"),
    [
        (edm_stochastic, {"churn": -1.0}, r"churn is -1\.0, expected churn >= 0"),
        (edm_stochastic, {"churn": math.nan}, "churn is nan, expected churn >= 0"),
        (edm_stochastic, {"noise": 0.0}, r"noise is 0\.0, expected noise > 0"),
        (edm_stochastic, {"interval": (2.0, 1.0)}, r"interval \(2\.0, 1\.0\), expected 0 <= low < high.*use"),
        (edm_stochastic, {"interval": (-1.0, 1.0)}, "expected 0 <= low < high"),
        (predictor_corrector, {"snr": 0.0}, r"snr = 0\.0, expected snr > 0.*0\.16"),
        (predictor_corrector, {"snr": math.nan}, "snr = nan, expected"),
        (predictor_corrector, {"corrections": -1}, "-1 corrections per step, expected 0.*use 1"),
        (annealed_langevin, {"steps_per_level": 0}, "0 Langevin steps per level, expected at least 1"),
        (annealed_langevin, {"step": 4.0}, r"step of 4\.0 sigma\^2, expected 0 < step < 4.*use 0\.2"),
        (annealed_langevin, {"step": 0.0}, "expected 0 < step < 4"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_value_and_a_remedy(sampler, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sampler(exact(VP()), VP(), randn(2, 3), uniform(3), generator=generator(), **settings)


@every_sampler
@pytest.mark.parametrize(
    "times", [double(0.0, 1.0), double(0.5), double(1.2, 0.0)], ids=lambda times: str(times.tolist())
)
def test_an_impossible_grid_is_refused_with_a_remedy(sampler, times):
    with pytest.raises(ValueError, match=r"time grid.*expected.*latent\.grid"):
        sampler(exact(VP()), VP(), randn(2, 3), times, generator=generator())
