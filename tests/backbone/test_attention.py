import sys

import pytest
import torch

from backbone.attention import _bias, attention, available

SHAPES = [(2, 3, 5, 5, 8), (1, 2, 4, 7, 16), (3, 1, 1, 9, 4)]


def draw(shape, dtype=torch.float32):
    batch, heads, queries, keys, width = shape
    g = torch.Generator().manual_seed(0)
    sizes = [(batch, heads, queries, width), (batch, heads, keys, width), (batch, heads, keys, width)]
    return [torch.randn(size, generator=g, dtype=dtype) for size in sizes]


def masks(shape):
    batch, heads, queries, keys, _ = shape
    g = torch.Generator().manual_seed(1)
    full = torch.rand(batch, heads, queries, keys, generator=g) < 0.5
    full[..., 0] = True
    return {"none": None, "full": full, "padding": full[:, :1, :1], "queries": full[:1, :1]}


def device(backend):
    return "cuda" if backend == "xformers" else "cpu"


@pytest.mark.parametrize("backend", ["auto", *available()])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "full", "padding", "queries"])
def test_every_backend_is_the_softmax_formula(backend, shape, kind):
    q, k, v = draw(shape)
    mask = masks(shape)[kind]
    scores = torch.einsum("bhld,bhsd->bhls", q.double(), k.double()) / shape[-1] ** 0.5
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    expected = torch.einsum("bhls,bhsd->bhld", scores.exp() / scores.exp().sum(-1, keepdim=True), v.double())
    where = device(backend)
    mask = None if mask is None else mask.to(where)
    found = attention(q.to(where), k.to(where), v.to(where), mask, backend=backend)
    torch.testing.assert_close(found.cpu().double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", available())
def test_a_row_that_may_attend_to_nothing_gives_zeros_and_finite_gradients(backend):
    q, k, v = (x.to(device(backend)).requires_grad_() for x in draw(SHAPES[0]))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool, device=q.device)
    mask[0, 0, 2] = False
    out = attention(q, k, v, mask, backend=backend)
    assert torch.equal(out[0, :, 2], torch.zeros_like(out[0, :, 2]))
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert torch.equal(q.grad[0, :, 2], torch.zeros_like(q.grad[0, :, 2]))


@pytest.mark.parametrize("backend", available())
def test_gradients_agree_with_the_fused_kernel(backend):
    mask = masks(SHAPES[1])["full"]
    grads = []
    for name in ("sdpa", backend):
        q, k, v = (x.to(device(name)).requires_grad_() for x in draw(SHAPES[1]))
        attention(q, k, v, mask.to(q.device), backend=name).square().sum().backward()
        grads.append([x.grad.cpu() for x in (q, k, v)])
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", available())
def test_masked_keys_do_not_matter(backend):
    q, k, v = (x.to(device(backend)) for x in draw(SHAPES[1]))
    mask = torch.arange(7, device=q.device) < 4
    changed = k.clone(), v.clone()
    for x in changed:
        x[:, :, 4:] = 1e3
    assert torch.equal(attention(q, k, v, mask, backend=backend), attention(q, *changed, mask, backend=backend))


def test_the_matmul_backend_sums_exponentials_in_float32():
    q, k = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 200, 8)
    v = torch.ones(1, 1, 200, 8)
    out = attention(*(x.bfloat16() for x in (q, k, v)), backend="matmul")
    assert out.dtype == torch.bfloat16
    assert (out.float() - 1).abs().max() < 0.02


def test_a_mask_that_is_not_bool_is_refused():
    q, k, v = draw(SHAPES[0])
    with pytest.raises(TypeError, match="with True = attend"):
        attention(q, k, v, torch.zeros(5, 5))


def test_missing_xformers_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'palimpsest\[gpu\]'"):
        attention(*draw(SHAPES[0]), backend="xformers")
    assert available() == ("sdpa", "matmul")


@pytest.mark.parametrize("keys", [1, 8, 13])
def test_the_bias_for_xformers_is_zero_where_attended_in_aligned_rows(keys):
    mask = torch.rand(2, 3, 4, keys, generator=torch.Generator().manual_seed(0)) < 0.5
    bias = _bias(mask, torch.float32)
    assert torch.equal(bias == 0, mask)
    assert (bias[~mask] == -torch.inf).all()
    assert all(stride % 8 == 0 for stride in bias.stride()[:3])
