"""What made a report: code, versions and machine, beside what the report's own maker says."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from eval.blocks import Provenance
from pipelines.version import code_version

PACKAGES = ("torch", "numpy", "scipy", "open_clip_torch", "tokenizers", "webdataset", "accelerate")


def made_by(**facts: Any) -> Provenance:
    """Return the provenance of a report that is made now; facts: the fields that only its maker knows."""
    revision = code_version()
    return Provenance(
        commit=revision.removesuffix("-dirty"),
        dirty=revision.endswith("-dirty"),
        versions={package: version(package) for package in PACKAGES},
        machine=machine(),
        **facts,
    )


def machine() -> str:
    """Describe the machine in a few words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {platform.system()}"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} thread(s) at evaluation), {platform.system()}"
