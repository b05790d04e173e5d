import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from tokenizer.adversarial import (
    adaptive_weight,
    between_penalty,
    critic_terms,
    generator_term,
    gradients_at,
    lecam_term,
    r1_penalty,
    slopes,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOSSES = {
    "hinge": (lambda d: np.maximum(0, 1 - d), lambda d: np.maximum(0, 1 + d), lambda d: -d),
    "non_saturating": (
        lambda d: -special.log_expit(d),
        lambda d: -special.log_expit(-d),
        lambda d: -special.log_expit(d),
    ),
    "wasserstein": (lambda d: -d, lambda d: d, lambda d: -d),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_those_of_their_papers(kind: str):
    real, fake = 2 * normal(4, 3, 5, seed=1), 2 * normal(4, 3, 5, seed=2)
    of_real, of_fake, of_generator = LOSSES[kind]
    terms = [*critic_terms(real, fake, kind), generator_term(fake, kind)]
    expected = [of_real(real.numpy()), of_fake(fake.numpy()), of_generator(fake.numpy())]
    assert [term.item() for term in terms] == pytest.approx([values.mean() for values in expected], abs=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_generators_loss_falls_where_the_critics_loss_of_made_pictures_rises(kind: str):
    fake = (0.3 * normal(6, 2, 2)).requires_grad_(True)
    (up,) = torch.autograd.grad(critic_terms(fake, fake, kind)[1], fake)
    (down,) = torch.autograd.grad(generator_term(fake, kind), fake)
    assert (up > 0).all() and (down < 0).all()


def quadratic(matrix: Tensor):
    """D(x) = x^T A x, whose gradient is (A + A^T) x; a map of two equal patches."""
    return lambda x: torch.einsum("bi,ij,bj->b", x.flatten(1), matrix, x.flatten(1))[:, None, None].expand(-1, 1, 2)


def test_slopes_of_a_quadratic_critic_are_the_closed_form():
    matrix, x = normal(12, 12, seed=3), normal(5, 3, 2, 2, seed=4)
    expected = np.linalg.norm(x.flatten(1).numpy() @ (matrix + matrix.T).numpy(), axis=1)
    np.testing.assert_allclose(slopes(quadratic(matrix), x).detach().numpy(), expected, rtol=1e-12)
    assert r1_penalty(quadratic(matrix), x).item() == pytest.approx((expected**2).mean() / 2, rel=1e-12)


def test_the_gradient_penalty_is_taken_between_the_pictures_at_each_items_share():
    matrix, real, fake = normal(12, 12, seed=3), normal(5, 3, 2, 2, seed=4), normal(5, 3, 2, 2, seed=5)
    share = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    between = share[:, None].numpy() * real.flatten(1).numpy() + (1 - share[:, None].numpy()) * fake.flatten(1).numpy()
    expected = ((np.linalg.norm(between @ (matrix + matrix.T).numpy(), axis=1) - 1) ** 2).mean()
    assert between_penalty(quadratic(matrix), real, fake, share).item() == pytest.approx(expected, rel=1e-12)


def test_penalties_have_the_gradient_of_their_closed_forms_in_the_critics_parameters():
    """R1 of x^T A x is |(A + A^T) x|^2 / 2, whose gradient in A is B x x^T + x x^T B with B = A + A^T."""
    matrix, x = normal(4, 4, seed=3).requires_grad_(True), normal(1, 4, seed=4)
    (found,) = torch.autograd.grad(r1_penalty(quadratic(matrix), x), matrix)
    both, outer = (matrix + matrix.T).detach(), torch.outer(x[0], x[0])
    torch.testing.assert_close(found, both @ outer + outer @ both)


def test_a_flat_critic_has_a_penalty_with_a_finite_gradient():
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    x = normal(3, 4)
    penalty = between_penalty(lambda x: x @ weight, x, -x, torch.full((3,), 0.5, dtype=torch.float64))
    assert penalty.item() == 1 and torch.autograd.grad(penalty, weight)[0].isfinite().all()


def test_slopes_are_float32_under_autocast():
    conv = torch.nn.Conv2d(3, 1, 3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = slopes(conv, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), slopes(conv.double(), x.double()), rtol=1e-6, atol=0)


def test_lecam_draws_each_side_to_the_average_of_the_other():
    real, fake, averages = normal(3, 2, 2, seed=1), normal(3, 2, 2, seed=2), torch.tensor([0.7, -0.4])
    expected = ((real.numpy() - -0.4) ** 2).mean() + ((fake.numpy() - 0.7) ** 2).mean()
    assert lecam_term(real, fake, averages).item() == pytest.approx(expected, rel=1e-6)


def test_gradients_at_a_weight_are_closed_forms_and_leave_the_graph():
    weight, x = normal(3, 4, seed=1).requires_grad_(True), normal(6, 4, seed=2)
    y = x @ weight.T
    terms = [y.square().mean(), -2 * y.mean()]
    found = gradients_at(terms, weight)
    torch.testing.assert_close(found[0], 2 * y.detach().T @ x / y.numel())
    torch.testing.assert_close(found[1], (-2 * x.sum(0) / y.numel()).expand(3, 4))
    assert weight.grad is None
    sum(terms).backward()
    torch.testing.assert_close(weight.grad, found[0] + found[1])


def test_adaptive_weight_is_a_ratio_of_lengths_within_bounds():
    reconstruction, adversarial = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -2.0]])
    assert adaptive_weight(reconstruction, adversarial).item() == pytest.approx(5 / (2 + 1e-6))
    assert adaptive_weight(reconstruction, 0 * adversarial).item() == 1e4
    assert adaptive_weight(0 * reconstruction, adversarial).item() == 0
    assert not adaptive_weight(reconstruction.requires_grad_(True), adversarial).requires_grad


def test_adaptive_weight_of_averaged_micro_batches_is_that_of_the_batch():
    weight, x = normal(3, 4, seed=1).requires_grad_(True), normal(8, 4, seed=2)

    def gradients(x: Tensor) -> list[Tensor]:
        y = torch.tanh(x @ weight.T)
        return gradients_at([(y - 1).square().mean(), -y.mean()], weight)

    halves = [(a + b) / 2 for a, b in zip(gradients(x[:4]), gradients(x[4:]), strict=True)]
    torch.testing.assert_close(adaptive_weight(*halves), adaptive_weight(*gradients(x)))
