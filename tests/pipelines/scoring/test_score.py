"""Pictures from anywhere, judged: the whole way from folders to a report, and two reports side by side."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from backbone import clip
from eval.frechet import frechet_distance
from pipelines import cli
from pipelines.errors import PalimpsestError
from pipelines.scoring.cached import embed
from pipelines.scoring.embedders import open_embedders
from pipelines.scoring.score import Asked, score
from pipelines.scoring.sets import open_set
from tests.conftest import finish
from tests.pipelines.test_distributed import on_two_ranks
from tokenizer.text import BPE

HOSTILE = '<script>alert("x")</script> \u202eشمس 🌞 <b>\'&'


def draw(folder, count, shade, *, captions=False, side=16, seed=0):
    """Noise around a shade of red."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        values = np.clip(rng.normal([shade, 100, 100], 40, (side, side, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{i:03d}.png")
        if captions:
            (folder / f"{i:03d}.txt").write_text(f"noise {i}{' more' * (i % 6)} {HOSTILE * (not i)}", encoding="utf-8")
    return folder


def drawn(out):
    """A reference in a folder, and two sets with captions that are near to it and far from it."""
    draw(out / "reference", 60, 100)
    draw(out / "near", 30, 105, captions=True, seed=1)
    draw(out / "far", 24, 160, captions=True, seed=2)
    return out


def save_towers(folder, texts, *, embed_dim):
    """Small random towers whose vocabulary was made from texts."""
    bpe = BPE.train(texts, vocab_size=300, length=12)
    sizes = clip.ContrastiveConfig(
        width=4, heads=4, text_width=16, embed_dim=embed_dim, vocab_size=bpe.vocab_size, context_length=bpe.length,
        end_id=bpe.end_id, pad_id=bpe.pad_id,
    )  # fmt: skip
    clip.save_contrastive(folder, sizes, sizes.build(seed=0))
    bpe.save(folder / "bpe.json")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = drawn(tmp_path_factory.mktemp("scoring"))
    save_towers(out / "clip", [f"noise {i}" for i in range(30)], embed_dim=24)
    return out


@pytest.fixture(scope="module")
def report(folders):
    asked = Asked(
        generated=(str(folders / "near"), str(folders / "far")), reference=str(folders / "reference"),
        out=folders / "score", embedders=("random-conv", "pixels-pca", f"openclip={folders / 'clip'}"),
    )  # fmt: skip
    page, figures = score(asked, "palimpsest eval ...")
    return page.read_text(encoding="utf-8"), json.loads(figures.read_text(encoding="utf-8"))["figures"]


def test_every_set_has_every_figure_of_every_embedder(report):
    _, figures = report
    for subject in ("real", "near", "far"):
        for embedder in ("random-conv", "pixels-pca", "openclip"):
            names = {name.removeprefix(f"{subject}.").split("[")[0] for name in figures if name.startswith(subject)
                     and f"[{embedder}:" in name}  # fmt: skip
            wanted = {"fd", "fd-infinity", "kd", "mind", "precision-k5", "recall-k5", "density-k5", "coverage-k5"}
            wanted |= {"cmmd"} if embedder == "openclip" else set()
            wanted |= {"clip_score"} if embedder == "openclip" and subject != "real" else set()
            assert names == wanted
    assert not [name for name in figures if ".fid" in name]


def test_sizes_are_equal_and_in_the_keys_and_the_farther_set_is_farther(report):
    _, figures = report
    for metric in ("fd", "kd", "mind"):
        found = {name.split(".")[0]: figure for name, figure in figures.items() if f".{metric}[pixels-pca" in name}
        assert found["near"]["value"] < found["far"]["value"] and found["near"]["n"] == found["far"]["n"] == 24
        assert all("n=24/" in name for name in figures if f".{metric}[pixels-pca" in name)


def test_the_figures_are_those_of_the_features(folders, report):
    _, figures = report
    near, reference = (open_set(folders / name) for name in ("near", "reference"))
    (conv,) = open_embedders(["random-conv"], None, 0)
    features = [np.concatenate([conv.embedder.embed(p[None]) for p in one]) for one in (near.some(24, 0), reference)]
    (name,) = (name for name in figures if name.startswith("near.fd[random-conv"))
    assert figures[name]["value"] == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert "rank-deficient: 24 rows for 64 dimensions" in figures[name]["source"]


def test_captions_are_text_in_the_page(report):
    page, _ = report
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "🌞" in page


def test_slices_by_length_make_up_the_whole_and_both_ends_are_shown(report):
    page, figures = report
    for name in ("near", "far"):
        found = {key: figure for key, figure in figures.items() if key.startswith(f"{name}.clip_score[openclip:")}
        (whole,) = (figure for key, figure in found.items() if "|slice=" not in key)
        parts = [figure for key, figure in found.items() if "|slice=words:" in key]
        assert len(parts) == 3 and sum(part["n"] for part in parts) == whole["n"] == 24
        assert sum(part["value"] * part["n"] for part in parts) / 24 == pytest.approx(whole["value"])
        assert f"{name}: the 8 that agree best with their captions" in page and "Picked by the cosine out of 24" in page
        best, worst = (
            [float(said) for said in re.findall(r">(-?[\d.]+)\. .?noise", part)[:8]]
            for part in page.split(f"{name}: the 8 that agree ")[1:]
        )
        assert best == sorted(best, reverse=True) and worst == sorted(worst) and worst[-1] <= best[-1]


def test_equal_requests_give_equal_figures_and_features_are_read_again(folders, report):
    again = Asked(
        generated=(str(folders / "near"), str(folders / "far")), reference=str(folders / "reference"),
        out=folders / "score", embedders=("random-conv",),
    )  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in (folders / "score" / "features").iterdir()}
    _, path = score(again, "")
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    of_it = ("[random-conv", ".failures[")
    assert figures == {name: figure for name, figure in report[1].items() if any(part in name for part in of_it)}
    assert before == {path: path.stat().st_mtime_ns for path in (folders / "score" / "features").iterdir()}


def test_the_reference_is_brought_to_the_size_of_what_was_generated(folders, tmp_path):
    draw(tmp_path / "large", 30, 100, side=40)
    asked = {"generated": (str(folders / "near"),), "reference": str(tmp_path / "large"), "count": 24}
    embedders = ("random-conv",)
    names = []
    for as_they_are in (False, True):
        _, path = score(Asked(**asked, out=tmp_path / "out", embedders=embedders, as_they_are=as_they_are), "")
        found = json.loads(path.read_text(encoding="utf-8"))["figures"]
        names.append(next(f["value"] for n, f in found.items() if n.startswith("near.fd[")))
    assert names[0] != names[1]


def test_kinds_in_the_order_of_names_do_not_bias_what_is_compared(tmp_path):
    draw(tmp_path / "made", 40, 40)
    for i, path in enumerate(sorted((tmp_path / "made").glob("*.png"))):
        if i % 2:
            path.unlink()
    for shade, name in ((40, "a"), (220, "b")):
        (tmp_path / "reference").mkdir(exist_ok=True)
        draw(tmp_path / "reference" / name, 40, shade, seed=shade)
    draw(tmp_path / "other", 20, 220, seed=9)
    for path in (tmp_path / "other").glob("*.png"):
        shutil.copyfile(path, tmp_path / "made" / f"z{path.name}")
    asked = Asked(
        generated=(str(tmp_path / "made"),), reference=str(tmp_path / "reference"), out=tmp_path / "out",
        embedders=("random-conv",),
    )  # fmt: skip
    found = json.loads(score(asked, "")[1].read_text(encoding="utf-8"))["figures"]
    assert next(f["value"] for name, f in found.items() if name.startswith("made.precision")) > 0.8


def test_statistics_serve_as_reference(folders, tmp_path):
    (conv,) = open_embedders(["random-conv"], None, 0)
    features = np.concatenate([conv.embedder.embed(p[None]) for p in open_set(folders / "reference")])
    np.savez(tmp_path / "ref.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    asked = Asked(
        generated=(str(folders / "near"),), reference=str(tmp_path / "ref.npz"), out=tmp_path / "out",
        embedders=("random-conv",),
    )  # fmt: skip
    _, path = score(asked, "")
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    near = np.concatenate([conv.embedder.embed(p[None]) for p in open_set(folders / "near")])
    (name,) = (name for name in found if ".failures[" not in name)
    assert name.startswith("near.fd[random-conv") and "split=ref.npz" in name
    assert found[name]["value"] == pytest.approx(frechet_distance(near, features), rel=1e-5)


def test_copies_of_the_reference_are_found_beside_held_out_pictures(folders, tmp_path):
    draw(tmp_path / "held", 40, 100, seed=5)
    (tmp_path / "made").mkdir()
    for i, path in enumerate(sorted((folders / "reference").glob("*.png"))[:12]):
        shutil.copyfile(path, tmp_path / "made" / f"copy{i:02d}.png")
    for path in sorted((folders / "near").glob("*.png"))[:12]:
        shutil.copyfile(path, tmp_path / "made" / path.name)
    asked = Asked(
        generated=(str(tmp_path / "made"),), reference=str(folders / "reference"), out=tmp_path / "out",
        embedders=("random-conv",), held_out=str(tmp_path / "held"),
    )  # fmt: skip
    page, path = score(asked, "")
    found = {name.split("[")[0]: f for name, f in json.loads(path.read_text(encoding="utf-8"))["figures"].items()}
    assert found["made.copies"]["value"] == 0.5 and found["made.repeats"]["value"] == 0
    assert 0.5 <= found["made.nearest"]["value"] <= 0.75
    assert "copy00.png, distance 0;" in page.read_text(encoding="utf-8")


def test_a_card_says_what_each_embedder_sees(folders, tmp_path):
    asked = Asked(
        generated=(str(folders / "near"),), reference=str(folders / "reference"), out=tmp_path, card=True,
        embedders=("random-conv", "pixels-pca"),
    )  # fmt: skip
    page, path = score(asked, "")
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    cards = {name: figure["value"] for name, figure in found.items() if name.startswith("card.")}
    assert len(cards) == 2 * 5 and all(-1 <= value <= 1 for value in cards.values())
    noise = next(v for n, v in cards.items() if n.startswith("card.random-conv") and "[noise]" in n)
    assert noise == pytest.approx(1)
    assert "Validity of random-conv" in page.read_text(encoding="utf-8")


def test_exported_pictures_are_read_again_with_their_prompts(smoke, tmp_path):
    said = finish("export", smoke, "latent_pictures", tmp_path / "geneval")
    assert "pictures for" in said and "in GenEval's layout" in said
    exported, ours = open_set(tmp_path / "geneval"), open_set(smoke / "latent_pictures" / "test")
    assert sorted(exported.captions()) == sorted(ours.captions())
    i = ours.captions().index(exported.captions()[-1])
    assert np.array_equal(exported.read(len(exported) - 1), ours.read(i))
    assert "is not empty" in finish("export", smoke, "latent_pictures", tmp_path / "geneval", code=2)


def test_bad_requests_are_refused(folders, tmp_path):
    near = str(folders / "near")
    asked = {"reference": str(folders / "reference"), "out": tmp_path}
    with pytest.raises(PalimpsestError, match="names a set twice"):
        score(Asked(generated=(near, near), **asked), "")
    with pytest.raises(PalimpsestError, match="called 'reference'"):
        score(Asked(generated=(asked["reference"],), **asked), "")
    with pytest.raises(PalimpsestError, match="--count is 1, expected at least 2"):
        Asked(generated=(near,), count=1, **asked)


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["palimpsest", *map(str, words)])
    code = cli._code(lambda: cli.application().cli(prog="palimpsest"))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_scores_and_compares(folders, tmp_path, monkeypatch, capsys):
    reports = []
    for name in ("near", "far"):
        made = tmp_path / name / "pictures"
        made.parent.mkdir()
        made.symlink_to(folders / name)
        words = ("eval", "--generated", made, "--reference", folders / "reference", "--count", 24, "--out", made.parent)
        code, out, _ = command(monkeypatch, capsys, *words, "--embedders", "pixels-pca")
        assert code == 0 and out.splitlines() == [str(made.parent / "report.html"), str(made.parent / "report.json")]
        reports.append(made.parent)
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, capsys, "compare", *reports)
    out = capsys.readouterr().out
    assert ended.value.code == 1 and out.startswith("worse") and "pictures.fd[pixels-pca" in out
    code, out, _ = command(monkeypatch, capsys, "compare", *reversed(reports))
    assert code == 0 and "better" in out
    code, _, err = command(monkeypatch, capsys, "eval", "--generated", folders / "near")
    assert code == 2 and "--generated takes --reference beside it" in err
    code, _, err = command(monkeypatch, capsys, "eval")
    assert code == 2 and "Name a recipe, or --generated or --texts" in err


@pytest.mark.parametrize("most", [1, 7, 64])
def test_batches_of_any_size_give_all_pictures_their_features(folders, most, monkeypatch):
    (conv,) = open_embedders(["random-conv"], None, 0)
    near = open_set(folders / "near")
    monkeypatch.setattr("pipelines.scoring.cached.BATCH", most)
    found, whole = embed(conv.embedder, near), conv.embedder.embed(np.stack(list(near)))
    assert found.shape == whole.shape == (30, conv.embedder.dim)  # 7 and 64 do not divide 30
    np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.slow
def test_two_processes_score_as_one_and_write_one_report(folders, tmp_path):
    words = [
        "eval", "--generated", folders / "near", folders / "far", "--reference", folders / "reference", "--embedders",
        "random-conv", f"openclip={folders / 'clip'}", "--held-out", folders / "far",
    ]  # fmt: skip
    told = on_two_ranks(*words, "--out", tmp_path / "two")
    assert told.count("report.html") == 1
    finish(*words, "--out", tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "report.json").read_text())["figures"] for name in ("one", "two"))
    had = {name: figure for name, figure in one.items() if figure["value"] is not None}
    assert had.keys() == {name for name, figure in two.items() if figure["value"] is not None} and len(had) > 20
    for name, figure in had.items():
        assert two[name]["n"] == figure["n"], name
        assert two[name]["value"] == pytest.approx(figure["value"], rel=1e-4, abs=1e-5), name
    kept = sorted(path.name for path in (tmp_path / "one" / "features").iterdir())
    assert sorted(path.name for path in (tmp_path / "two" / "features").iterdir()) == kept
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    with pytest.raises(AssertionError, match="broken"):
        on_two_ranks("eval", "--generated", tmp_path / "broken", "--reference", folders / "reference")
