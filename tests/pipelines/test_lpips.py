"""LPIPS as a figure: under its name with the published weights alone, picture by picture what torchmetrics gives."""

import shutil

import numpy as np
import pytest
import torch

from eval.towers import file_sha256
from pipelines import lpips_measure
from pipelines.errors import PalimpsestError
from pipelines.lpips_measure import PUBLISHED, LocalLPIPS
from pipelines.pictures import from_uint8
from tests.tokenizer.test_perceptual import HEADS, torchmetrics_lpips, trunk_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random AlexNet under the published file's name, and the published heads."""
    out = tmp_path_factory.mktemp("lpips")
    torch.save(trunk_state("alex"), out / PUBLISHED["alex"].trunk)
    shutil.copy(HEADS / "alex.pth", out)
    return out


def shown(count, seed, side=40):
    return np.random.RandomState(seed).randint(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_each_picture_has_the_distance_of_torchmetrics(folder):
    theirs = torchmetrics_lpips("alex")
    real, again = shown(35, 0), shown(35, 1)  # more than one batch, and a rest
    found = LocalLPIPS(folder).each(real, again)
    with torch.no_grad():
        expected = theirs(from_uint8(again), from_uint8(real)).flatten().numpy()
    assert found == pytest.approx(expected, rel=1e-4)
    assert LocalLPIPS(folder).each(real, real) == pytest.approx(np.zeros(35), abs=1e-9)


def test_only_the_published_files_are_called_lpips(folder, tmp_path, monkeypatch):
    """Not even the right file name makes the name; the hashes of both files do."""
    trunk, top = (file_sha256(folder / name) for name in PUBLISHED["alex"][:2])
    assert LocalLPIPS(folder).name == f"lpips[alex, unknown weights:{trunk[:8]}/{top[:8]}]"
    known = PUBLISHED["alex"]._replace(trunk_hash=trunk[:8])
    monkeypatch.setitem(lpips_measure.PUBLISHED, "alex", known)
    assert LocalLPIPS(folder).name == "lpips[alex]"
    shutil.copytree(folder, tmp_path / "other")
    heads = torch.load(HEADS / "alex.pth", map_location="cpu", weights_only=True)
    heads["lin0.model.1.weight"] = heads["lin0.model.1.weight"] * 2
    torch.save(heads, tmp_path / "other" / "alex.pth")
    assert LocalLPIPS(tmp_path / "other").name.startswith("lpips[alex, unknown weights:")


def test_the_heads_on_this_machine_are_the_published_ones():
    for net in ("alex", "vgg"):
        assert file_sha256(HEADS / f"{net}.pth").startswith(PUBLISHED[net].heads_hash)


def test_what_cannot_be_compared_is_refused_in_a_sentence(folder, tmp_path):
    with pytest.raises(
        PalimpsestError, match=r"holds no weights of LPIPS, expected alexnet-owt-7be5be79.pth and alex.pth"
    ):
        LocalLPIPS(tmp_path / "nowhere")
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn" / "alex.pth").write_bytes((HEADS / "alex.pth").read_bytes()[:500])
    with pytest.raises(PalimpsestError, match=r"lpips: .*alex.pth is not a whole file of tensors"):
        LocalLPIPS(tmp_path / "torn")
    lpips = LocalLPIPS(folder)
    for real, again in (
        (shown(2, 0), shown(3, 0)),
        (shown(2, 0) / 255, shown(2, 0) / 255),
        (shown(0, 0), shown(0, 0)),
    ):
        with pytest.raises(ValueError, match="LPIPS compares 8-bit pictures of one shape"):
            lpips.each(real, again)
    with pytest.raises(ValueError, match=r"30 x 30 are too small.*31 pixels"):
        lpips.each(shown(1, 0, side=30), shown(1, 1, side=30))
