"""Which version of the code runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

VERSION = "0.1.0"


def code_version() -> str:
    """Return the version and, in a checkout, the commit with a mark for uncommitted changes."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return VERSION
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return VERSION
    return f"{VERSION}+{described.stdout.strip()}"
