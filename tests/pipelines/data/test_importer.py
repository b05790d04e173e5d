import csv
import io
import json

import pytest
from PIL import Image

from pipelines.data.check import check
from pipelines.data.decode import caption_only, image_and_caption
from pipelines.data.importer import import_data
from pipelines.data.shards import open_split
from pipelines.errors import DataError

from .conftest import png, samples, tar

HOSTILE = [
    "../../etc/passwd", "; rm -rf /", '"quoted", with\ncomma', "<script>alert(1)</script>", "%s %06d {0}", "日本語 ☃",
]  # fmt: skip


def content(out):
    found = {}
    for split in ("train", "test"):
        if any(out.glob(f"{split}-*.tar")):
            shards = open_split(out, split)
            found |= {shards[i].key: caption_only(shards[i]) for i in range(len(shards))}
    return found


def sources(out):
    return {sample["label"]["source"]: sample["caption"] for sample in content(out).values()}


@pytest.fixture
def folder(tmp_path):
    src = tmp_path / "src"
    (src / "deep").mkdir(parents=True)
    for i in range(40):
        name = src / ("deep" if i % 2 else ".") / f"p{i}.png"
        name.write_bytes(png((i, 200, 3 * i), (20, 12 + i)))
        name.with_suffix(".txt").write_text(f"picture {i}")
    return src


def test_a_folder_of_pictures_becomes_square_shards_with_a_manifest_that_check_accepts(folder, tmp_path):
    report = import_data(folder, tmp_path / "out", size=16, test_share=0.3)
    assert sources(tmp_path / "out") == {f"{'deep/' if i % 2 else ''}p{i}.png": f"picture {i}" for i in range(40)}
    counts = report.manifest["counts"]
    assert counts["train"] + counts["test"] == 40 and 3 < counts["test"] < 25
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == report.manifest
    checked = check(tmp_path / "out")
    assert checked.ok and set(checked.sizes) == {(16, 16)}
    assert f"{counts['test']} test, {counts['train']} train samples of 16 pixels" in report.summary()


def test_the_same_source_gives_the_same_shards(folder, tmp_path):
    first, second = (import_data(folder, tmp_path / name, size=16) for name in ("a", "b"))
    assert first.manifest == second.manifest


def test_equal_pictures_stay_on_one_side(tmp_path):
    (tmp_path / "src").mkdir()
    rows = []
    for i in range(30):
        (tmp_path / f"src/p{i}.png").write_bytes(png((i, 9, 9)))
        rows += [{"file": f"p{i}.png", "caption": f"{word} {i}"} for word in ("one", "two", "three")]
    (tmp_path / "src/list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    import_data(tmp_path / "src", tmp_path / "out", size=16, test_share=0.4)
    sides = {}
    for key, sample in content(tmp_path / "out").items():
        sides.setdefault(sample["label"]["source"], set()).add(key.split("-")[0])
    assert len(sides) == 30 and all(len(side) == 1 for side in sides.values())


def test_a_tiny_source_has_a_test_sample_all_the_same(folder, tmp_path):
    report = import_data(folder, tmp_path / "out", size=16, test_share=0.0001)
    assert report.manifest["counts"] == {"train": 39, "test": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_are_text_and_never_a_path(tmp_path, kind):
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.png").write_bytes(png())
    with (src / f"list.{kind}").open("w", newline="", encoding="utf-8") as file:
        if kind == "csv":
            csv.writer(file).writerows([["Image", "Text"], *(["a.png", words] for words in HOSTILE)])
        else:
            file.writelines(json.dumps({"image": "a.png", "text": words}) + "\n" for words in HOSTILE)
    import_data(src, tmp_path / "out", size=16, test_share=0)
    assert [sample["caption"] for sample in content(tmp_path / "out").values()] == [
        " ".join(words.split()) for words in HOSTILE
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def test_files_outside_the_source_are_refused(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (src / "link.png").symlink_to(tmp_path / "secret.png")
    (src / "good.png").write_bytes(png())
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "a\0b.png", "good.png"]
    (src / "list.jsonl").write_text("\n".join(json.dumps({"file": name, "caption": "x"}) for name in names))
    report = import_data(src, tmp_path / "out", size=16, test_share=0)
    assert report.manifest["dropped"]["outside the folder"]["count"] == 4
    assert set(sources(tmp_path / "out")) == {"good.png"}


def test_what_is_dropped_is_counted_with_its_reason(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    for name, data, words in [
        ("good", png(), b"words"), ("bad", b"rubbish", b"words"), ("cut", png(size=(90, 90))[:70], b"words"),
        ("mute", png(), b" \n"), ("latin", png(), b"caf\xe9"), ("alone", png(), None),
    ]:  # fmt: skip
        (src / f"{name}.png").write_bytes(data)
        if words is not None:
            (src / f"{name}.txt").write_bytes(words)
    report = import_data(src, tmp_path / "out", size=16, test_share=0)
    assert {reason: entry["count"] for reason, entry in report.manifest["dropped"].items()} == {
        "unreadable picture": 2, "empty caption": 1, "caption is not UTF-8": 1, "no caption": 1,
    }  # fmt: skip
    assert "dropped 2: unreadable picture, such as bad.png" in report.summary()


def test_rows_without_a_file_a_caption_or_json_are_dropped(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.png").write_bytes(png())
    lines = [
        '{"file": "a.png", "caption": "x"}', '{"caption": "x"}', '{"file": "a.png"}', "nonsense", "[1]",
        '{"file": "gone.png", "caption": "x"}', '{"file": "a.png", "caption": ""}', '{"file": 3, "caption": "x"}',
    ]  # fmt: skip
    (src / "list.jsonl").write_text("\n".join(lines))
    report = import_data(src, tmp_path / "out", size=16, test_share=0)
    dropped = {reason: entry["count"] for reason, entry in report.manifest["dropped"].items()}
    assert dropped == {"no file named": 4, "no caption": 2, "file not found": 1}


def test_ten_thousand_characters_and_more_pass_through_a_csv(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.png").write_bytes(png())
    (tmp_path / "src/list.csv").write_text("file,caption\na.png," + "word " * 40_000)
    import_data(tmp_path / "src", tmp_path / "out", size=16, test_share=0)
    assert len(sources(tmp_path / "out")["a.png"]) == 199_999


def test_shards_keep_their_split_and_labels(scenes_folder, tmp_path):
    report = import_data(scenes_folder, tmp_path / "out", size=32)
    assert report.manifest["counts"] == {"train": 120, "test": 12, "unseen": 8}
    before, after = (open_split(folder, "unseen")[3] for folder in (scenes_folder, tmp_path / "out"))
    decode = image_and_caption(32)
    assert (decode(before)["image"] == decode(after)["image"]).all()
    assert decode(before)["label"]["objects"] == decode(after)["label"]["objects"]


def test_shards_without_a_test_split_get_one(tmp_path):
    tar(tmp_path / "src/x-train.tar", samples(40))
    report = import_data(tmp_path / "src", tmp_path / "out", size=16, test_share=0.2)
    assert report.manifest["counts"]["test"] > 0 and sum(report.manifest["counts"].values()) == 40


def test_a_damaged_shard_gives_its_readable_samples_and_says_so(tmp_path):
    path = tar(tmp_path / "src/train.tar", samples(10))
    path.write_bytes(path.read_bytes()[:6000])
    report = import_data(tmp_path / "src", tmp_path / "out", size=16)
    assert 0 < sum(report.manifest["counts"].values()) < 10
    assert "damage in a shard" in report.manifest["dropped"]


def test_an_animation_gives_its_first_frame_and_cmyk_its_colours(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(src / "a.gif", save_all=True, append_images=frames[1:])
    data = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(data, "JPEG", quality=95)
    (src / "b.jpg").write_bytes(data.getvalue())
    for name in "ab":
        (src / f"{name}.txt").write_text("red")
    import_data(src, tmp_path / "out", size=16, test_share=0)
    split = open_split(tmp_path / "out", "train")
    for i in range(2):
        image = image_and_caption(16)(split[i])["image"]
        assert image[0].mean() > 0.9 and image[1:].mean() < -0.9


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "No pictures in"),
        ({"a.csv": b"name,words\nx,y"}, "has the columns name, words: expected one of file, image"),
        ({"a.csv": b"file\nx"}, "expected one of caption, text"),
        ({"a.csv": b"\xff\xfe\xfa"}, "expected a UTF-8 .csv"),
        ({"a.csv": b"file,caption\n", "b.jsonl": b""}, r"several lists of captions \(a.csv, b.jsonl\)"),
        ({"a.jsonl": b'{"file": "x.png", "caption": "x"}'}, r"Nothing in .* \(1 file not found\)"),
    ],
)
def test_a_source_that_cannot_be_imported_says_why_and_leaves_nothing(tmp_path, files, match):
    (tmp_path / "src").mkdir()
    for name, data in files.items():
        (tmp_path / "src" / name).write_bytes(data)
    with pytest.raises(DataError, match=match):
        import_data(tmp_path / "src", tmp_path / "out", size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_source_that_is_not_there_and_an_output_that_is_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="No data at"):
        import_data(tmp_path / "nowhere", tmp_path / "out", size=16)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("kept")
    with pytest.raises(DataError, match="not an empty folder"):
        import_data(folder, tmp_path / "out", size=16)
    assert (tmp_path / "out/mine.txt").read_text() == "kept"


@pytest.mark.parametrize(("options", "flag"), [({"size": 4}, "--size"), ({"test_share": 1.0}, "--test-share")])
def test_arguments_out_of_range_are_named(folder, tmp_path, options, flag):
    with pytest.raises(DataError, match=flag):
        import_data(folder, tmp_path / "out", **options)
