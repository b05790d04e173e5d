import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from backbone.noise import noise_like
from latent.likelihood import bits_per_dim, decode, encode, log_density, variational_bound
from latent.predict import Estimate, estimate
from latent.schedule import EDM, VE, VP, Cosine, Flow
from tests.latent.oracle import (
    MEAN,
    SCHEDULES,
    STD,
    beside,
    exact,
    flow_map,
    generator,
    marginal,
    name,
    quantiles,
    randn,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
some_schedules = pytest.mark.parametrize("schedule", [Flow(), VP(), VE()], ids=name)
START, FINE = 1e-5, 1e-8


def time(t):
    return torch.tensor(t, dtype=torch.float64)


class Mixture:
    """Gaussians in D dimensions: the posterior mean by responsibilities, the density by torch.distributions."""

    def __init__(self, weights, means, covariances):
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()
        self.means = torch.tensor(means, dtype=torch.float64)  # (K, D)
        self.covariances = torch.tensor(covariances, dtype=torch.float64)  # (K, D, D)

    def components(self, schedule, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noise = sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)
        return MultivariateNormal(alpha * self.means, alpha**2 * self.covariances + noise)

    def log_prob(self, schedule, t, x):
        return MixtureSameFamily(Categorical(logits=self.log_weights), self.components(schedule, t)).log_prob(x)

    def denoiser(self, schedule):
        def denoise(x_t, t):
            parts, alpha = self.components(schedule, t), schedule.alpha(t)
            share = torch.softmax(self.log_weights + parts.log_prob(x_t[:, None]), -1)[..., None]  # (B, K, 1)
            offset = x_t[:, None] - parts.mean  # (B, K, D)
            pulled = torch.linalg.solve(parts.covariance_matrix, offset[..., None])
            x = self.means + alpha * (self.covariances @ pulled)[..., 0]
            return Estimate((share * x).sum(1), schedule.sigma(t) * (share * pulled[..., 0]).sum(1))

        return denoise


FLAT = Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.2]], [[[0.3, 0.2], [0.2, 0.5]], [[0.2, -0.1], [-0.1, 0.1]]])
LINE = Mixture([0.4, 0.6], [[-1.0], [0.8]], [[[0.04]], [[0.25]]])


def wrong(schedule):
    """Smooth, and the posterior of nothing."""
    return lambda x_t, t: estimate("x", schedule, x_t, torch.tanh(1.3 * x_t + t) * 0.8, t)


@every_schedule
def test_log_density_is_the_data_law_up_to_the_stated_error_of_the_prior(schedule):
    """On average over the data the gap is KL(p_1 || prior); pointwise it is the two laws' log ratio at x_1."""
    x = quantiles(schedule, time(START), 200)[:, None]
    (mean, std), (mean_1, std_1) = marginal(schedule, time(START)), marginal(schedule, time(1.0))
    x_1, sigma = flow_map(schedule, x, time(START), time(1.0)), schedule.sigma(time(1.0))
    gap = Normal(mean_1, std_1).log_prob(x_1) - Normal(0, sigma).log_prob(x_1)
    found = log_density(exact(schedule), schedule, x, tolerance=FINE)
    torch.testing.assert_close(found.log_p, (Normal(mean, std).log_prob(x) - gap)[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.noise, x_1 / sigma, rtol=0, atol=1e-6)
    worst = schedule.alpha(time(1.0)) ** 2 * (MEAN**2 + STD**2) / (2 * sigma**2)
    assert -1e-6 < (Normal(mean, std).log_prob(x)[:, 0] - found.log_p).mean() < worst + 1e-6


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1, 2)], ids=str)
def test_independent_dimensions_add_their_log_densities(shape):
    mean, std = marginal(Flow(), time(START))
    x = mean + std * randn(4, *shape)
    found = log_density(exact(Flow()), Flow(), x, tolerance=FINE).log_p
    torch.testing.assert_close(found, Normal(mean, std).log_prob(x).flatten(1).sum(1), rtol=0, atol=1e-6)


@every_schedule
def test_log_density_of_a_mixture_is_that_of_torch_distributions(schedule):
    x = torch.cat([FLAT.means, randn(4, 2)])
    found = log_density(FLAT.denoiser(schedule), schedule, x, tolerance=1e-7)
    x_1 = schedule.sigma(time(1.0)) * found.noise
    prior = Normal(0, schedule.sigma(time(1.0))).log_prob(x_1).sum(1)
    expected = FLAT.log_prob(schedule, time(START), x)
    torch.testing.assert_close(
        found.log_p - prior + FLAT.log_prob(schedule, time(1.0), x_1), expected, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(found.log_p, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("schedule", "denoise", "start", "span"),
    [
        (Flow(), LINE.denoiser(Flow()), START, 6.0),
        (VE(), LINE.denoiser(VE()), START, 6.0),
        (VP(), wrong(VP()), 0.1, 8.0),
        (EDM(sigma_max=10.0), wrong(EDM(sigma_max=10.0)), 0.1, 30.0),
    ],
    ids=["flow", "ve", "vp-wrong", "edm-wrong"],
)
def test_the_density_integrates_to_one_whatever_the_denoiser(schedule, denoise, start, span):
    x = torch.linspace(-span, span, 2001, dtype=torch.float64)
    density = log_density(denoise, schedule, x[:, None], start=start, tolerance=1e-6).log_p.exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("probes", [1, 3])
def test_random_probes_estimate_the_trace_without_bias(probes):
    denoise, x = FLAT.denoiser(Flow()), FLAT.means[:1] + 0.3
    truth = log_density(denoise, Flow(), x).log_p
    many = log_density(denoise, Flow(), x.expand(500, 2), generator=generator(), probes=probes).log_p
    error = many.std() / math.sqrt(len(many))
    assert 0.001 < error < 0.1  # they do vary
    assert (many.mean() - truth).abs() < 4 * error + 1e-4


def test_more_probes_vary_less():
    def spread(probes):
        x = FLAT.means[:1].expand(300, 2)
        return log_density(FLAT.denoiser(Flow()), Flow(), x, generator=generator(), probes=probes).log_p.var().item()

    assert spread(8) == pytest.approx(spread(1) / 8, rel=0.35)


@pytest.mark.parametrize("probes", [1, 2])
def test_one_probe_is_exact_where_dimensions_do_not_mix(probes):
    x = randn(3, 4)
    truth = log_density(exact(VP()), VP(), x, tolerance=FINE)
    found = log_density(exact(VP()), VP(), x, tolerance=FINE, generator=generator(), probes=probes)
    torch.testing.assert_close(found.log_p, truth.log_p, rtol=0, atol=1e-6)


def test_an_item_with_its_own_generator_does_not_depend_on_its_batch():
    denoise, x = FLAT.denoiser(Flow()), randn(3, 2)
    full = log_density(denoise, Flow(), x, tolerance=FINE, generator=[generator(s) for s in range(3)]).log_p
    alone = log_density(denoise, Flow(), x[1:2], tolerance=FINE, generator=[generator(1)]).log_p
    torch.testing.assert_close(full[1:2], alone, rtol=0, atol=1e-6)


def test_one_hard_item_among_many_easy_ones_keeps_its_steps():
    easy, hard = torch.full((300, 1), 0.8, dtype=torch.float64), torch.tensor([[-0.3]], dtype=torch.float64)
    alone, crowd, among = (
        log_density(LINE.denoiser(Flow()), Flow(), x, tolerance=1e-6) for x in (hard, easy, torch.cat([easy, hard]))
    )
    assert among.calls >= alone.calls > crowd.calls
    torch.testing.assert_close(among.log_p[-1:], alone.log_p, rtol=0, atol=1e-5)


@every_schedule
def test_encode_carries_quantiles_to_standard_noise(schedule):
    x = quantiles(schedule, time(START), 50)
    noise = encode(exact(schedule), schedule, x[:, None], tolerance=FINE)[:, 0]
    sigma = schedule.sigma(time(1.0))
    torch.testing.assert_close(noise, flow_map(schedule, x, time(START), time(1.0)) / sigma, rtol=0, atol=1e-6)
    left = (schedule.alpha(time(1.0)) / sigma).item()  # what the path keeps of the data
    assert noise.mean().abs() <= MEAN * left + 1e-6
    assert noise.std(correction=0).item() == pytest.approx(1, abs=left**2 + 1e-6)


@every_schedule
def test_decode_and_encode_invert_each_other(schedule):
    denoise, noise = FLAT.denoiser(schedule), randn(3, 2)
    x = decode(denoise, schedule, noise, tolerance=1e-7)
    torch.testing.assert_close(encode(denoise, schedule, x, tolerance=1e-7), noise, rtol=0, atol=1e-6)


def test_log_density_and_encode_find_the_same_noise():
    x = randn(3, 2)
    noise = encode(FLAT.denoiser(VP()), VP(), x, tolerance=FINE)
    torch.testing.assert_close(
        log_density(FLAT.denoiser(VP()), VP(), x, tolerance=FINE).noise, noise, rtol=0, atol=1e-6
    )


@every_schedule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_denoiser_sees_times_of_the_path_only_and_its_calls_are_counted(schedule, dtype):
    seen, wide = [], torch.promote_types(dtype, torch.float32)

    def denoise(x_t, t):
        assert t.shape == () and t.dtype == torch.float64 and x_t.dtype == wide
        seen.append(t.item())
        return Estimate(*(part.to(wide) for part in exact(schedule)(x_t, t)))

    found = log_density(denoise, schedule, randn(2, 2).to(dtype), tolerance=1e-3)
    assert found.calls == len(seen)
    assert found.log_p.dtype == found.noise.dtype == wide
    assert decode(denoise, schedule, randn(2, 2).to(dtype), tolerance=1e-3).dtype == wide
    assert min(seen) == pytest.approx(START) and max(seen) <= 1


def test_half_precision_networks_still_end_the_integration():
    def denoise(x_t, t):
        return estimate("v", Cosine(), x_t, torch.tanh(x_t.bfloat16()), t)

    found = log_density(denoise, Cosine(), randn(2, 3).float(), tolerance=1e-2)
    assert found.log_p.isfinite().all() and found.calls < 1000


def test_no_graph_is_kept_and_no_random_state_is_touched():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def denoise(x_t, t):
        return estimate("v", VP(), x_t, weight * torch.tanh(x_t), t)

    before = torch.get_rng_state()
    found = log_density(denoise, VP(), randn(2, 2), generator=generator())
    bound = variational_bound(denoise, VP(), randn(2, 2), generator=generator(), samples=2)
    carried = encode(denoise, VP(), randn(2, 2)), decode(denoise, VP(), randn(2, 2))
    assert not any(part.requires_grad for part in (found.log_p, found.noise, *bound, *carried))
    assert weight.grad is None
    assert torch.equal(before, torch.get_rng_state())


def closed_bound(schedule, x, start):
    """The bound for the exact denoiser of N(MEAN, STD^2): with g = SNR,

    E|eps - eps_hat|^2 = (g s^2 / (1 + g s^2))^2 + g (x - m)^2 / (1 + g s^2)^2, integrated over d log g.
    """
    first, last = schedule.log_snr(time(1.0)).exp(), schedule.log_snr(time(start)).exp()

    def integral(g):
        return torch.log1p(g * STD**2) + (1 - ((x - MEAN) / STD) ** 2) / (1 + g * STD**2)

    reconstruction = -Normal(0, last**-0.5).log_prob(time(0.0)) + 0.5
    return (first * x**2 / 2 + (integral(last) - integral(first)) / 2 + reconstruction).sum(-1)


@every_schedule
def test_the_bound_is_its_integral_in_closed_form(schedule):
    x = torch.tensor([[0.7, 1.9]], dtype=torch.float64)
    bound = variational_bound(exact(schedule), schedule, x.expand(1000, 2), generator=generator(), samples=128)
    error = bound.nats.std() / math.sqrt(len(bound.nats))
    assert error < 0.1
    assert (bound.nats.mean() - closed_bound(schedule, x, 1e-3)).abs() < 4 * error
    torch.testing.assert_close(bound.prior + bound.diffusion + bound.reconstruction, bound.nats)


@pytest.mark.parametrize("schedule", [Flow(), VP(), EDM(sigma_max=2.0)], ids=name)
def test_the_ends_of_the_bound_are_those_of_torch_distributions(schedule):
    x = randn(3, 2)
    bound = variational_bound(exact(schedule), schedule, x, generator=generator(), samples=1)
    end = schedule.sigma(time(1.0))
    prior = kl_divergence(Normal(schedule.alpha(time(1.0)) * x, end), Normal(0 * x, end)).sum(1)
    torch.testing.assert_close(bound.prior, prior, rtol=1e-9, atol=1e-12)
    ratio = schedule.sigma(time(1e-3)) / schedule.alpha(time(1e-3))
    torch.testing.assert_close(bound.reconstruction, Normal(0 * x, ratio).entropy().sum(1))


@some_schedules
def test_the_bound_lies_above_minus_log_p_and_closes_as_start_nears_the_data(schedule):
    x = torch.tensor([[1.2]], dtype=torch.float64)
    truth = -Normal(MEAN, STD).log_prob(x).sum()

    def gap(noise_to_signal, samples=64):
        start = torch.linspace(0, 1, 100_001, dtype=torch.float64)[1:]
        nearest = (schedule.log_snr(start) + 2 * math.log(noise_to_signal)).abs().argmin()
        at = start[nearest].item()
        many = variational_bound(
            exact(schedule), schedule, x.expand(20_000, 1), generator=generator(), start=at, samples=samples
        ).nats
        return (many.mean() - truth).item(), (many.std() / math.sqrt(len(many))).item()

    (far, _), (middle, _), (near, error) = (gap(ratio) for ratio in (0.8, 0.3, 0.01))
    assert error < 0.015
    assert far > middle + 0.1 and middle > near + 5 * error
    assert near == pytest.approx(0, abs=4 * error + 1e-3)


@some_schedules
def test_the_bound_of_a_mixture_lies_above_minus_log_p_item_by_item(schedule):
    x = torch.cat([FLAT.means, randn(3, 2)])
    many = variational_bound(
        FLAT.denoiser(schedule), schedule, x.repeat(400, 1), generator=generator(), start=0.02, samples=32
    ).nats.reshape(400, len(x))
    error = many.std(0) / math.sqrt(400)
    truth = -FLAT.log_prob(schedule, time(0.0), x)
    assert (many.mean(0) > truth - 4 * error).all()
    assert many.mean() - truth.mean() < 0.5


@some_schedules
def test_a_wrong_denoiser_has_a_looser_bound_on_average_over_the_data(schedule):
    x = quantiles(schedule, time(0.0))[:, None]

    def shifted(x_t, t):
        right = exact(schedule)(x_t, t)
        x_hat = right.x + 0.2
        return Estimate(x_hat, (x_t - schedule.alpha(t) * x_hat) / schedule.sigma(t))

    bounds = [variational_bound(d, schedule, x, generator=generator()).nats for d in (exact(schedule), shifted)]
    excess = bounds[1] - bounds[0]
    # the mean of |x_hat + 0.2 - x|^2 is 0.04 more, over the whole range of SNR
    snr = schedule.log_snr(torch.tensor([1e-3, 1.0], dtype=torch.float64)).exp()
    assert excess.mean().item() == pytest.approx(0.02 * (snr[0] - snr[1]).item(), rel=0.3)
    assert excess.mean() > 0


@every_schedule
def test_every_time_weighs_the_same_for_standard_normal_data(schedule):
    """Even in log(1 + SNR) the exact integrand is constant, so even one time gives the integral."""

    def denoise(x_t, t):
        alpha, sigma = (beside(part, x_t) for part in (schedule.alpha(t), schedule.sigma(t)))
        return Estimate(*(part * x_t / (alpha**2 + sigma**2) for part in (alpha, sigma)))

    x = randn(40_000, 1)
    snr = schedule.log_snr(torch.tensor([1e-3, 1.0], dtype=torch.float64)).exp()
    expected = 0.5 * torch.log1p(snr).diff().abs().item()
    for seed in range(4):
        found = variational_bound(denoise, schedule, x, generator=generator(seed), samples=1).diffusion
        assert found.mean().item() == pytest.approx(expected, rel=5 * math.sqrt(2 / len(x)))


def test_the_bound_repeats_with_its_seed():
    first, again, other = (
        variational_bound(exact(VP()), VP(), randn(2, 3), generator=generator(s), samples=3).nats for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_uniform_grey_values_take_eight_bits():
    log_p = torch.full((2,), -3 * math.log(2), dtype=torch.float64)  # three values, each uniform on [-1, 1]
    torch.testing.assert_close(bits_per_dim(log_p, 3, levels=256), torch.full_like(log_p, 8))
    torch.testing.assert_close(bits_per_dim(log_p, 3), torch.ones_like(log_p))


@pytest.mark.parametrize("levels", [4, 256])
def test_bits_of_dequantised_values_bound_the_bits_of_the_grey_values_from_above(levels):
    model = Normal(time(0.1), time(0.3))
    edges = torch.linspace(-1, 1, levels + 1, dtype=torch.float64)
    truth = -model.cdf(edges).diff().log2()
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    x = edges[:-1, None] + 2 / levels * u
    found = bits_per_dim(model.log_prob(x), 1, levels=levels).mean(1)
    assert (found >= truth - 1e-6).all()
    torch.testing.assert_close(found, truth, rtol=0, atol=40 / levels**2)


@pytest.mark.parametrize("start", [0.0, 1.0, -0.1, 2.0, math.nan])
@pytest.mark.parametrize("call", [log_density, encode, decode, variational_bound], ids=lambda f: f.__name__)
def test_a_start_outside_the_path_is_refused_with_a_remedy(call, start):
    random = {"generator": generator()} if call is variational_bound else {}
    with pytest.raises(ValueError, match=r"start is .* with Flow.*expected 0 < start < 1.*use 1e-5"):
        call(exact(Flow()), Flow(), randn(2, 2), start=start, **random)


@pytest.mark.parametrize("tolerance", [0.0, -1e-5, math.inf, math.nan])
@pytest.mark.parametrize("call", [log_density, encode, decode], ids=lambda f: f.__name__)
def test_an_impossible_tolerance_is_refused_with_a_remedy(call, tolerance):
    with pytest.raises(ValueError, match=r"tolerance is .*expected.*1e-5"):
        call(exact(Flow()), Flow(), randn(2, 2), tolerance=tolerance)


def test_counts_below_the_least_are_refused_with_a_remedy():
    denoise, x = exact(Flow()), randn(2, 2)
    with pytest.raises(ValueError, match="probes is 0, expected at least 1; use 1"):
        log_density(denoise, Flow(), x, generator=generator(), probes=0)
    with pytest.raises(ValueError, match="samples is 0, expected at least 1; use 128"):
        variational_bound(denoise, Flow(), x, generator=generator(), samples=0)
    with pytest.raises(ValueError, match="dims is 0, expected at least 1; pass the number"):
        bits_per_dim(x, 0)
    with pytest.raises(ValueError, match="levels is 1, expected at least 2; use 256"):
        bits_per_dim(x, 2, levels=1)


@pytest.mark.parametrize("call", [log_density, encode, decode], ids=lambda f: f.__name__)
def test_a_prediction_that_cannot_be_read_at_pure_noise_is_refused_with_a_remedy(call):
    with pytest.raises(ValueError, match=r"velocity at t = 1 is not finite.*'eps'.*predict 'v'"):
        call(lambda x_t, t: estimate("eps", Flow(), x_t, 0.5 * x_t, t), Flow(), randn(2, 2))


def test_a_denoiser_without_graph_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"no graph.*torch\.no_grad"):
        log_density(torch.no_grad()(exact(Flow())), Flow(), randn(2, 2))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"no graph.*torch\.inference_mode"):
        log_density(exact(Flow()), Flow(), randn(2, 2))


def test_decode_starts_where_samplers_do():
    """decode(eps) and a solver from sigma(1) eps reach the same sample."""
    noise = noise_like(torch.empty(3, 2, dtype=torch.float64), generator())
    x = decode(exact(EDM()), EDM(), noise, tolerance=FINE)
    expected = flow_map(EDM(), EDM().sigma(time(1.0)) * noise, time(1.0), time(START))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
