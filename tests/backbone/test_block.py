import pytest
import torch
from diffusers.models.activations import SwiGLU

from backbone.block import Block, BlockStyle, FeedForward, recomputed
from backbone.embed import rotary_1d

DIM, HEADS = 16, 2
KINDS = {"plain": {}, "cond": {"cond_dim": 8}, "cross": {"cross_dim": 12}, "both": {"cond_dim": 8, "cross_dim": 12}}
KINDS |= {
    "swiglu": {**KINDS["both"], "style": BlockStyle(activation="swiglu")},
    "gelu": {**KINDS["both"], "style": BlockStyle(activation="gelu", qk_norm=False)},
}


def inputs(kind):
    g = torch.Generator().manual_seed(0)
    x, cond, context = (torch.randn(size, generator=g) for size in [(3, 5, DIM), (3, 8), (3, 4, 12)])
    return x, cond if "cond_dim" in KINDS[kind] else None, context if "cross_dim" in KINDS[kind] else None


def block(kind, *, trained=True):
    torch.manual_seed(0)
    made = Block(DIM, HEADS, **KINDS[kind])
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_block_is_the_identity(kind):
    x, cond, context = inputs(kind)
    assert torch.equal(block(kind, trained=False)(x, cond, context), x)
    assert not torch.allclose(block(kind)(x, cond, context), x, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_after_the_first_steps(kind):
    made = block(kind, trained=False)
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        made(*inputs(kind)).square().mean().backward()
        optimiser.step()
    missing = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_does_not_depend_on_its_batch(kind):
    whole = block(kind)(*inputs(kind))
    alone = block(kind)(*(None if x is None else x[1:2] for x in inputs(kind)))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-5)


def test_without_positions_self_attention_is_equivariant_and_rotary_breaks_that():
    x, _, _ = inputs("plain")
    order = torch.tensor([3, 0, 4, 1, 2])
    made = block("plain")
    torch.testing.assert_close(made(x)[:, order], made(x[:, order]), atol=1e-5, rtol=1e-5)
    rotary = rotary_1d(5, DIM // HEADS)
    assert not torch.allclose(made(x, rotary=rotary)[:, order], made(x[:, order], rotary=rotary), atol=1e-3)


def test_masked_positions_and_masked_context_do_not_matter():
    x, cond, context = inputs("both")
    made = block("both")
    keys, words = torch.arange(5) < 3, (torch.arange(4) < 2)[None, None, None]
    other_x, other_context = x.clone(), context.clone()
    other_x[:, 3:], other_context[:, 2:] = 7.0, -7.0
    expected = made(x, cond, context, mask=keys, context_mask=words)
    found = made(other_x, cond, other_context, mask=keys, context_mask=words)
    torch.testing.assert_close(found[:, :3], expected[:, :3])
    assert not torch.allclose(made(other_x, cond, other_context)[:, :3], expected[:, :3])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_stays_near_float32(kind):
    expected = block(kind)(*inputs(kind))
    with torch.autocast("cpu", torch.bfloat16):
        found = block(kind)(*inputs(kind))
    assert (found.float() - expected).square().mean() < 1e-3 * expected.square().mean()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="dim 16 is not a multiple of heads 3"):
        Block(DIM, 3)


def test_a_block_compiles_as_one_graph_and_stays_the_same():
    made, (x, cond, context) = block("both"), inputs("both")
    rotary = rotary_1d(5, DIM // HEADS)
    words = (torch.arange(4) < 3)[None, None, None]
    expected = made(x, cond, context, context_mask=words, rotary=rotary)
    made.compile(fullgraph=True, backend="eager")
    found = made(x, cond, context, context_mask=words, rotary=rotary)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [("relu2", lambda h: h.clamp(min=0) ** 2), ("gelu", lambda h: h * torch.special.ndtr(h))],
    ids=["relu2", "gelu"],
)
def test_activations_are_their_formulas(activation, formula):
    feed, x = FeedForward(DIM, 24, activation).double(), torch.randn(3, 5, DIM, dtype=torch.float64)
    torch.testing.assert_close(feed(x), feed.out(formula(feed.linear_in(x))))


def test_swiglu_is_that_of_diffusers():
    feed, theirs, x = FeedForward(DIM, 64, "swiglu"), SwiGLU(DIM, 40, bias=True), torch.randn(3, 5, DIM)
    for name in ("weight", "bias"):  # theirs puts the gate last
        gate, value = getattr(feed.linear_in, name).chunk(2)
        getattr(theirs.proj, name).data.copy_(torch.cat([value, gate]))
    torch.testing.assert_close(feed(x), feed.out(theirs(x)))


@pytest.mark.parametrize("hidden", [64, 256, 1024])
def test_swiglu_keeps_the_number_of_parameters_in_widths_of_eight(hidden):
    dim = hidden // 4
    counts = [sum(p.numel() for p in FeedForward(dim, hidden, a).parameters()) for a in ("relu2", "swiglu")]
    width = FeedForward(dim, hidden, "swiglu").out.in_features
    assert width % 8 == 0
    assert abs(width - 2 * hidden / 3) <= 4
    assert counts[1] == pytest.approx(counts[0], rel=0.06)


def test_the_default_style_has_the_parameters_it_always_had():
    """Both model packages store blocks by these names."""
    names = {
        "attention.query.weight": (16, 16),
        "attention.key_value.weight": (32, 16),
        "attention.out.weight": (16, 16),
        "attention.out.bias": (16,),
        "attention.query_norm.weight": (8,),
        "attention.key_norm.weight": (8,),
        "feed.linear_in.weight": (64, 16),
        "feed.linear_in.bias": (64,),
        "feed.out.weight": (16, 64),
        "feed.out.bias": (16,),
    }
    norms = {"attention_norm.weight": (16,), "feed_norm.weight": (16,)}
    modulation = {"modulation.weight": (96, 8), "modulation.bias": (96,)}
    for kind, rest in (("plain", norms), ("cond", modulation)):
        found = {name: tuple(value.shape) for name, value in block(kind).state_dict().items()}
        assert found == names | rest


def test_a_recomputed_block_has_the_same_gradients_and_keeps_less():
    made, (x, cond, context) = block("both"), inputs("both")
    sizes, grads = [], []
    for run in (lambda f, *given: f(*given), recomputed):
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda kept, h=held: h.append(kept.numel()) or kept, lambda k: k):
            out = run(made, x, cond, context)
        sizes.append(sum(held))
        made.zero_grad()
        out.square().sum().backward()
        grads.append([p.grad for p in made.parameters()])
    assert all(map(torch.equal, *grads))
    assert sizes[1] < sizes[0] / 10
