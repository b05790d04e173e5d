import itertools

import pytest
import torch

from discrete.layout import Layout

LAYOUT = Layout(text_length=3, text_vocab=10, sides=(2,), image_vocabs=(6,))


def test_split_undoes_join():
    text, codes = torch.randint(0, 10, (5, 3)), torch.randint(0, 6, (5, 2, 2))
    x = LAYOUT.join(text, codes)
    assert x.shape == (5, 7) and x.max() < LAYOUT.mask_id == 16
    back = LAYOUT.split(x)
    assert torch.equal(back[0], text) and torch.equal(back[1], codes.flatten(1))


def test_joined_tokens_are_allowed_and_the_mask_is_not():
    x = LAYOUT.join(torch.randint(0, 10, (50, 3)), torch.randint(0, 6, (50, 4)))
    allowed = LAYOUT.allowed()
    assert allowed.gather(1, x.T).all()
    assert not allowed[:, LAYOUT.mask_id].any()
    assert allowed.sum(1).tolist() == [10, 10, 10, 6, 6, 6, 6]


def test_a_missing_side_is_masked():
    x = LAYOUT.join(torch.zeros(2, 3, dtype=torch.long), None)
    assert (x[:, LAYOUT.image] == LAYOUT.mask_id).all()
    with pytest.raises(ValueError, match="mask id 16"):
        LAYOUT.split(x)


def test_a_wrong_length_or_id_is_named():
    with pytest.raises(ValueError, match="text span holds 3 tokens, got 4"):
        LAYOUT.join(torch.zeros(2, 4, dtype=torch.long), None)
    with pytest.raises(ValueError, match=r"image tokens lie in \[0, 6\], expected \[0, 5\]"):
        LAYOUT.join(None, torch.tensor([[0, 1, 2, 6]]))
    with pytest.raises(ValueError, match=r"image_vocabs is \(0,\)"):
        Layout(text_length=3, text_vocab=10, sides=(2,), image_vocabs=(0,))
    with pytest.raises(ValueError, match=r"sides \(1, 2\) and layout.image_vocabs \(6,\)"):
        Layout(text_length=3, text_vocab=10, sides=(1, 2), image_vocabs=(6,))


def test_every_position_takes_the_codes_of_its_own_grid_alone():
    layout = Layout(text_length=1, text_vocab=2, sides=(1, 2), image_vocabs=(2, 3))
    assert (layout.image_length, layout.image_vocab, layout.side, layout.mask_id) == (5, 5, 2, 7)
    fits = []
    for codes in itertools.product(range(5), repeat=5):  # all that an image span could hold
        legal = codes[0] < 2 and min(codes[1:]) >= 2
        try:
            x = layout.join(None, torch.tensor([codes]))
        except ValueError as error:
            assert not legal and "different vocabularies" in str(error)
        else:
            assert legal and layout.allowed()[1:].gather(1, x[:, 1:].T).all()
            fits.append(codes)
    assert len(fits) == 2 * 3**4 == layout.allowed()[1:].sum(1).prod()
