import pytest
import torch

from tokenizer.loss import codebook_terms, reconstruction_loss, vae_loss, vqvae_loss
from tokenizer.posterior import Gaussian


def test_reconstruction_kinds_are_mean_norms_of_the_difference():
    x, x_hat = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5)
    assert reconstruction_loss(x_hat, x, "l1").item() == pytest.approx(0.5)
    assert reconstruction_loss(x_hat, x, "l2").item() == pytest.approx(0.25)
    assert reconstruction_loss(x_hat, x, "mixed").item() == pytest.approx(0.5 + 2 * 0.25)


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
