"""What many tests share: where real data lies, and one smoke run that is killed in the middle and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backbone.clip import cure_torchvision

ROOT = Path(__file__).resolve().parent.parent
cure_torchvision()  # oracles import torchvision


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares costly fixtures in one process where several run: a file, all files that read a smoke run."""
    smoky = {item.path for item in items if "smoke" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("smoke" if item.path in smoky else str(item.path)))


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
