"""A state that is spread over processes (gloo, on the CPU) trains, is saved and goes on as one that is not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines import training_files
from pipelines.config import RecipeError, load_recipe
from pipelines.errors import PalimpsestError
from pipelines.masked_stage import MdlmTask
from pipelines.rows import placed
from pipelines.runs import reopen_run
from pipelines.sharding import parts_of
from pipelines.task import Training
from pipelines.training_files import Copy, Cut, Part
from tests.conftest import ROOT, finish
from tests.pipelines.sharded import train_case

STEPS = 5
TRAINING = {"steps": STEPS, "bf16": False, "save_seconds": 1e9, "keep_every": STEPS, "validate_every": 2}
TEXT = """
[data]
kind = "text"
train = "text.txt"
test = "text.txt"
[stage.tokens]
kind = "text_tokens"
[stage.words]
kind = "text_model"
needs = ["tokens"]
length = 32
objective = { kind = "masked", copies = 2 }
model = { dim = 32, layers = 2, heads = 2, time = true }
training = { steps = 5, batch = 16, learning_rate = 5e-3, ema = 0.9, keep = "best", compile = false }
"""


def launched(count: int, cases: list[dict], at: Path) -> subprocess.Popen[str]:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(json.dumps(cases))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.pipelines.sharded", str(at)], cwd=ROOT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def end_well(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def case(smoke, tmp_path_factory):
    """Make a case of a stage and settings, in a folder of its own."""
    root = tmp_path_factory.mktemp("sharded")
    (root / "text.txt").write_text("what stands here is read again and again by all of them\n" * 60)
    (root / "text.toml").write_text(TEXT)
    finish("train", "tokens", root / "text.toml", "--out", root, "--data", root)
    finish("train", "words", root / "text.toml", "--out", root, "--data", root)

    def make(stage: str, folder: str, training: dict | None = None, **more) -> dict:
        run = root / "text" if stage == "words" else smoke
        settings = {**TRAINING, **(training or {})}
        return {"run": str(run), "stage": stage, "folder": str(root / folder), "training": settings, **more}

    return make


FULL, LATENT = {"shard": "full"}, {"accumulate": 2}
MUON = {"optimizer": "muon", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def two(case):
    """What two processes have trained, sharded and not."""
    cases = [
        case("latent", "latent-ddp", LATENT), case("latent", "latent-full", LATENT | FULL, drawn=True),
        case("mdlm", "mdlm-ddp", MUON), case("mdlm", "mdlm-full", MUON | FULL),
        case("words", "words-ddp"), case("words", "words-full", FULL),
        case("latent", "parts", LATENT | FULL, stop_at=1), case("latent", "parts", LATENT | FULL),
        case("latent", "fed-two", fed=True),
    ]  # fmt: skip
    root = Path(cases[0]["folder"]).parent
    end_well(launched(2, cases, root / "two.json"))
    return root


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    names = ("model.safetensors", "ema.safetensors")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["latent", "words"])
def test_a_sharded_stage_takes_the_steps_of_one_that_is_not(two, stage):
    """Gradients over micro-batches, clipped by the norm of all, averages, and the weights that validate best."""
    for name in ("model", "ema"):
        one, other = (weights(two / f"{stage}-{how}", name) for how in ("ddp", "full"))
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], atol=5e-6, rtol=1e-4, msg=key)
    logs = [(two / f"{stage}-{how}" / "log.jsonl").read_text().splitlines() for how in ("ddp", "full")]
    for one, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        clocks = ("seconds", "split", "waiting")
        plain, spread = ({k: v for k, v in line.items() if k not in clocks} for line in (one, other))
        assert plain == pytest.approx(spread, rel=1e-4)


@pytest.mark.slow
def test_muon_turns_whole_matrices_where_they_are_sharded(two, smoke):
    run = reopen_run(smoke)
    begun = MdlmTask(run, "mdlm", run.recipe.stage["mdlm"]).network.state_dict()
    one, other = (weights(two / f"mdlm-{how}") for how in ("ddp", "full"))
    moved = torch.cat([(one[key] - begun[key]).flatten() for key in one])
    apart = torch.cat([(one[key] - other[key]).flatten() for key in one])
    assert apart.norm() < 0.02 * moved.norm()  # it orthogonalises in bf16, where the last bits of gradients grow


@pytest.mark.slow
def test_snapshots_of_averages_are_whole(two):
    one, other = (
        load_file(two / f"latent-{how}" / "snapshots" / f"{STEPS:06d}.safetensors") for how in ("ddp", "full")
    )
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=5e-6, rtol=1e-4, msg=key)


@pytest.mark.slow
def test_an_interrupted_sharded_run_equals_the_uninterrupted_one(two):
    assert same_bits(two / "parts", two / "latent-full")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_the_batch_of_both_at_the_same_noise(two, case):
    train_case(case("latent", "fed-one", fed=True))
    one, other = weights(two / "fed-one"), weights(two / "fed-two")
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=5e-6, rtol=1e-4, msg=key)


@pytest.mark.slow
def test_one_process_takes_over_the_state_of_two_to_the_bit_and_trains_on(two, case):
    shutil.copytree(two / "latent-full" / "checkpoints", two / "alone" / "checkpoints")
    shutil.copy(two / "latent-full" / "plan.json", two / "alone")
    train_case(case("latent", "alone", LATENT))
    assert same_bits(two / "alone", two / "latent-full")
    (two / "alone" / "plan.json").unlink()
    loop = train_case(case("latent", "alone", LATENT | {"steps": STEPS + 2}))
    assert loop.state.step == STEPS + 2 and not same_bits(two / "alone", two / "latent-full")


@pytest.mark.slow
def test_four_processes_in_two_copies_train_as_four_and_take_over_the_state_of_two(two, case):
    hybrid = {"shard": "hybrid", "shard_over": 2}
    for name, source in (("four", "latent-full"), ("four-plain", "latent-ddp")):
        shutil.copytree(two / source / "checkpoints", two / name / "checkpoints")
        shutil.copy(two / source / "plan.json", two / name)
    cases = [
        case("words", "words-ddp-four"), case("words", "words-hybrid", hybrid),
        case("latent", "four", LATENT | FULL), case("latent", "four-plain", LATENT | hybrid),
    ]  # fmt: skip
    end_well(launched(4, cases, two / "four.json"))
    assert same_bits(two / "four", two / "latent-full") and same_bits(two / "four-plain", two / "latent-ddp")
    one, other = weights(two / "words-ddp-four"), weights(two / "words-hybrid")
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=5e-6, rtol=1e-4, msg=key)
    files = json.loads((two / "words-hybrid" / "checkpoints" / f"{STEPS:06d}" / "checkpoint.json").read_text())["files"]
    assert list(files) == ["state-00000-of-00002.pt", "state-00001-of-00002.pt"]  # one copy writes


@pytest.mark.slow
def test_a_sharded_run_that_is_killed_ends_with_the_bits_of_one_that_was_not(two, case):
    often = LATENT | FULL | {"save_seconds": 1e-9, "keep_every": None}
    killed = case("latent", "killed", often, slow=0.7)
    folder = Path(killed["folder"])
    process, until = launched(2, [killed], two / "killed.json"), time.monotonic() + 200
    while len(steps := sorted((folder / "checkpoints").glob("[0-9]*"))) < 2:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.01)
    for rank in (1, 0):
        os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
    process.communicate(timeout=100)
    assert int(steps[-1].name) < STEPS and not (folder / "model.safetensors").exists()
    (steps[-1] / "state-00001-of-00002.pt").write_bytes(b"half")
    end_well(launched(2, [case("latent", "killed", often)], two / "killed.json"))
    assert same_bits(folder, two / "latent-full")
    assert (folder / "checkpoints" / f"damaged-{steps[-1].name}").is_dir()


def test_a_state_in_parts_is_read_by_rows_and_whole(tmp_path):
    value, counts = torch.randn(5, 3), (2, 2, 1, 0)
    for number, rows in enumerate(value.split(counts)):
        training_files.write(tmp_path, Copy({"a": [None, 7], "b": value[0]}, {"/a/0": rows}), Part(number, 4))
    tree = training_files.read(tmp_path)
    cut = tree["a"][0]
    assert isinstance(cut, Cut) and cut.shape == value.shape and tree["a"][1] == 7
    for start in range(6):
        for stop in range(start, 6):
            assert torch.equal(cut[start:stop], value[start:stop])
    again = placed(tree["b"], None)
    assert torch.equal(again, value[0]) and torch.equal(placed(cut, None), value)
    (tmp_path / "state-00002-of-00004.pt").unlink()
    with pytest.raises(RuntimeError, match=r"state-00002-of-00004\.pt cannot be read"):
        training_files.read(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minutes": 5, "shard": "full"}, "shard = 'full' needs training.steps in place of minutes"),
        ({"steps": 5, "shard_over": 2}, "shard_over = 2 with shard = None, expected .* shard = 'hybrid'"),
        ({"steps": 5, "shard": "hybrid", "shard_over": 0}, "shard_over = 0 .*expected 1 process or more"),
    ],
)
def test_settings_that_shard_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Training(**options)


@pytest.mark.parametrize("name", ["vae", "vqvae", "clip", "scene_judge", "student", "match"])
def test_stages_that_are_not_sharded_say_so(name):
    with pytest.raises(RecipeError, match=rf"stage.{name}.training.shard is 'full', but .* only latent, upscale"):
        load_recipe(ROOT / "recipes" / "smoke.toml", (f"stage.{name}.training.shard=full",))


def test_copies_divide_the_processes():
    hybrid = Training(steps=1, shard="hybrid")
    assert parts_of(hybrid, 16, 8) == 8 and parts_of(Training(steps=1, shard="full"), 16, 8) == 16
    with pytest.raises(PalimpsestError, match=r"shard_over is 3 .* does not divide the 8 processes"):
        parts_of(Training(steps=1, shard="hybrid", shard_over=3), 8, 8)
