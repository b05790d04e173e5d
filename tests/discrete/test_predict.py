import numpy as np
import pytest
import torch
from scipy.special import softmax

from discrete.layout import Layout
from discrete.predict import denoiser, sharpened, sharpener, subs

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
    layout = Layout(text_length=4, text_vocab=2, sides=(1, 1, 2), image_vocabs=(1, 1, 2))
    logits, _ = logits_and_tokens()
    x_t = layout.masked(8)
    p = denoiser(lambda *_: logits, mask_id=MASK, allowed=layout.allowed())(x_t, torch.tensor(1.0)).exp()
    assert (p[:, :4, 2:] == 0).all() and (p[:, 4:, :2] == 0).all() and (p[..., MASK] == 0).all()
    assert (p[:, 4, 2] == 1).all() and (p[:, 5, 3] == 1).all() and (p[:, 6:, 4:6].sum(-1) > 1 - 1e-6).all()  # by grid
    sharp = denoiser(lambda *_: logits, mask_id=MASK, sharpen=sharpener(temperature=0.5))(x_t, torch.tensor(1.0))
    torch.testing.assert_close(sharp, subs(logits / 0.5, x_t, MASK))


def test_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature is 0"):
        sharpener(temperature=0)


def by_hand(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities of one position, token by token."""
    p = softmax(logits / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    p = p / p.sum()
    kept, mass = [], 0.0
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += p[token]
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 20])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_sharpened_logits_give_the_law_computed_token_by_token(temperature: float, top_k: int, top_p: float):
    logits = 2 * torch.randn(30, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits[:10, :, 2:5] = -torch.inf
    found = sharpened(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert found.shape == logits.shape and not found.isnan().any()
    expected = np.stack([by_hand(row, temperature, top_k, top_p) for row in logits.reshape(-1, 9).numpy()])
    np.testing.assert_allclose(found.softmax(-1).reshape(-1, 9).numpy(), expected, atol=1e-12)


def test_top_p_keeps_the_token_that_passes_it_and_at_least_one():
    logits = torch.tensor([0.25, 0.5, 0.125, 0.125], dtype=torch.float64).log()

    def kept(top_p: float) -> list[bool]:
        return torch.isfinite(sharpened(logits, top_p=top_p)).tolist()

    assert kept(1e-9) == kept(0.4) == [False, True, False, False]
    assert kept(0.51) == kept(0.74) == [True, True, False, False]
    assert sum(kept(0.76)) == 3 and kept(0.88) == kept(1.0) == [True] * 4


def test_ties_at_the_edge_of_top_k_all_stay_and_those_of_top_p_only_as_needed():
    logits = torch.tensor([1.0, 0.0, 0.0, -1.0])
    assert torch.isfinite(sharpened(logits, top_k=2)).tolist() == [True, True, True, False]
    flat = sharpened(torch.zeros(5, 8), top_p=0.3)
    assert torch.isfinite(flat).sum(-1).tolist() == [3] * 5


def test_forbidden_tokens_stay_forbidden_and_a_single_one_left_is_certain():
    logits = torch.tensor([[-torch.inf, 0.3, -torch.inf], [1.0, -torch.inf, 0.0]])
    for options in (
        {"temperature": 0.1},
        {"top_k": 2},
        {"top_p": 0.99},
        {"temperature": 2.0, "top_k": 2, "top_p": 0.9},
    ):
        found = sharpened(logits, **options)
        assert torch.isneginf(found[torch.isneginf(logits)]).all() and found[0].softmax(-1).tolist() == [0, 1, 0]
    assert torch.equal(sharpened(logits), logits)


def test_a_lower_temperature_top_k_and_top_p_each_lower_the_entropy():
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def entropy(**options: float) -> torch.Tensor:
        return torch.distributions.Categorical(logits=sharpened(logits, **options).clamp_min(-1e6)).entropy()

    for sharper in ({"temperature": 0.8}, {"top_k": 8}, {"top_p": 0.8}):
        assert (entropy(**sharper) < entropy()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sharpened_keeps_the_dtype(dtype: torch.dtype):
    assert sharpened(torch.zeros(2, 3, dtype=dtype), temperature=0.5, top_k=2, top_p=0.5).dtype == dtype


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"temperature": 0.0}, "temperature is 0"), ({"temperature": -1.0}, "temperature is -1"),
     ({"temperature": float("nan")}, "temperature is nan"), ({"top_k": -1}, "top_k is -1"),
     ({"top_p": 0.0}, r"top_p 0\.0"), ({"top_p": 1.2}, r"top_p 1\.2")],
)  # fmt: skip
def test_values_out_of_range_are_named_at_once(options: dict, sentence: str):
    for build in (lambda: sharpened(torch.zeros(3), **options), lambda: sharpener(**options)):
        with pytest.raises(ValueError, match=sentence):
            build()


def test_a_denoiser_sharpens_the_allowed_tokens_without_the_mask():
    logits = torch.zeros(1, 1, MASK + 1)
    logits[..., MASK], logits[..., 0], logits[..., 1] = 9.0, 8.0, 1.0
    allowed = torch.tensor([[False] + [True] * MASK])
    denoise = denoiser(lambda *_: logits, mask_id=MASK, allowed=allowed, sharpen=sharpener(top_k=1))
    p = denoise(torch.full((1, 1), MASK), torch.tensor(1.0))
    assert p.exp()[0, 0].tolist() == [0, 1, 0, 0, 0, 0, 0]
