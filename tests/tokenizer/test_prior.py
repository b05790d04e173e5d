import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.autograd.functional import jacobian

from tokenizer.flow import Autoregression
from tokenizer.prior import AutoregressiveFlowConfig, NormalConfig, Prior, PriorConfig, RealNVPConfig, prior_of
from tokenizer.vae import VAEConfig

REALNVP = RealNVPConfig(layers=5, channels=6)
AUTOREGRESSIVE = AutoregressiveFlowConfig(layers=3, channels=6)
LEARNED = [REALNVP, AUTOREGRESSIVE]
PAIRS = [(1, 1, 2), (2, 1, 1)]  # latents of two values
kinds = pytest.mark.parametrize("config", LEARNED, ids=lambda config: config.kind)
pairs = pytest.mark.parametrize("shape", PAIRS, ids=str)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(config: PriorConfig, channels: int, size: float = 0.5) -> Prior:
    """A prior in float64 with weights that are far from where they start."""
    torch.manual_seed(0)
    prior, source = prior_of(config, channels).double(), generator(7)
    for parameter in prior.parameters():
        inputs = parameter[0].numel() if parameter.ndim == 4 else 9
        parameter.data += size * torch.randn(parameter.shape, generator=source, dtype=torch.float64) / inputs**0.5
    return prior.requires_grad_(False)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def grid(shape: tuple[int, int, int], half: float, points: int) -> Tensor:
    """All pairs of `points` values on [-half, half], as latents of a shape of two values."""
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).view(-1, *shape)


@kinds
def test_a_prior_starts_as_the_normal_law(config):
    z = randn(3, 4, 5, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(prior_of(config, 4).double().log_prob(z), expected)
    torch.testing.assert_close(prior_of(NormalConfig(), 4).log_prob(z), expected)


@kinds
@pairs
def test_the_density_integrates_to_one(config, shape):
    half, points = 10.0, 111
    mass = shaken(config, shape[0]).log_prob(grid(shape, half, points)).exp().sum() * (2 * half / (points - 1)) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-6)


SHAPES = [(1, 1, 1), (1, 3, 5), (2, 1, 1), (3, 4, 4), (5, 7, 3)]


@kinds
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["wide", "single"])
def test_the_inverse_goes_back_both_ways(config, shape, dtype, within):
    prior, z = shaken(config, shape[0]).to(dtype), randn(3, *shape).to(dtype)
    u, _ = prior(z)
    assert (u - z).abs().max() > 0.1
    torch.testing.assert_close(prior.inverse(u), z, rtol=within, atol=within)
    torch.testing.assert_close(prior(prior.inverse(z))[0], z, rtol=within, atol=within)


@kinds
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_log_determinant_is_that_of_the_jacobian(config, shape):
    prior, z = shaken(config, shape[0]), randn(1, *shape)
    full = jacobian(lambda flat: prior(flat.view(1, *shape))[0].flatten(), z.flatten())
    assert isinstance(full, Tensor)
    sign, expected = torch.linalg.slogdet(full)
    assert sign == 1
    torch.testing.assert_close(prior(z)[1][0], expected)


@kinds
def test_a_prior_with_random_weights_couples_every_channel_and_every_value(config):
    prior, z = shaken(config, 3), randn(1, 3, 3, 3)
    full = jacobian(lambda flat: prior(flat.view(1, 3, 3, 3))[0].flatten(), z.flatten())
    assert isinstance(full, Tensor)
    assert (full.view(3, 9, 3, 9).abs().sum((1, 3)) > 1e-3).all()
    assert (full.tril(-1) + full.triu(1)).abs().amax(1).min() > 1e-6  # every value depends on another one


@kinds
@pairs
def test_samples_fall_into_cells_as_the_density_says(config, shape):
    prior, count, half, cells, fine = shaken(config, shape[0]), 5_000, 5.0, 10, 12
    step = 2 * half / (cells * fine)
    middles = grid(shape, half - step / 2, cells * fine)
    mass = prior.log_prob(middles).exp().view(cells, fine, cells, fine).sum((1, 3)) * step**2
    drawn = prior.sample((count, *shape), generator(1)).view(count, 2)
    place = ((drawn + half) / (2 * half / cells)).floor().long()
    inside = ((place >= 0) & (place < cells)).all(1)
    found = torch.bincount(place[inside] @ torch.tensor([cells, 1]), minlength=cells**2)
    expected = torch.cat([count * mass.flatten(), count * (1 - mass.sum())[None]])
    observed = torch.cat([found, count - found.sum()[None]])
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    assert len(expected) > 15
    assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-3


@kinds
def test_samples_stay_finite_whatever_the_weights(config):
    """Wild weights make an autoregression over 256 values run away unless what it feeds on is bounded."""
    z = shaken(config, 4, 3.0).sample((4, 4, 8, 8), generator())
    assert z.isfinite().all() and z.abs().max() < 1e9


@kinds
def test_an_item_with_its_own_generator_does_not_depend_on_its_batch(config):
    prior = shaken(config, 2)
    together = prior.sample((3, 2, 4, 3), [generator(0), generator(1), generator(2)])
    alone = prior.sample((1, 2, 4, 3), [generator(1)])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-12)
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("latents", [1, 3])
def test_an_autoregressive_value_depends_on_none_behind_it(latents, turned):
    """Over rows, columns and then channels the Jacobian is triangular, and the value before is seen."""
    torch.manual_seed(0)
    step = Autoregression(latents, 9, 1, turned=turned).double()
    for parameter in step.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator(3), dtype=torch.float64)
    shape = (4, 3, latents)  # (h, w, c): flat in the order that is claimed

    def ordered(flat: Tensor) -> Tensor:
        return step(flat.view(shape).permute(2, 0, 1)[None])[0][0].permute(1, 2, 0).flatten()

    full = jacobian(ordered, randn(math.prod(shape)))
    assert isinstance(full, Tensor)
    full = full.T if turned else full
    assert not full.triu(1).any()
    seen = full.diagonal(-1).reshape(-1)
    inside_a_row = torch.tensor([(i + 1) % (3 * latents) != 0 for i in range(len(seen))])
    assert (seen[inside_a_row].abs() > 1e-6).all()


@kinds
def test_a_density_is_in_float32_under_autocast(config):
    prior, z = shaken(config, 4).float(), randn(2, 4, 4, 4).float()
    expected = prior.log_prob(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prior.log_prob(z), expected) and expected.dtype == torch.float32
        assert prior.log_prob(z.bfloat16()).dtype == torch.float32


MEANS, WEIGHTS = torch.tensor([[-1.5, -1.5], [1.5, 1.5]]), torch.tensor([0.6, 0.4])
MIXTURE = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(WEIGHTS),
    torch.distributions.Independent(torch.distributions.Normal(MEANS, 0.6), 1),
)


def mixture(count: int, source: torch.Generator) -> Tensor:
    part = torch.multinomial(WEIGHTS, count, replacement=True, generator=source)
    return MEANS[part] + 0.6 * torch.randn(count, 2, generator=source)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (RealNVPConfig(layers=4, channels=32), (1, 1, 2)),
        (AutoregressiveFlowConfig(layers=4, channels=16), (1, 1, 2)),
    ],
    ids=["realnvp", "autoregressive"],
)
def test_a_prior_learns_a_mixture_to_near_its_entropy(config, shape):
    torch.manual_seed(0)
    prior, source = prior_of(config, shape[0]), generator()
    optimiser = torch.optim.Adam(prior.parameters(), 2e-2)
    steps = 200
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        optimiser.zero_grad()
        (-prior.log_prob(mixture(128, source).view(-1, *shape)).mean()).backward()
        optimiser.step()
    held_out = mixture(8000, generator(99))
    entropy = -MIXTURE.log_prob(held_out).mean().item()
    with torch.no_grad():
        nats = -prior.log_prob(held_out.view(-1, *shape)).mean().item()
    normal = 0.5 * torch.logdet(held_out.T.cov()).item() + 1 + math.log(2 * math.pi)
    assert normal > entropy + 0.5  # of the best normal law
    assert entropy - 0.02 < nats < entropy + 0.2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"layers": 0}, "prior.layers is 0, expected at least 1. Try 8"),
        ({"channels": 0}, "prior.channels is 0, expected at least 1. Try 32"),
        ({"blocks": -1}, "prior.blocks is -1, expected at least 0. Try 1"),
    ],
)
def test_a_size_out_of_range_is_named_with_a_remedy(table, words):
    with pytest.raises(ValueError, match=words):
        RealNVPConfig(**table)


def test_fewer_features_than_channels_of_the_latents_are_refused():
    with pytest.raises(ValueError, match=r"prior\.channels is 3, expected at least the 4 channels.*Try 32"):
        VAEConfig(prior=AutoregressiveFlowConfig(channels=3, detached=True))
    VAEConfig(prior=AutoregressiveFlowConfig(channels=3), latent_channels=3)
    VAEConfig(prior=RealNVPConfig(channels=3))
