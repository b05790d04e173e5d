import errno
import json

import pytest
import torch
from torch import nn

from pipelines import artefact
from pipelines.artefact import (
    ArtefactError,
    finish_artefact,
    load_weights,
    read_json,
    read_manifest,
    save_weights,
    write_json,
)


def test_weights_survive_the_disk_bit_for_bit(tmp_path):
    first, second = nn.Linear(3, 5), nn.Linear(3, 5)
    save_weights(tmp_path / "model.safetensors", first.state_dict())
    load_weights(second, tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    write_json(tmp_path / "facts.json", {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artefact.os, "fsync", full)
    with pytest.raises(ArtefactError, match=r"No space left while writing .*facts\.json.*intact.*run the same command"):
        write_json(tmp_path / "facts.json", {"step": 2})
    assert read_json(tmp_path / "facts.json") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]  # no torn file stays behind


def test_a_really_full_disk_is_recognised(tmp_path):
    """/dev/full refuses every write as a full disk does: torch's and safetensors' own errors must be understood."""
    for write in (
        lambda path: torch.save({"x": torch.zeros(1000)}, "/dev/full"),
        lambda path: open("/dev/full", "w").write("x" * 10000),
    ):
        with pytest.raises((ArtefactError, OSError, RuntimeError)) as caught:
            artefact.write_atomically(tmp_path / "file", write)
        assert isinstance(caught.value, ArtefactError), caught.value


def test_a_changed_file_is_refused_by_name(tmp_path):
    save_weights(tmp_path / "model.safetensors", nn.Linear(2, 2).state_dict())
    finish_artefact(tmp_path, {"kind": "vae"})
    assert read_manifest(tmp_path, kind="vae")["kind"] == "vae"
    save_weights(tmp_path / "model.safetensors", nn.Linear(2, 2).state_dict())
    with pytest.raises(ArtefactError, match=r"model\.safetensors is not the file that was trained"):
        read_manifest(tmp_path)


def test_an_unfinished_stage_names_the_remedy(tmp_path):
    with pytest.raises(ArtefactError, match=r"no finished stage.*palimpsest run"):
        read_manifest(tmp_path)


def test_another_kind_is_refused(tmp_path):
    finish_artefact(tmp_path, {"kind": "vae"})
    with pytest.raises(ArtefactError, match="'vae', expected 'vqvae'"):
        read_manifest(tmp_path, kind="vqvae")


def test_a_damaged_file_is_a_sentence(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ArtefactError, match="damaged"):
        load_weights(nn.Linear(2, 2), tmp_path / "model.safetensors")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        artefact.write_json(tmp_path / "x.json", {"value": float("nan")})
    artefact.write_json(tmp_path / "x.json", {"value": 1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"value": 1.5}
