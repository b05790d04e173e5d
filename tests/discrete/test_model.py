import itertools

import pytest
import torch

from discrete.layout import Layout
from discrete.model import MaskedTransformer, MaskedTransformerConfig
from discrete.predict import denoiser, subs
from discrete.sample import confidence
from discrete.schedule import Linear

LAYOUT = Layout(text_length=5, text_vocab=11, sides=(3,), image_vocabs=(7,))


def network(layout: Layout = LAYOUT, **options) -> MaskedTransformer:
    torch.manual_seed(0)
    model = MaskedTransformer(MaskedTransformerConfig(dim=16, layers=2, heads=2, **options), layout)
    for p in model.parameters():  # blocks start as the identity; make every path count
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def tokens(batch: int = 4) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x = LAYOUT.join(torch.randint(0, 11, (batch, 5), generator=g), torch.randint(0, 7, (batch, 9), generator=g))
    return torch.where(torch.rand(x.shape, generator=g) < 0.5, LAYOUT.mask_id, x)


@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"time": True}, {"text_layers": 0}])
def test_logits_are_finite_exactly_where_the_layout_allows(options: dict):
    logits = network(**options).logits(tokens(), torch.tensor(0.5))
    assert logits.shape == (4, LAYOUT.length, LAYOUT.mask_id + 1) and logits.dtype == torch.float32
    assert torch.equal(torch.isfinite(logits), LAYOUT.allowed().expand_as(logits))


@pytest.mark.parametrize("options", [{}, {"rotary": True}])
def test_text_alone_runs_and_differs_from_text_beside_a_hidden_image(options: dict):
    model, x = network(**options), tokens()
    alone, none = model(x[:, LAYOUT.text])
    assert alone.shape == (4, 5, 11) and none is None
    x[:, LAYOUT.image] = LAYOUT.mask_id
    assert not torch.allclose(alone, model(x).text)


def test_every_position_reads_every_other_one():
    model, x = network(), tokens(1)
    text, image = model(x)
    for i in range(LAYOUT.length):
        changed = x.clone()
        changed[:, i] = (x[:, i] + 1) % 11
        other = model(changed)
        assert (other.text != text).all() and (other.image != image).all()


def test_a_new_network_reads_each_position_alone_because_its_blocks_are_the_identity():
    # so each logit must stand at the position of its own token
    model, x = MaskedTransformer(MaskedTransformerConfig(dim=16, heads=2), LAYOUT), tokens(1)
    text, image = model(x)
    for i in range(LAYOUT.length):
        changed = x.clone()
        changed[:, i] = (x[:, i] + 1) % 11
        other = model(changed)
        moved = torch.cat([(other.text != text).any(-1), (other.image != image).any(-1)], 1)[0]
        assert moved.nonzero().flatten().tolist() == [i]


@pytest.mark.parametrize("options", [{}, {"rotary": True}])
def test_positions_are_told_apart_even_when_all_are_masked(options: dict):
    logits = network(**options)(LAYOUT.masked(1))
    assert len(logits.text[0].detach().unique(dim=0)) == 5 and len(logits.image[0].detach().unique(dim=0)) == 9


@pytest.mark.parametrize(("text_layers", "rotary"), [(0, False), (1, False), (0, True)])
def test_word_order_is_read_by_rotary_positions_even_without_learned_ones(text_layers: int, rotary: bool):
    model, x = network(text_layers=text_layers, rotary=rotary), tokens(1)[:, LAYOUT.text]
    torch.nn.init.zeros_(model.text_positions)
    turned = model(x.flip(1)).text.flip(1)
    assert torch.allclose(model(x).text, turned, atol=1e-5) == (text_layers == 0 and not rotary)


def test_time_is_read_only_where_asked():
    x, early, late = tokens(), torch.tensor(0.1), torch.full((4,), 0.9)
    assert torch.equal(network().logits(x, early), network().logits(x, late))
    timed = network(time=True)
    assert not torch.allclose(timed.logits(x, early), timed.logits(x, late))
    with pytest.raises(ValueError, match="give it t"):
        timed(x)


def test_image_tokens_start_in_the_geometry_of_the_codebook():
    model = network()
    codebook = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    codebook[1] = codebook[0] + 1e-4
    model.initialise_codes(codebook, torch.Generator().manual_seed(0))
    rows = model.tokens.weight[11:18]
    distances = torch.cdist(rows, rows) + torch.eye(7) * 9
    assert distances.argmin(1)[:2].tolist() == [1, 0] and distances[0, 1] < 0.01 * distances[0, 2:].min()
    with pytest.raises(ValueError, match="6 codes, the layout 7"):
        model.initialise_codes(codebook[:6], torch.Generator())


def test_the_codes_of_each_grid_start_alike_by_their_own_codebook():
    layout = Layout(text_length=5, text_vocab=11, sides=(1, 2), image_vocabs=(3, 4))
    model, g = network(layout), torch.Generator().manual_seed(2)
    top, bottom = 100 + 50 * torch.randn(3, 2, generator=g), 0.1 * torch.randn(4, 3, generator=g)
    model.initialise_codes(torch.block_diag(top, bottom), g)
    for rows, book in ((model.tokens.weight[11:14], top), (model.tokens.weight[14:18], bottom)):
        assert rows.mean(0).abs().max() < 1e-5 and 0.3 < rows.norm(dim=1).square().mean() < 3
        near = [torch.pdist(one.detach()).argmin() for one in (rows, book)]
        assert near[0] == near[1]


def test_all_probability_falls_on_sequences_whose_codes_are_of_their_grids():
    # by the chain rule over every sequence that is legal, 2 x 2 x 3^4 of them: what is missing from 1 leaked elsewhere
    layout = Layout(text_length=1, text_vocab=2, sides=(1, 2), image_vocabs=(2, 3))
    model = network(layout, rotary=True).double()
    legal = [range(2), range(2, 4), *[range(4, 7)] * 4]
    x = torch.tensor(list(itertools.product(*legal)))  # (324, 6)
    total = torch.zeros(len(x), dtype=torch.float64)
    for i in range(6):
        x_t = torch.where(torch.arange(6) < i, x, layout.mask_id)
        log_probs = subs(model.logits(x_t), x_t, layout.mask_id)
        total += log_probs[:, i].gather(1, x[:, i : i + 1])[:, 0]
    assert total.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_one_grid_alone_has_one_row_and_one_column_of_places_for_each_of_its_side():
    shapes = {name: tuple(value.shape) for name, value in network().state_dict().items()}
    assert shapes["rows"] == (3, 1, 16) and shapes["columns"] == (1, 3, 16)
    assert not {"cos", "sin"} & set(shapes)


def test_a_length_that_is_neither_text_nor_both_is_named():
    with pytest.raises(ValueError, match=r"7 tokens, expected 5 \(text\) or 14"):
        network()(tokens()[:, :7])


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="dim 16 over 3 heads"):
        MaskedTransformerConfig(dim=16, heads=3)


def test_one_call_fills_in_either_modality():
    model, x = network(), tokens()
    known = x != LAYOUT.mask_id
    denoise = denoiser(model.logits, mask_id=LAYOUT.mask_id, allowed=LAYOUT.allowed())
    out = confidence(
        denoise, Linear(), x, torch.linspace(1, 0, 5), mask_id=LAYOUT.mask_id, generator=torch.Generator(), known=known
    )
    assert torch.equal(out[known], x[known])
    LAYOUT.split(out)  # raises where a mask is left
