"""Sets drawn by weight: shares, epochs of each set, no long runs, whatever the ranks, the workers and the place."""

import pickle
from collections import Counter
from fractions import Fraction
from itertools import groupby, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.decode import caption_only, image_and_caption
from pipelines.data.joined import Joined, Part
from pipelines.data.mixture import LONGEST, Mixture, Turns, each_once, whole_turns
from pipelines.data.order import Shuffle
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream, once, some
from pipelines.errors import DataError
from pipelines.ledger import Ledger, summary

from .conftest import samples, tar

WEIGHTS = st.lists(st.integers(1, 30).map(lambda tenths: tenths / 10), min_size=1, max_size=5)
PICTURES = image_and_caption(16)
SIZES = {"data": 13, "emoji": 8, "books": 21}


def sets_of(turns, count, start=0):
    return [turns.at(position)[0] for position in range(start, start + count)]


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([1.0], (1,)),
        ([3.0, 1.0], (3, 1)),
        ([0.7, 0.2, 0.1], (7, 2, 1)),
        ([1e-3, 1.0], (1, 1000)),
        ([2, 2, 4], (1, 1, 2)),
    ],
)
def test_a_period_is_the_shortest_in_which_weights_are_whole(weights, turns):
    assert whole_turns(weights) == turns


def test_shares_of_a_period_that_would_be_too_long_are_rounded():
    weights = [1.0, 0.33333, 0.123456789]
    turns = whole_turns(weights)
    assert sum(turns) == LONGEST
    assert all(abs(n / LONGEST - w / sum(weights)) < 1 / LONGEST for n, w in zip(turns, weights, strict=True))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_that_draw_nothing_are_refused(weight):
    with pytest.raises(ValueError, match=r"expected numbers above 0"):
        whole_turns([1.0, weight])


def test_a_share_of_less_than_a_turn_is_refused():
    with pytest.raises(ValueError, match=r"less than one sample in 10,000"):
        whole_turns([1.0, 1e-5])


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 10**12))
def test_a_period_holds_the_turns_of_each_set_and_the_turns_before_it_are_known(weights, seed, period):
    turns = Turns(weights, seed)
    start = period * turns.period
    found = [turns.at(position) for position in range(start, start + turns.period)]
    for k, count in enumerate(turns.turns):
        assert [turn for which, turn in found if which == k] == list(range(period * count, (period + 1) * count))
    again = pickle.loads(pickle.dumps(turns))
    assert [again.at(position) for position in reversed(range(start, start + turns.period))] == found[::-1]


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 99), st.integers(0, 5000), st.integers(1, 400))
def test_any_window_holds_of_each_set_what_its_share_asks_for(weights, seed, start, length):
    turns = Turns(weights, seed)
    counts = Counter(sets_of(turns, length, start))
    for k, count in enumerate(turns.turns):
        share = count / turns.period
        assert abs(counts[k] - share * length) < 2 * (1 + len(weights) * share)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [0.5003, 0.4997], [1.0, 1.0, 1.0, 1.0]])
def test_no_set_comes_in_long_runs(weights):
    found = sets_of(Turns(weights, 5), 20_000)
    for k, weight in enumerate(weights):
        other = max(weight for j, weight in enumerate(weights) if j != k)  # comes once in two of its parts at least
        longest = max(len(list(run)) for which, run in groupby(found) if which == k)
        assert longest <= 2 * weight / other + 2  # by chance alone one half runs to 14, three quarters to 30
    assert found != sets_of(Turns(weights, 6), 20_000)  # another seed, another order


def test_every_place_of_a_period_is_equally_likely_for_a_set_of_one_turn():
    """Chi-square over 6000 periods: where the one turn of the second set falls among four places."""
    found = np.array(sets_of(Turns([3.0, 1.0], 0), 4 * 6000)).reshape(-1, 4).argmax(1)
    inner = np.bincount(found, minlength=4) / 6000
    # its place is uniform on the line, and the others fall one in each third: the middle places are met as often
    assert abs(inner[0] - inner[3]) < 0.03 and abs(inner[1] - inner[2]) < 0.03 and inner.min() > 0.15


@settings(deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 20), min_size=5, max_size=5), st.integers(0, 9))
def test_each_once_shows_every_sample_once_and_leaves_turns_to_those_that_have_some(weights, lengths, seed):
    lengths = lengths[: len(weights)]
    found = list(each_once(lengths, weights, seed))
    assert sorted(found) == [(k, i) for k, length in enumerate(lengths) for i in range(length)]
    for k in range(len(lengths)):
        assert [i for which, i in found if which == k] == list(range(lengths[k]))


def test_each_once_takes_no_longer_than_there_are_samples():
    assert len(list(each_once([30, 30_000], [1000.0, 0.2], 0))) == 30_030


def test_each_set_goes_through_its_own_epochs():
    sizes, weights = [[5, 4], [3], [20, 1]], [0.5, 0.3, 0.2]
    orders = [Shuffle(part, seed, 2) for seed, part in enumerate(sizes)]
    mixture = Mixture(orders, [9, 3, 21], weights, 7, [1, 1, 1])
    found = [mixture.number(position) for position in range(1000)]
    starts = [0, 9, 12, 33]
    for k, order in enumerate(orders):
        own = [number - starts[k] for number in found if starts[k] <= number < starts[k + 1]]
        assert own == [order.number(cursor) for cursor in range(len(own))]
        for epoch in range(len(own) // len(order)):
            assert sorted(own[epoch * len(order) : (epoch + 1) * len(order)]) == list(range(len(order)))
        assert len(own) == 1000 * Fraction(str(weights[k]))


def test_the_shards_around_a_position_hold_what_is_read_until_others_are_named():
    sizes = [[5, 4, 2, 6], [3], [20, 1, 7]]
    lengths, shards = [sum(part) for part in sizes], [len(part) for part in sizes]
    mixture = Mixture([Shuffle(part, 1, 2) for part in sizes], lengths, [0.5, 0.3, 0.2], 7, shards)
    starts = np.cumsum([0, *(size for part in sizes for size in part)])
    position = 0
    while position < 1500:
        around, end = mixture.group(position)
        assert position < end and len(around) <= 2 + 1 + 2
        read = [mixture.number(place) for place in range(position, end)]
        assert {int(np.searchsorted(starts, number, side="right")) - 1 for number in read} <= set(around)
        position = end


@pytest.fixture
def folder(tmp_path):
    for name, count in SIZES.items():
        half = count // 2
        tar(tmp_path / name / "train-0.tar", samples(half, prefix=f"{name}-a"))
        tar(tmp_path / name / "train-1.tar", samples(count - half, prefix=f"{name}-b"))
    return tmp_path


def opened(folder, **weights):
    weights = weights or {"data": 2.0, "emoji": 1.0, "books": 1.0}
    return Joined([Part(name, open_split(folder / name, "train"), weight) for name, weight in weights.items()])


def stream_of(folder, block=1, **settings):
    split = opened(folder)
    return Stream(split=split, order=split.order(3, block), **{"decode": caption_only, "batch": 16, **settings})


def keys(stream, count, cursor=0):
    return [batch["key"] for batch, _ in islice(stream.batches(cursor), count)]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_mixture_is_the_same_for_any_number_of_ranks_and_workers(folder, world, workers):
    split = opened(folder)
    order, count, cursor = split.order(3, 1), 12, 32
    wanted = [split[order.number(position)].key for position in range(cursor, cursor + count * 16)]
    ranks = []
    for rank in range(world):
        stream = stream_of(folder, rank=rank, world=world)
        copies = [pickle.loads(pickle.dumps(stream)) for _ in range(workers or 1)]
        made = (copies[i % len(copies)].made(cursor + 16 * i) for i in range(count))
        ranks.append([batch["key"] for batch, _ in made])
    assert [key for step in zip(*ranks, strict=True) for part in step for key in part] == wanted
    assert Counter(key.split("-")[0] for key in wanted) == {"data": 96, "emoji": 48, "books": 48}


def test_processes_that_read_ahead_give_the_same_mixture(folder):
    assert keys(stream_of(folder, workers=3), 10, 16) == keys(stream_of(folder), 10, 16)


def test_a_resumed_mixture_equals_the_uninterrupted_one_with_broken_samples(folder):
    tar(folder / "emoji" / "train-0.tar", samples(9, broken={3, 4}, empty={7}, prefix="emoji-"))
    settings = {"decode": PICTURES, "batch": 8}
    whole = list(islice(stream_of(folder, **settings).batches(), 20))
    for done in (1, 7, 13, 19):
        resumed = keys(stream_of(folder, **settings), 20 - done, whole[done - 1][1])
        assert resumed == [batch["key"] for batch, _ in whole[done:]]
    found = Counter(key.split("-")[0] for batch, _ in whole for key in batch["key"])
    assert found == {"data": 80, "emoji": 40, "books": 40}  # those that stand in are of the same set


def test_broken_samples_are_counted_and_named_by_set(folder):
    tar(folder / "emoji" / "train-0.tar", samples(9, broken={3, 4}, empty={7}, prefix="emoji-"))
    tar(folder / "books" / "train-0.tar", samples(9, broken={1}, prefix="books-"))
    ledger, stream = Ledger(), stream_of(folder, decode=PICTURES)
    for _ in islice(ledger.watch("train", stream).batches(), 30):
        pass
    told = summary(ledger.rows())
    assert {name: (one["broken"], one["empty"]) for name, one in told.items()} == {
        "train of emoji": (2, 1),
        "train of books": (1, 0),
    }
    assert told["train of books"]["first"][0]["name"] == "books-001 in train-0.tar of books"
    again = stream_of(folder, decode=PICTURES)
    restored = Ledger()
    restored.restore([ledger.rows()])
    restored.watch("train", again)
    assert again.skipped.broken.keys() == stream.skipped.broken.keys()


def test_too_many_broken_samples_of_one_set_end_a_run_however_large_the_others(folder):
    tar(folder / "data" / "train-2.tar", samples(900, prefix="data-c"))  # of all, 9 might be broken
    tar(folder / "emoji" / "train-0.tar", samples(30, broken=set(range(6)), prefix="emoji-"))
    with pytest.raises(DataError, match=r"6 of 34 samples of the train split of emoji are broken, more than the 5"):
        keys(stream_of(folder, decode=PICTURES), 200)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_without_a_usable_sample_ends_a_run_instead_of_hanging(folder, workers):
    for name in ("train-0.tar", "train-1.tar"):
        tar(folder / "emoji" / name, samples(2, empty={0, 1}, prefix=name[:7]))
    with pytest.raises(DataError, match=r"No usable sample in the train split of emoji: 0 are broken and 4 have"):
        keys(stream_of(folder, workers=workers), 20)


def test_some_and_once_take_each_sample_once_and_by_weight(folder):
    split = opened(folder)
    drawn = some(split, caption_only, 16, seed=0)["key"]
    assert Counter(key.split("-")[0] for key in drawn) == {"data": 8, "emoji": 4, "books": 4}
    assert drawn != some(split, caption_only, 16, seed=1)["key"]
    whole = some(split, caption_only, 99, seed=0)["key"]
    assert len(whole) == len(set(whole)) == 42 and whole[:16] == drawn
    first = next(once(split, caption_only, batch=16))["key"]
    assert Counter(key.split("-")[0] for key in first) == {"data": 8, "emoji": 4, "books": 4}
    assert [key for key in first if key.startswith("data")] == [
        open_split(folder / "data", "train")[i].key for i in range(8)
    ]
    batches = [batch["key"] for batch in once(split, caption_only, batch=16)]
    assert sorted(key for batch in batches for key in batch) == sorted(whole)


def test_files_of_many_sets_stay_within_the_limit(folder):
    split = opened(folder)
    split.hold(1000)
    again = pickle.loads(pickle.dumps(split))
    for one in (*split.parts, *again.parts):
        assert one.split._files.limit == 256 // 3
