import pytest
import torch

from discrete.layout import Layout
from discrete.predict import denoiser, subs

MASK = 6


def logits_and_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x_t = torch.randint(0, MASK + 1, (8, 10), generator=g)
    return torch.randn(8, 10, MASK + 1, generator=g), x_t


def test_masked_positions_get_a_distribution_without_the_mask():
    logits, x_t = logits_and_tokens()
    p = subs(logits, x_t, MASK).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(8, 10))
    assert (p[..., MASK][x_t == MASK] == 0).all()
    expected = logits[..., :MASK].softmax(-1)
    torch.testing.assert_close(p[x_t == MASK][:, :MASK], expected[x_t == MASK])


def test_visible_tokens_are_carried_over():
    logits, x_t = logits_and_tokens()
    p = subs(logits, x_t, MASK).exp()
    visible = x_t != MASK
    assert (p[visible] == torch.nn.functional.one_hot(x_t[visible], MASK + 1)).all()


def test_gradients_are_finite_and_only_where_masked():
    logits, x_t = logits_and_tokens()
    logits[..., 2] = -torch.inf
    logits.requires_grad_()
    log_probs = subs(logits, x_t, MASK)
    log_probs[torch.isfinite(log_probs)].sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert (logits.grad[x_t != MASK] == 0).all()


def test_half_precision_logits_are_normalised_in_float32():
    logits, x_t = logits_and_tokens()
    p = subs(logits.bfloat16(), x_t, MASK)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.exp().sum(-1), torch.ones(8, 10))


def test_allowed_ranges_hold_and_temperature_sharpens():
    layout = Layout(text_length=4, image_length=6, text_vocab=2, image_vocab=4)
    logits, _ = logits_and_tokens()
    x_t = layout.masked(8)
    p = denoiser(lambda *_: logits, mask_id=MASK, allowed=layout.allowed())(x_t, torch.tensor(1.0)).exp()
    assert (p[:, :4, 2:] == 0).all() and (p[:, 4:, :2] == 0).all() and (p[..., MASK] == 0).all()
    sharp = denoiser(lambda *_: logits, mask_id=MASK, temperature=0.5)(x_t, torch.tensor(1.0))
    torch.testing.assert_close(sharp, subs(logits / 0.5, x_t, MASK))


def test_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature is 0"):
        denoiser(lambda x, t: x, mask_id=MASK, temperature=0)
