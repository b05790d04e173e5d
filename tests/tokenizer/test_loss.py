import math

import numpy as np
import pytest
import torch
from scipy import stats

from tokenizer.loss import SCALES, codebook_terms, elbo_loss, levels_nll, reconstruction_loss, vae_loss, vqvae_loss
from tokenizer.posterior import Gaussian


def test_reconstruction_kinds_are_mean_norms_of_the_difference():
    x, x_hat = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5)
    assert reconstruction_loss(x_hat, x, "l1").item() == pytest.approx(0.5)
    assert reconstruction_loss(x_hat, x, "l2").item() == pytest.approx(0.25)
    assert reconstruction_loss(x_hat, x, "mixed").item() == pytest.approx(0.5 + 2 * 0.25)
    assert reconstruction_loss(x_hat, x, "charbonnier").item() == pytest.approx(math.sqrt(0.25 + 1e-6))


def test_reconstruction_is_measured_in_float32():
    x = torch.full((1, 3, 4, 4), 1e-3)
    assert reconstruction_loss(torch.zeros_like(x).bfloat16(), x, "l2").dtype == torch.float32


def test_kl_weight_counts_per_latent_value_whatever_the_size():
    small, large = (Gaussian(torch.full((2, 4, s, s), 1.0), torch.zeros(2, 4, s, s)) for s in (2, 8))
    x = torch.zeros(2, 3, 8, 8)
    losses = [vae_loss(x, x, posterior, kind="l1", weight=0.1) for posterior in (small, large)]
    assert [loss.total.item() for loss in losses] == pytest.approx([0.05, 0.05])  # KL of N(1, 1) is 1/2 nat
    assert losses[0].kl.item() == pytest.approx(0.5)


def test_codebook_term_moves_only_the_codebook_and_commitment_only_the_encoder():
    vectors, codewords = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    codebook, commitment = codebook_terms(vectors, codewords)
    assert torch.autograd.grad(codebook, [vectors, codewords], allow_unused=True)[0] is None
    assert torch.autograd.grad(commitment, [vectors, codewords], allow_unused=True)[1] is None


def test_beta_weighs_the_encoder_term_and_never_the_codebook_term():
    vectors, codewords = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    x = torch.zeros(1, 3, 4, 4)

    def gradients(beta: float) -> tuple[torch.Tensor, ...]:
        loss = vqvae_loss(x, x, *codebook_terms(vectors, codewords), kind="l2", beta=beta)
        return torch.autograd.grad(loss.total, [vectors, codewords])

    encoder, codebook = gradients(1.0)
    encoder_beta, codebook_beta = gradients(0.25)
    torch.testing.assert_close(encoder_beta, 0.25 * encoder)
    torch.testing.assert_close(codebook_beta, codebook)
    torch.testing.assert_close(codebook, -encoder)  # both are halves of one squared distance


LEVELS = -1 + 2 * torch.arange(256, dtype=torch.float32) / 255


@pytest.mark.parametrize("start", [SCALES[0], SCALES[1], 0.3 * SCALES[0], 3 * SCALES[1]])
def test_a_learned_scale_comes_back_from_its_bounds_to_the_deviation_of_the_data(start: float):
    """Away from the outermost levels the likeliest scale of a normal law is the root of the mean square."""
    generator = torch.Generator().manual_seed(0)
    x = ((0.2 * torch.randn(2000, generator=generator)).clamp(-0.9, 0.9) * 127.5 + 127.5).round() / 127.5 - 1
    log_scale = torch.tensor(start).log().requires_grad_(True)
    optimiser = torch.optim.Rprop([log_scale], 0.1)  # by signs: slopes at the lower bound are 1e5 times larger
    for _ in range(60):
        optimiser.zero_grad()
        levels_nll(torch.zeros(2000), x, log_scale).mean().backward()
        optimiser.step()
    assert log_scale.exp().item() == pytest.approx(x.square().mean().sqrt().item(), rel=0.01)


@pytest.mark.parametrize("scale", [3e-3, 0.02, 0.3, 2.0])
@pytest.mark.parametrize("x_hat", [-1.3, -1.0, 0.004, 0.7, 1.0])
def test_the_levels_of_a_colour_have_the_probabilities_of_a_discretised_normal_law(x_hat: float, scale: float):
    found = levels_nll(torch.full((256,), x_hat), LEVELS, torch.tensor(scale).log()).double().numpy()
    edges = -1 + (2 * torch.arange(257, dtype=torch.float64) - 1).numpy() / 255
    edges[0], edges[-1] = -math.inf, math.inf
    law = stats.norm(x_hat, scale)
    p = np.where(edges[:-1] > x_hat, -np.diff(law.sf(edges)), np.diff(law.cdf(edges)))  # of the smaller tails
    likely = p > 1e-30
    np.testing.assert_allclose(found[likely], -np.log(p[likely]), rtol=1e-3, atol=1e-3)
    assert np.exp(-found).sum() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("z", [5.0, 30.0, 300.0, 3000.0])
def test_far_levels_cost_what_their_tail_does_and_pull_by_its_slope(z: float):
    """Far out, -log p is that of the nearer edge of the level: z^2 / 2 + log z + log sqrt(2 pi), of slope z + 1 / z."""
    scale, level = 2e-3, LEVELS[100]
    x_hat = (level + 1 / 255 + z * scale).double().requires_grad_(True)
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64, requires_grad=True)
    nll = levels_nll(x_hat, level, log_scale)
    nll.backward()
    exact = z**2 / 2 + math.log(z) + 0.5 * math.log(2 * math.pi)
    assert nll.item() == pytest.approx(exact, rel=2e-2 if z < 10 else 1e-3)
    slope = z + 1 / z
    assert x_hat.grad.item() * scale == pytest.approx(slope, rel=1e-2)
    assert log_scale.grad.item() == pytest.approx(-slope * z, rel=1e-2)


def test_the_bound_of_a_linear_gaussian_model_is_its_marginal_where_the_posterior_is_exact():
    """x = w z + scale e, z ~ N(0, 1): E -log p(x | z) under q(z | x), plus KL, is -log N(x; 0, w^2 + scale^2)."""
    w, scale, n = 0.3, 0.2, 400_000
    x = LEVELS[[40, 100, 128, 200]]
    precision = 1 + w**2 / scale**2
    mean, log_var = x * w / scale**2 / precision, -math.log(precision)
    z = mean + math.exp(log_var / 2) * torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    nll = levels_nll(w * z, x.expand(n, 4), torch.tensor(scale).log()).double().mean(0)
    kl = torch.cat([Gaussian(m.view(1, 1, 1, 1), torch.full((1, 1, 1, 1), log_var)).kl() for m in mean])
    exact = -stats.norm(0, math.sqrt(w**2 + scale**2)).logpdf(x.numpy()) - math.log(2 / 255)  # levels are narrow
    torch.testing.assert_close(nll + kl.double(), torch.tensor(exact, dtype=torch.float64), rtol=0, atol=5e-3)


def test_the_bound_counts_every_latent_value_against_every_colour_value():
    x, posterior = torch.zeros(2, 3, 8, 8), Gaussian(torch.full((2, 4, 2, 2), 1.0), torch.zeros(2, 4, 2, 2))
    loss = elbo_loss(x, x, posterior, torch.tensor(0.1).log())
    assert loss.total.item() == pytest.approx(loss.reconstruction.item() + 0.5 * 16 / 192)


def test_free_bits_cost_nothing_and_leave_the_kl_as_it_is():
    mean = torch.zeros(2, 3, 2, 2)
    mean[:, 1], mean[:, 2] = 1.0, 2.0  # KL of 0, 1/2 and 2 nats a value
    posterior, x = Gaussian(mean.requires_grad_(True), torch.zeros(2, 3, 2, 2)), torch.zeros(2, 3, 8, 8)
    loss = vae_loss(x, x, posterior, kind="l1", weight=1.0, free=1.0)
    assert loss.total.item() == pytest.approx((1 + 1 + 2) / 3) and loss.kl.item() == pytest.approx(2.5 / 3)
    (gradient,) = torch.autograd.grad(loss.total, mean)
    assert not gradient[:, 1].any() and gradient[:, 2].all()
