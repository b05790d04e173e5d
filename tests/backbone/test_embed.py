import itertools

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from backbone.embed import Rotary, TimeEmbedding, rotary_1d, rotary_2d, rotate, sincos_2d, timestep_embedding


def test_timestep_features_are_those_of_diffusers_at_a_thousand_times_the_time():
    t = torch.tensor([0.0, 0.1234, 0.5, 1.0])
    expected = get_timestep_embedding(1000 * t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, 64), expected, atol=2e-4, rtol=0)


def test_times_that_bfloat16_cannot_tell_apart_have_different_features():
    t = torch.tensor([0.900, 0.9001])
    assert t.bfloat16()[0] == t.bfloat16()[1]
    with torch.autocast("cpu", torch.bfloat16):
        features = timestep_embedding(t, 64)
        embedded = TimeEmbedding(16)(t)
    assert features.dtype == embedded.dtype == torch.float32
    assert (features[0] - features[1]).abs().max() > 0.05
    assert (embedded[0] - embedded[1]).abs().max() > 1e-4


@pytest.mark.parametrize("dim", [0, 7])
def test_an_odd_width_is_refused(dim):
    with pytest.raises(ValueError, match=f"dim is {dim}, expected a positive multiple of 2"):
        timestep_embedding(torch.zeros(1), dim)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(2, 2, dim)


def test_sincos_tells_every_place_apart_and_splits_rows_from_columns():
    table = sincos_2d(5, 7, 16)
    assert table.shape == (35, 16)
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1
    grid = table.view(5, 7, 16)
    assert torch.equal(grid[:, 0, :8], grid[:, 6, :8])  # the first half knows only the row
    assert torch.equal(grid[0, :, 8:], grid[4, :, 8:])


def scores(rotary, q, k):
    length = rotary.cos.shape[0]
    q, k = (x.expand(1, 1, length, -1) for x in (q, k))
    return (rotate(q, rotary) @ rotate(k, rotary).mT)[0, 0]  # (L, L)


def test_rotary_scores_depend_on_the_distance_alone():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=g)
    line = scores(rotary_1d(9, 16), q, k)
    for offset in range(-8, 9):
        assert line.diagonal(offset).std(correction=0) < 1e-4
    grid = scores(rotary_2d(4, 5, 16), q, k).view(4, 5, 4, 5)
    torch.testing.assert_close(grid[0, 0, 1, 2], grid[2, 1, 3, 3])
    torch.testing.assert_close(grid[3, 4, 1, 4], grid[2, 0, 0, 0])
    assert (grid[0, 0, 1, 2] - grid[0, 0, 2, 1]).abs() > 1e-3


def test_a_coarse_place_stands_in_the_middle_of_the_fine_ones_that_it_covers():
    q = torch.randn(16, generator=torch.Generator().manual_seed(3))
    coarse, fine = rotary_2d(2, 3, 16, spacing=2.0), rotary_2d(4, 6, 16)
    both = Rotary(*(torch.cat(pair) for pair in zip(coarse, fine, strict=True)))
    found = scores(both, q, q)[:6, 6:].view(2, 3, 4, 6)  # even in each distance, since both are q
    for row, column in itertools.product(range(2), range(3)):
        square = found[row, column, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(square, square[:1, :1].expand(2, 2))
        torch.testing.assert_close(square, found[0, 0, :2, :2])
    for one, same in zip(coarse, rotary_2d(2, 3, 16, spacing=1.0), strict=True):
        assert not torch.allclose(one, same)


def test_rotation_keeps_lengths_and_dtype():
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    turned = rotate(x, rotary_1d(6, 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert rotate(x.bfloat16(), rotary_1d(6, 8)).dtype == torch.bfloat16


def test_tables_of_two_spans_can_be_joined():
    text, image = rotary_1d(3, 8), rotary_2d(2, 2, 8)
    joined = Rotary(*(torch.cat(pair) for pair in zip(text, image, strict=True)))
    x = torch.randn(1, 1, 7, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rotate(x, joined)[:, :, 3:], rotate(x[:, :, 3:], image))
