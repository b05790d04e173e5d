"""What many tests share: where real data lies, and one smoke run that is killed in the middle and resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from backbone.clip import cure_torchvision

ROOT = Path(__file__).resolve().parent.parent
cure_torchvision()  # oracles import torchvision


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run, keep a file in one of them, and all files that read the smoke run in one."""
    from xdist.scheduler import LoadFileScheduling

    smoky = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py") if reads_smoke(path)}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "smoke" if file in smoky else file

    return Scheduling(config, log)


def reads_smoke(path: Path) -> bool:
    """Whether a file asks for the fixture of that name."""
    return re.search(r"^def \w+\([^)]*\bsmoke\b", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def command(*words: str | Path) -> list[str]:
    """The palimpsest command as a process."""
    return [sys.executable, "-m", "pipelines.cli", *map(str, words)]


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Start the command with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command(*words), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(*words: str | Path, code: int = 0) -> str:
    """Run the command to its end and return what it printed; the exit code must be `code`."""
    process = start(*words)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Wait until a file, or one that a pattern names, appears while a process runs."""
    until = time.monotonic() + seconds
    while not any(path.parent.glob(path.name)):
        assert process.poll() is None, f"ended before {path} appeared: {process.communicate()[0]}"
        assert time.monotonic() < until, f"{path} did not appear within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished smoke run whose parent process was killed (SIGKILL) while stages were training."""
    out = tmp_path_factory.mktemp("runs")
    process = start("run", "recipes/smoke.toml", "--out", out)
    wait_for(out / "smoke" / "vae" / "checkpoints" / "[0-9]*", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish("run", "recipes/smoke.toml", "--out", out)
    return out / "smoke"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PALIMPSEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set PALIMPSEST_DATA to run this test")
    return folder
