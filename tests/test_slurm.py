"""The Slurm scripts on a stand-in for the cluster: what they submit; processes, signals and exit codes pass through."""

import json
import os
import stat
import subprocess
import sys

import pytest

from pipelines.config import load_recipe
from tests.conftest import ROOT
from tests.pipelines.test_distributed import TINY

pytestmark = pytest.mark.slow
SBATCH = """#!/usr/bin/env bash
count=$(($(cat {folder}/count 2>/dev/null || echo 100) + 1)); echo $count >{folder}/count
printf '%s\\n' "$*" >>{folder}/submitted; echo "$count;cluster"
"""
SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" & children+=($!); done
[ -z "${SIGNALLED:-}" ] || (
  until grep -q '"step"' "$SIGNALLED" 2>/dev/null; do sleep 0.1; done
  for child in ${children[*]}; do kill -USR1 "$child"; done
)
worst=0
for child in ${children[*]}; do wait "$child"; code=$?; [ $code -le $worst ] || worst=$code; done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$*" >>{folder}/asked; fi
"""


@pytest.fixture
def cluster(tmp_path):
    """Put commands named like Slurm's into a folder, and return the environment that finds them first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        path = folder / name
        path.write_text(text.replace("{folder}", str(folder)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable}
    environment |= {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_ID": str(os.getpid() % 10000),
    }
    return folder, environment


def test_every_stage_is_submitted_after_those_that_it_needs(cluster):
    folder, environment = cluster
    recipe = load_recipe(ROOT / "recipes" / "t2i-256.toml", ())
    command = [ROOT / "scripts" / "slurm" / "submit.sh", "recipes/t2i-256.toml", "/data/with space", "4", "-p", "gpu"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    submitted = (folder / "submitted").read_text().splitlines()
    jobs = {name: 101 + number for number, name in enumerate(recipe.order())}
    assert len(submitted) == len(jobs)
    for (name, _), words in zip(jobs.items(), submitted, strict=True):
        stage = recipe.stage[name]
        assert words.endswith(f"-p gpu scripts/slurm/stage.sbatch {name} recipes/t2i-256.toml --data /data/with space")
        assert ("--nodes 4" in words) == (stage.kind == "encode" or getattr(stage, "training", None) is not None)
        after = "".join(f":{jobs[need]}" for need in stage.needs)
        assert (f"--dependency afterok{after} " in words) if after else ("--dependency" not in words)


def test_a_recipe_that_cannot_be_read_submits_nothing(cluster, tmp_path):
    folder, environment = cluster
    (tmp_path / "bad.toml").write_text("[stage.vae]\nkind = 'vea'\n")
    command = [ROOT / "scripts" / "slurm" / "submit.sh", tmp_path / "bad.toml", "data", "1"]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0
    assert not (folder / "submitted").exists()


def test_a_job_that_is_told_to_stop_saves_on_all_processes_asks_for_the_queue_and_goes_on(cluster, tmp_path):
    folder, environment = cluster
    (tmp_path / "tiny.toml").write_text(TINY.replace("steps = 8", "steps = 120"), encoding="utf-8")
    stage = tmp_path / "out" / "tiny" / "levels"
    words = ["bash", ROOT / "scripts/slurm/stage.sbatch", "levels", tmp_path / "tiny.toml", "--out", tmp_path / "out"]
    stopped = subprocess.run(words, env={**environment, "SIGNALLED": str(stage / "log.jsonl")}, text=True,
                             capture_output=True, timeout=300, check=False)  # fmt: skip
    assert stopped.returncode == 75, stopped.stderr
    assert (folder / "asked").read_text().split() == ["requeue", environment["SLURM_JOB_ID"]]
    again = subprocess.run([*words, "--set", "stage.levels.training.steps=120"], env=environment, text=True,
                           capture_output=True, timeout=300, check=False)  # fmt: skip
    assert again.returncode == 0, again.stderr
    manifest = json.loads((stage / "manifest.json").read_text())
    assert manifest["steps"] == 120 and manifest["earlier_seconds"] > 0
