"""A VAE with a learned prior: what its loss is, and whom it teaches."""

import math

import pytest
import torch
from torch import Tensor, nn

from backbone.folded import FoldedConfig
from tokenizer.loss import elbo_loss, levels_nll
from tokenizer.posterior import DrawnGaussian, Gaussian
from tokenizer.prior import AutoregressiveFlowConfig, NormalConfig, Prior, PriorConfig, RealNVPConfig, prior_of
from tokenizer.vae import VAE, VAEConfig, VAEOutput

NETWORK = FoldedConfig(channels=16, encoder_blocks=1, decoder_blocks=1)
SMALL = {"layers": 2, "channels": 8}
LEARNED: list[PriorConfig] = [RealNVPConfig(**SMALL), AutoregressiveFlowConfig(**SMALL)]
DETACHED: list[PriorConfig] = [
    RealNVPConfig(**SMALL, detached=True), AutoregressiveFlowConfig(**SMALL, detached=True)
]  # fmt: skip
VARIANCES = ("none", "learned")
kinds = pytest.mark.parametrize("prior", LEARNED, ids=lambda config: config.kind)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shake(module: nn.Module, size: float = 0.5) -> None:
    source = generator(7)
    for parameter in module.parameters():
        inputs = parameter[0].numel() if parameter.ndim == 4 else 9
        parameter.data += size * torch.randn(parameter.shape, generator=source).to(parameter.dtype) / inputs**0.5


def built(prior: PriorConfig, variance: str) -> VAE:
    torch.manual_seed(0)
    model = VAE(VAEConfig(network=NETWORK, latent_channels=2, variance=variance, prior=prior))  # type: ignore[arg-type]
    shake(model.prior)
    return model


def pictures(count: int = 4, size: int = 12) -> Tensor:
    return (torch.rand(count, 3, size, size, generator=generator(1)) * 255).round() / 127.5 - 1


def loss(model: VAE, x: Tensor) -> tuple[Tensor, VAEOutput]:
    output = model(x, generator())
    return output.loss(x, kind="mixed", weight=0.3).total, output


def test_a_drawn_kl_is_on_average_that_of_torch_distributions():
    mean, log_var = torch.randn(1, 2, 2, 1, generator=generator()), torch.randn(1, 2, 2, 1, generator=generator(1))
    many = Gaussian(mean.expand(50_000, 2, 2, 1), log_var.expand(50_000, 2, 2, 1))
    p = torch.distributions.Normal(0.3, 1.7)
    drawn = DrawnGaussian(many.mean, many.log_var, p.log_prob(many.sample(generator())).sum((1, 2, 3)))
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    torch.testing.assert_close(Gaussian(mean, log_var).entropy(), q.entropy().sum((1, 2, 3)))
    kl = drawn.kl()
    exact = torch.distributions.kl_divergence(q, p).sum()
    assert (kl.mean() - exact).abs() < 4 * kl.std() / len(kl) ** 0.5
    assert drawn.kl_per_channel().item() == pytest.approx(kl.mean().item() / 4)


def test_an_estimate_below_zero_is_not_cut_off():
    x, zero = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 1, 1)
    posterior = DrawnGaussian(zero, zero, torch.ones(1))
    found = elbo_loss(x, x, posterior, torch.tensor(0.1).log())
    assert found.kl.item() == pytest.approx(-1 - 0.5 * (1 + math.log(2 * math.pi)))
    assert found.total.item() == pytest.approx(found.reconstruction.item() + found.kl.item() / 48)


def nodes(shape: tuple[int, int, int]) -> Tensor:
    """Normal quantiles at the middles of cells of equal mass: averages over them are quadratures."""
    count = 2000 if math.prod(shape) == 1 else 64
    axis = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return torch.cartesian_prod(*[axis] * math.prod(shape)).view(-1, *shape)


WEIGHTS = torch.tensor([0.25, -0.15], dtype=torch.float64)
SCALE = 0.1


def picture_of(z: Tensor) -> Tensor:
    """The mean of a picture of one grey value: (N, 1, 1, 1)."""
    return (z.flatten(1) @ WEIGHTS[: z[0].numel()]).view(-1, 1, 1, 1)


def marginal(prior: Prior, x: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """-log of the integral of p(x | z) p(z), by a grid; and log p(z | x) at every point of that grid z."""
    points = 2001 if math.prod(shape) == 1 else 121
    axis = torch.linspace(-8, 8, points, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * math.prod(shape)).view(-1, *shape)
    joint = prior.log_prob(z) - levels_nll(picture_of(z), x.expand(len(z), 1, 1, 1), LOG_SCALE).double().flatten()
    log_p = joint.logsumexp(0) + math.prod(shape) * math.log(16 / (points - 1))
    return -log_p, z, joint - log_p


LOG_SCALE = torch.tensor(SCALE, dtype=torch.float64).log()


@pytest.mark.parametrize("config", [NormalConfig(), *LEARNED], ids=lambda config: config.kind)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("q", [(0.0, 0.0), (0.8, -2.0), (-1.0, 0.4)])
def test_the_bound_exceeds_the_cost_under_its_prior_by_the_divergence_of_the_posterior(config, shape, q):
    """-ELBO = -log p(x) + KL(q(z) || p(z | x)) for whatever prior p and Gaussian q, by quadrature in float64."""
    torch.manual_seed(0)
    prior = prior_of(config, shape[0]).double().requires_grad_(False)
    shake(prior)
    x = torch.full((1, 1, 1, 1), -1 + 2 * 150 / 255, dtype=torch.float64)
    mean, log_var = (torch.full(shape, value, dtype=torch.float64) for value in q)
    z = mean + (log_var / 2).exp() * nodes(shape)
    count = len(z)
    posterior = DrawnGaussian(mean.expand(count, *shape), log_var.expand(count, *shape), prior.log_prob(z))
    bound = elbo_loss(picture_of(z), x.expand(count, 1, 1, 1), posterior, LOG_SCALE).total
    cost, points, log_posterior = marginal(prior, x, shape)
    law = torch.distributions.Normal(mean, (log_var / 2).exp())
    log_q = law.log_prob(points).flatten(1).sum(1)
    cell = (points.flatten(1)[1] - points.flatten(1)[0])[-1] ** math.prod(shape)
    gap = (log_q.exp() * (log_q - log_posterior)).sum() * cell
    assert gap > 0.01 and bound > cost
    torch.testing.assert_close(bound, cost + gap, rtol=2e-2, atol=2e-2)


@kinds
@pytest.mark.parametrize("variance", VARIANCES)
def test_every_parameter_takes_part_in_the_loss(prior, variance):
    model = built(prior, variance)
    loss(model, pictures())[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("prior", DETACHED, ids=lambda config: config.kind)
@pytest.mark.parametrize("variance", VARIANCES)
def test_a_detached_prior_learns_and_leaves_the_autoencoder_as_it_is_without(prior, variance):
    model, other = built(prior, variance), built(NormalConfig(), variance)
    for network in (model, other):
        loss(network, pictures())[0].backward()
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter.grad, model.get_parameter(name).grad)
    assert all(parameter.grad.any() for parameter in model.prior.parameters())


@kinds
def test_a_prior_that_is_felt_moves_the_encoder(prior):
    model, other = built(prior, "learned"), built(NormalConfig(), "learned")
    for network in (model, other):
        loss(network, pictures())[0].backward()
    grads = [torch.cat([p.grad.flatten() for p in network.encoder.parameters()]) for network in (model, other)]
    assert (grads[0] - grads[1]).norm() > 1e-3 * grads[1].norm()


@pytest.mark.parametrize("prior", [*LEARNED, *DETACHED], ids=lambda config: f"{config.kind}-{config.detached}")
def test_the_bound_is_by_the_learned_prior_whether_it_is_felt_or_not(prior):
    model, x = built(prior, "learned"), pictures()
    output = model(x, generator())
    z = output.posterior.sample(generator())  # the same draw
    kl = -output.posterior.entropy() - model.prior.log_prob(z)
    nll = levels_nll(output.x_hat, x, output.log_scale).mean()
    torch.testing.assert_close(output.bound(x), nll + kl.mean() / x[0].numel())
    torch.testing.assert_close(output.prior_nats, -model.prior.log_prob(z).mean() / 18)


def test_a_prior_that_starts_as_the_normal_law_changes_no_draw_and_no_weight():
    torch.manual_seed(0)
    plain = VAE(VAEConfig(network=NETWORK))
    torch.manual_seed(0)
    model = VAE(VAEConfig(network=NETWORK, prior=RealNVPConfig()))
    assert set(plain.state_dict()) <= set(model.state_dict())
    assert torch.equal(plain(pictures(), generator()).x_hat, model(pictures(), generator()).x_hat)


@pytest.mark.parametrize("prior", [NormalConfig(), *LEARNED], ids=lambda config: config.kind)
def test_pictures_of_the_prior_are_those_of_its_latents(prior):
    model = built(prior, "none")
    found = model.sample(3, 20, [generator(0), generator(1), generator(2)])
    assert found.shape == (3, 3, 20, 20) and not found.requires_grad
    z = model.prior.sample((1, 2, 5, 5), [generator(1)])
    torch.testing.assert_close(found[1:2], model.decode(z), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="22 x 22"):
        model.sample(1, 22, generator())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"free_bits": 0.1}, r"free_bits is 0\.1, .* Use 0, or prior\.detached = true"),
        ({"kl_weight": 0.0}, r"kl_weight is 0, .* Try 2e-3, or use prior\.detached = true"),
    ],
)
def test_what_does_not_go_with_a_prior_that_is_felt_is_refused(table, words):
    with pytest.raises(ValueError, match=words):
        VAEConfig(prior=RealNVPConfig(), **table)
    VAEConfig(prior=RealNVPConfig(detached=True), **table)
    VAEConfig(**table)
