"""Importing open_clip where torchvision's binary does not load.

PyPI's torchvision is a CUDA build; beside a CPU-only torch its operators are missing, and `import torchvision` fails at
their fake kernels, and with it open_clip and timm.
"""

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def cure_torchvision() -> torch.library.Library | None:
    """Make `import torchvision` work where its binary does not load; call it before that import.

    Declares the two missing operator schemas, which is enough for all that needs no detection operator. Where the real
    operators load nothing changes. Returns the library that holds the schemas (the cache keeps it alive), or None.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _has_operators():
        return None
    for binary in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(binary)
        except OSError:  # the CUDA runtime that it was linked against is not here
            continue
    if _has_operators():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def _has_operators() -> bool:
    return hasattr(torch.ops.torchvision, "nms")


def import_open_clip() -> Any:
    """The `open_clip` module, imported after `cure_torchvision`; raises ImportError with the install command."""
    cure_torchvision()
    try:
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        raise ImportError("open_clip is not installed; run: pip install 'open_clip_torch>=3.3,<4'") from error
