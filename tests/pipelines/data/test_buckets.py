"""Pictures in buckets by their ratio: one shape a batch, each picture once an epoch, the same for all ranks."""

import io
import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data import shapes as shapes_module
from pipelines.data.buckets import BucketOrder, Cells
from pipelines.data.decode import image_and_caption
from pipelines.data.index import cache_of, scan
from pipelines.data.joined import Joined, Part
from pipelines.data.picture import fit, open_picture, to_rgb
from pipelines.data.ratios import Buckets, Shape, nearest
from pipelines.data.shapes import header, shapes_of
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from pipelines.errors import DataError

from .conftest import png, samples, tar

SHAPES = Buckets(sizes=("16x16", "24x12", "12x24")).shapes
KINDS = {"square": (20, 20), "tall": (10, 21), "wide": (30, 14)}  # (width, height)
OF = {"tall": Shape(24, 12), "square": Shape(16, 16), "wide": Shape(12, 24)}
DECODE = image_and_caption(16)


def pictures(broken=(), empty=(), **counts):
    """Members of a tar: so many pictures of each kind, whose keys begin with it."""
    members = {}
    for kind, count in counts.items():
        for i in range(count):
            key = f"{kind}{i:03d}"
            whole = png((i, 10, 10), KINDS[kind])
            members[f"{key}.png"] = whole[: len(whole) - 30] if key in broken else whole
            members[f"{key}.txt"] = b"" if key in empty else key.encode()
    return members


def written(folder):
    tar(folder / "a" / "train-0.tar", pictures(square=11, tall=5))
    tar(folder / "a" / "train-1.tar", pictures(wide=9, square=6))
    tar(folder / "a" / "train-2.tar", pictures(tall=2))
    tar(folder / "b" / "train-0.tar", {f"b-{name}": data for name, data in pictures(wide=12, square=3).items()})
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return both(written(tmp_path_factory.mktemp("mixed")))


def order_of(split, batch=4, seed=3, block=2):
    return BucketOrder(Cells(split, SHAPES), batch, seed, block)


def stream_of(split, batch=4, seed=3, block=2, **settings):
    return Stream(split=split, decode=DECODE, batch=batch, order=order_of(split, batch, seed, block), **settings)


def both(folder, weights=(3.0, 1.0)):
    return Joined([Part(n, open_split(folder / n, "train"), w) for n, w in zip("ab", weights, strict=True)])


def kind_of(key):
    return key.removeprefix("b-").rstrip("0123456789")


def test_listed_shapes_stand_by_their_ratio():
    assert Buckets(sizes=("16x16", "12x24", "24x12")).shapes == (Shape(24, 12), Shape(16, 16), Shape(12, 24))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.floats(1, 4))
def test_made_shapes_fit_the_pixels_the_ratio_and_the_step(side, step, ratio):
    found = Buckets(pixels=(side * step) ** 2, ratio=ratio, multiple=step).shapes
    assert Shape(side * step, side * step) in found
    for one in found:
        assert one.height % step == one.width % step == 0 and one.height * one.width <= (side * step) ** 2
        assert max(one) / min(one) <= ratio + 1e-9
        assert one[::-1] in found  # lying as well as standing
    assert len({one.width / one.height for one in found}) == len(found)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "either sizes .* or pixels"),
        ({"sizes": ("16x16",), "pixels": 256}, "either sizes .* or pixels"),
        ({"sizes": ("16 x 16",)}, "buckets.sizes has '16 x 16', expected \"HxW\""),
        ({"sizes": ("0x16",)}, "buckets.sizes has '0x16'"),
        ({"sizes": ("16x16", "32x32")}, "16x16 and 32x32, which have the same ratio"),
        ({"pixels": 4096, "ratio": 0.5}, "buckets.ratio is 0.5, expected 1"),
        ({"pixels": 4096, "ratio": float("nan")}, "buckets.ratio is nan"),
        ({"pixels": 4096, "multiple": 0}, "buckets.multiple is 0"),
        ({"pixels": 900, "multiple": 32}, "buckets.pixels is 900, less than a square of multiple = 32 has"),
    ],
)
def test_shapes_that_are_none_are_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        Buckets(**asked)


def test_the_nearest_bucket_is_that_of_the_nearest_ratio():
    asked = np.array([[100, 100], [100, 139], [100, 145], [300, 100], [0, 0]])  # sqrt 2 is the middle of 1 and 2
    assert nearest(asked, SHAPES).tolist() == [1, 1, 2, 0, 1]


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_header_tells_what_decoding_gives(suffix, orientation):
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 14), "red").save(data, suffix, **({} if suffix in ("GIF", "BMP") else {"exif": exif}))
    decoded = to_rgb(open_picture(data.getvalue()))
    assert header(data.getvalue()) == (decoded.height, decoded.width)


def test_headers_are_read_once_and_kept_with_the_index(folder, monkeypatch):
    split = open_split(folder / "a", "train")
    assert split.index_of(0).shapes is None  # not before somebody asks
    found = shapes_of(split, 0)
    assert found.tolist() == [[20, 20]] * 11 + [[21, 10]] * 5
    monkeypatch.setattr(shapes_module, "header", None)  # whoever asks again would fail
    for again in (split, open_split(folder / "a", "train"), pickle.loads(pickle.dumps(split))):
        assert np.array_equal(shapes_of(again, 0), found)
    assert split.index_of(0).digest() == scan(folder / "a" / "train-0.tar").digest()
    cache_of(folder / "a" / "train-0.tar").unlink()
    with pytest.raises(TypeError):
        shapes_of(open_split(folder / "a", "train"), 0)


def test_where_nothing_may_be_written_shapes_are_kept_in_memory(folder, monkeypatch):
    (folder / "a").chmod(0o555)
    split = open_split(folder / "a", "train")
    found = shapes_of(split, 1)
    monkeypatch.setattr(shapes_module, "header", None)
    assert np.array_equal(shapes_of(pickle.loads(pickle.dumps(split)), 1), found)
    (folder / "a").chmod(0o755)


def test_long_previews_and_broken_bytes_do_not_hinder(tmp_path):
    data, exif = io.BytesIO(), Image.Exif()
    Image.new("RGB", (30, 14)).save(data, "JPEG", exif=exif, icc_profile=bytes(100_000))
    tar(tmp_path / "train.tar", {"a.jpg": data.getvalue(), "b.png": b"nothing", "c.txt": b"no picture"})
    assert shapes_of(open_split(tmp_path, "train"), 0).tolist() == [[14, 30], [0, 0], [0, 0]]


def test_a_square_is_cut_as_it_always_was():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8))
    side, left = 37, (53 - 37) / 2
    expected = image.resize((16, 16), Image.Resampling.LANCZOS, box=(left, 0, left + side, side))
    assert np.array_equal(np.asarray(fit(image, 16)), np.asarray(expected))


def test_a_bucket_shows_the_largest_middle_part_of_its_ratio():
    """Stripes: what is cut is cut from both ends alike, and nothing is squeezed."""
    columns = np.repeat(np.arange(60, dtype=np.uint8)[None, :, None] * 4, 20, 0).repeat(3, 2)
    found = np.asarray(fit(Image.fromarray(columns), 20, 40))  # 60 wide and 20 high: 10 from each end
    assert found.shape == (20, 40, 3) and found[0, :, 0].tolist() == columns[0, 10:50, 0].tolist()
    turned = np.asarray(fit(Image.fromarray(columns.transpose(1, 0, 2)), 40, 20))
    assert np.array_equal(turned, found.transpose(1, 0, 2))


def test_every_batch_is_of_one_bucket_and_each_picture_comes_once_an_epoch(folder):
    split = open_split(folder / "a", "train")  # 17 square, 7 tall, 9 wide
    epochs, total, there = 12, 33, [split[i].key for i in range(33)]
    batches = [batch for batch, _ in islice(stream_of(split).batches(), epochs * total // 4)]
    seen = {kind: [] for kind in KINDS}
    for batch in batches:
        (kind,) = {kind_of(key) for key in batch["key"]}
        assert tuple(batch["image"].shape) == (4, 3, *OF[kind])
        seen[kind] += batch["caption"]
    for kind, count in (("square", 17), ("tall", 7), ("wide", 9)):
        whole = seen[kind]
        assert abs(len(whole) - epochs * count) <= 4 * len(KINDS)  # what is left over waits
        for epoch in range(len(whole) // count):
            own = Counter(whole[epoch * count : (epoch + 1) * count])
            assert own == Counter(key for key in there if kind_of(key) == kind)


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_cell_is_gone_through_epoch_by_epoch_by_number(folder, batch):
    split = open_split(folder / "a", "train")
    order, cells = order_of(split, batch), Cells(split, SHAPES)
    members = {b: sorted(i for i in range(len(split)) if kind_of(split[i].key) == kind)
               for b, kind in enumerate(("tall", "square", "wide"))}  # fmt: skip
    assert [int(n) for n in cells.counts[0].sum(0)] == [len(members[b]) for b in range(3)]
    seen = {b: [] for b in range(3)}
    for position in range(40 * 33 // batch * batch):
        seen[SHAPES.index(order.shape(position))].append(order.number(position))
    for b, numbers in seen.items():
        size = len(members[b])
        for epoch in range(len(numbers) // size):
            assert sorted(numbers[epoch * size : (epoch + 1) * size]) == members[b]
        assert len(numbers) // size >= 37


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**40), st.data())
def test_what_stands_where_depends_on_nothing_but_seed_and_position(mixed, seed, data):
    used = order_of(mixed, seed=seed)
    far = data.draw(st.integers(0, 10**9))
    positions = [*range(80), *range(far, far + 9)]
    whole = [(used.number(position), used.shape(position)) for position in positions]
    again = pickle.loads(pickle.dumps(used))
    for i in data.draw(st.permutations(range(len(positions)))):
        assert (again.number(positions[i]), again.shape(positions[i])) == whole[i]


def test_a_mixture_in_buckets_keeps_its_shares_and_the_epochs_of_each_set(folder):
    split = both(folder)
    order, count = order_of(split), 4 * 2500
    numbers = [order.number(position) for position in range(count)]
    for position in range(0, count, 4):
        kinds = {kind_of(split[number].key) for number in set(numbers[position : position + 4])}
        assert kinds == {next(kind for kind, shape in OF.items() if shape == order.shape(position))}
    own = [number for number in numbers if number >= 33]
    assert abs(len(own) - count / 4) < 20
    drawn = Counter(own)
    assert set(drawn) == set(range(33, 48)) and max(drawn.values()) - min(drawn.values()) <= 2
    drawn = Counter(number for number in numbers if number < 33)
    assert set(drawn) == set(range(33)) and max(drawn.values()) - min(drawn.values()) <= 2


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_all_ranks_have_the_bucket_of_the_batch_and_step_together(folder, world, workers, mixed):
    split = both(folder) if mixed else open_split(folder / "a", "train")
    order, count, cursor = order_of(split, 8), 12, 24
    wanted = [split[order.number(position)].key for position in range(cursor, cursor + count * 8)]
    ranks = []
    for rank in range(world):
        stream = stream_of(split, 8, rank=rank, world=world)
        copies = [pickle.loads(pickle.dumps(stream)) for _ in range(workers or 1)]
        made = (copies[i % len(copies)].made(cursor + 8 * i) for i in range(count))
        ranks.append([batch for batch, _ in made])
    for step, own in enumerate(zip(*ranks, strict=True)):
        assert {tuple(batch["image"].shape) for batch in own} == {(8 // world, 3, *order.shape(cursor + 8 * step))}
    assert [key for step in zip(*ranks, strict=True) for batch in step for key in batch["key"]] == wanted


def test_a_resumed_stream_equals_the_uninterrupted_one_with_broken_samples(tmp_path):
    broken, empty = ("tall001", "square003", "wide000"), ("wide004",)
    tar(tmp_path / "train.tar", pictures(broken, empty, square=11, tall=5, wide=7))
    split = open_split(tmp_path, "train")
    whole = list(islice(stream_of(split).batches(), 25))
    for done in (1, 6, 13, 24):
        resumed = islice(stream_of(split).batches(whole[done - 1][1]), 25 - done)
        assert [batch["key"] for batch, _ in resumed] == [batch["key"] for batch, _ in whole[done:]]
    assert not {*broken, *empty} & {key for batch, _ in whole for key in batch["key"]}
    assert all(len({kind_of(key) for key in batch["key"]}) == 1 for batch, _ in whole)  # stand-ins are of the bucket


def test_a_bucket_without_a_usable_picture_takes_others_in_its_shape(tmp_path):
    tar(tmp_path / "train.tar", pictures(("tall000", "tall001"), square=13, tall=2))
    stream = stream_of(open_split(tmp_path, "train"))
    shapes = [tuple(batch["image"].shape[-2:]) for batch, _ in islice(stream.batches(), 40)]
    assert (24, 12) in shapes and len(stream.skipped.broken) == 2


def test_a_split_without_a_usable_picture_is_an_error(tmp_path):
    tar(tmp_path / "train.tar", samples(4, broken={0, 1, 2, 3}))
    with pytest.raises(DataError, match=r"No usable sample in the train split"):
        list(islice(stream_of(open_split(tmp_path, "train")).batches(), 1))


def test_processes_that_read_ahead_give_the_same_batches(folder):
    split = both(folder)
    ahead = [batch["key"] for batch, _ in islice(stream_of(split, workers=2).batches(8), 10)]
    assert ahead == [batch["key"] for batch, _ in islice(stream_of(split).batches(8), 10)]


def test_batches_of_a_bucket_are_spread_over_a_round(tmp_path):
    tar(tmp_path / "train.tar", {f"{i}.png": png((1, 2, 3), KINDS["square" if i % 4 else "wide"]) for i in range(400)})
    order = order_of(open_split(tmp_path, "train"), batch=2)
    found = [order.shape(position) == Shape(12, 24) for position in range(0, 2000, 2)]
    for start in range(0, 980, 20):
        assert 2 <= sum(found[start : start + 20]) <= 8  # 5 on average


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1.0, 9.0)])
def test_the_shards_around_a_batch_hold_what_it_reads_of_every_set(folder, weights):
    split = both(folder, weights)
    order = order_of(split, block=1)
    starts = np.cumsum([0, *(size for part in split.parts for size in part.split.sizes)])
    for position in range(0, 400, order.batch):
        around, end = order.group(position)
        read = [int(np.searchsorted(starts, order.number(place), side="right")) - 1 for place in range(position, end)]
        assert end == position + order.batch and set(read) <= set(around)
