import pytest
import torch

from discrete.attend import causal, causal_blocks, check_blocks, documents, noisy_and_clean


def test_a_causal_mask_lets_a_token_see_itself_and_what_stands_before():
    assert torch.equal(causal(7), torch.ones(7, 7, dtype=torch.bool).tril())
    assert causal(1).tolist() == [[True]]


@pytest.mark.parametrize(("length", "size"), [(6, 1), (6, 2), (6, 3), (6, 6), (8, 4)])
def test_a_block_sees_itself_and_the_blocks_before_it(length: int, size: int):
    expected = [[j < (i // size + 1) * size for j in range(length)] for i in range(length)]
    assert causal_blocks(length, size).tolist() == expected


@pytest.mark.parametrize(("length", "size"), [(4, 1), (6, 2), (6, 3), (5, 5)])
def test_noisy_blocks_see_themselves_and_clean_blocks_before_and_clean_ones_never_noise(length: int, size: int):
    mask = noisy_and_clean(length, size)
    assert mask.shape == (2 * length, 2 * length) and mask.dtype == torch.bool
    for i in range(2 * length):
        for j in range(2 * length):
            own, other = i % length // size, j % length // size
            match i < length, j < length:
                case True, True:
                    allowed = own == other
                case True, False:
                    allowed = other < own
                case False, True:
                    allowed = False
                case _:
                    allowed = other <= own
            assert bool(mask[i, j]) == allowed, (i, j)


def test_the_clean_half_attends_as_a_causal_blocks_text():
    assert torch.equal(noisy_and_clean(12, 3)[12:, 12:], causal_blocks(12, 3))


def test_tokens_see_their_own_document_and_an_end_belongs_to_the_document_it_ends():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (5, 12), generator=g)
    x[0, :3], x[1] = 3, 0  # empty documents; a piece of one document
    mask = documents(x, 3)
    assert mask.shape == (5, 1, 12, 12)
    for row, seen in zip(x.tolist(), mask[:, 0].tolist(), strict=True):
        for i in range(12):
            for j in range(12):
                between = row[min(i, j) : max(i, j)]  # an end before the later of the two parts them
                assert seen[i][j] == (3 not in between)


@pytest.mark.parametrize("function", [causal_blocks, noisy_and_clean, check_blocks])
@pytest.mark.parametrize(("length", "size", "divisor"), [(10, 4, 2), (7, 3, 1), (6, 8, 6), (12, 0, 1), (12, -3, 1)])
def test_blocks_that_do_not_divide_are_named_with_a_divisor(function, length: int, size: int, divisor: int):
    with pytest.raises(
        ValueError, match=f"blocks of {size} .* length of {length}.* as blocks of {divisor}\\b"
    ) as error:
        function(length, size)
    if size > 1:
        check_blocks(int(str(error.value).rpartition(" ")[2]), size)
    check_blocks(length, divisor)
