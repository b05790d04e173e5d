"""A state that is spread over processes (gloo, on the CPU) trains, is saved and goes on as one that is not."""

import json
import os
import re
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
from pipelines.runs import open_run, reopen_run
from pipelines.sharding import parts_of, side_by_side
from pipelines.stages import run_stage
from pipelines.task import Training
from pipelines.training_files import Copy, Cut, Part
from tests.conftest import ROOT, finish
from tests.pipelines.sharded import train_case
from tests.pipelines.test_upscale import recipe as cascade

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


def end_well(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def case(smoke, tmp_path_factory):
    """Make a case of a stage and settings, in a folder of its own."""
    root = tmp_path_factory.mktemp("sharded")
    (root / "text.txt").write_text("what stands here is read again and again by all of them\n" * 60)
    (root / "text.toml").write_text(TEXT)
    finish("train", "tokens", root / "text.toml", "--out", root, "--data", root)
    finish("train", "words", root / "text.toml", "--out", root, "--data", root)
    (root / "cascade.json").write_text(json.dumps({"recipe": cascade()}))
    enlarging = open_run(root / "cascade.json", out=root, data=None)
    for name in ("bpe", "vae", "vqvae", "clip", "encode"):
        run_stage(enlarging, name)
    runs = {"words": root / "text", "up32": enlarging.folder}

    def make(stage: str, folder: str, training: dict | None = None, **more) -> dict:
        settings = {**TRAINING, **(training or {})}
        return {
            "run": str(runs.get(stage, smoke)),
            "stage": stage,
            "folder": str(root / folder),
            "training": settings,
            **more,
        }

    return make


FULL, LATENT = {"shard": "full"}, {"accumulate": 2}
MUON = {"optimizer": "muon", "learning_rate": 1e-2}
LAST = {"validate_every": STEPS}
EACH = LATENT | FULL | LAST | {"save_seconds": 1e-9}  # a checkpoint with every step
SPIKE = LATENT | LAST | {"spike": 50.0}
SPOILED = {"spoiled": {"1": float("nan"), "3": 1e3}}


@pytest.fixture(scope="module")
def two(case):
    """What two processes have trained, sharded and not."""
    cases = [
        case("latent", "latent-ddp", LATENT), case("latent", "latent-full", LATENT | FULL, drawn=True),
        case("mdlm", "mdlm-ddp", MUON), case("mdlm", "mdlm-full", MUON | FULL),
        case("words", "words-ddp"), case("words", "words-full", FULL),
        case("latent", "parts", LATENT | FULL, stop_at=1), case("latent", "parts", LATENT | FULL),
        case("latent", "fed-two", fed=True),
        case("ar", "ar-ddp", LAST), case("ar", "ar-full", LAST | FULL),
        case("up32", "up32-ddp", LAST), case("up32", "up32-full", LAST | FULL),
        case("up32", "up32-parts", LAST | FULL, stop_at=2), case("up32", "up32-parts", LAST | FULL),
        case("latent", "spoiled-ddp", SPIKE, **SPOILED), case("latent", "spoiled-full", SPIKE | FULL, **SPOILED),
        case("latent", "spoiled-parts", SPIKE | FULL, stop_at=3, **SPOILED),
        case("latent", "spoiled-parts", SPIKE | FULL, **SPOILED),
        case("latent", "disk", EACH, stop_at=3, unwritten={"2": "ENOSPC", "3": "EACCES", "4": "ENOSPC"},
             fails="No space left while writing .*000004; what was saved before is intact", left=[1]),
        case("latent", "disk", EACH, unwritten={"5": "EROFS", "weights": "ENOSPC"},
             fails="No space left while writing .*model.safetensors; .*goes on from the last checkpoint", left=[3, 4]),
        case("latent", "disk", EACH),
        case("latent", "disk-ddp", LATENT | LAST, stop_at=1, unwritten={"2": "ENOSPC"},
             fails="No space left while writing .*000002; what was saved before is intact", left=[]),
    ]  # fmt: skip
    root = Path(cases[0]["folder"]).parent
    (root / "two.log").write_text(end_well(launched(2, cases, root / "two.json")))
    return root


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    names = ("model.safetensors", "ema.safetensors")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["latent", "words", "ar", "up32"])
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
    assert same_bits(two / "parts", two / "latent-full") and same_bits(two / "up32-parts", two / "up32-full")


@pytest.mark.slow
def test_all_processes_leave_out_a_step_that_one_of_them_cannot_take_or_that_goes_too_far(two):
    logs = {how: (two / f"spoiled-{how}" / "log.jsonl").read_text().splitlines() for how in ("ddp", "full", "parts")}
    logs = {how: [line for line in map(json.loads, log) if line["split"] == "left_out"] for how, log in logs.items()}
    assert logs["full"] == logs["parts"]
    for one, other in zip(logs["ddp"], logs["full"], strict=True):
        assert (one["step"], one["keys"]) == (other["step"], other["keys"]) and other["keys"]
    assert [(line["step"], line["reason"].split(" of ")[0]) for line in logs["full"]] == [
        (2, "its loss is not finite"), (4, "its gradient norm")
    ]  # fmt: skip
    for name in ("model", "ema"):
        one, other = (weights(two / f"spoiled-{how}", name) for how in ("ddp", "full"))
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], atol=5e-6, rtol=1e-4, msg=key)
    assert same_bits(two / "spoiled-parts", two / "spoiled-full") and not same_bits(two / "parts", two / "spoiled-full")


@pytest.mark.slow
def test_a_disk_that_fails_one_process_costs_checkpoints_and_nothing_else(two):
    """Those between; that of a run that stops, which says so; the last one with the weights, which says so."""
    assert same_bits(two / "disk", two / "latent-full")
    said = [line for line in (two / "two.log").read_text().splitlines() if "Training goes on" in line]
    for words in ("No space left while writing .*000002;", "Cannot write .*000003 .*Permission denied",
                  "Cannot write .*000005 .*Read-only"):  # fmt: skip
        assert sum(bool(re.search(words, line)) for line in said) == 2, said  # on both
    assert not list((two / "disk" / "checkpoints").glob(".*"))


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
    hybrid, nodes = {"shard": "hybrid", "shard_over": 2}, {"hosts": ["one", "one", "other", "other"]}
    for name, source in (("four", "latent-full"), ("four-plain", "latent-ddp")):
        shutil.copytree(two / source / "checkpoints", two / name / "checkpoints")
        shutil.copy(two / source / "plan.json", two / name)
    cases = [
        case("words", "words-ddp-four"), case("words", "words-hybrid", {"shard": "hybrid"}, **nodes),
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
def test_a_sharded_run_of_which_a_process_is_killed_ends_soon_and_goes_on_to_the_bits_of_one_that_was_not(two, case):
    often = LATENT | FULL | {"save_seconds": 1e-9, "keep_every": None}
    killed = case("latent", "killed", often, slow=0.7)
    folder = Path(killed["folder"])
    process, until = launched(2, [killed], two / "killed.json"), time.monotonic() + 200
    while len(steps := sorted((folder / "checkpoints").glob("[0-9]*"))) < 2:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.01)
    os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL)
    said, _ = process.communicate(timeout=100)
    assert process.returncode != 0 and "palimpsest: another process of this run has ended" in said, said
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


@pytest.mark.parametrize(
    ("hosts", "count"), [("aaaabbbb", 4), ("aabb", 2), ("aaaa", 4), ("aaaabb", 2), ("abab", 1), ("a", 1)]
)
def test_the_processes_of_a_node_are_neighbours_on_one_machine(hosts, count):
    assert side_by_side(hosts) == count


def test_copies_divide_the_processes():
    hybrid = Training(steps=1, shard="hybrid")
    assert parts_of(hybrid, 16, 8) == 8 and parts_of(Training(steps=1, shard="full"), 16, 8) == 16
    with pytest.raises(PalimpsestError, match=r"shard_over is 3 .* does not divide the 8 processes"):
        parts_of(Training(steps=1, shard="hybrid", shard_over=3), 8, 8)
