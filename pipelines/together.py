"""What the processes of a run do apart, and how they end together where one of them cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object

from pipelines.errors import Interrupted, PalimpsestError, said


@contextmanager
def together() -> Iterator[None]:
    """Do a share of the work, or leave it to another process, and wait for all; where one fails, all end.

    All processes must come here, and none may wait for another inside, which may have failed. Raises what this process
    has met, else what another one has: a PalimpsestError of its kind and words. Who is only asked to stop comes last.
    """
    met: Exception | None = None
    try:
        yield
    except Exception as error:  # of any kind: the others wait
        met = error
    kind = type(met) if isinstance(met, PalimpsestError) else PalimpsestError
    heard = [state for state in gather_object([None if met is None else (kind, said(met))]) if state is not None]
    heard.sort(key=lambda state: state[0] is Interrupted)
    if met is not None and (kind is not Interrupted or heard[0][0] is Interrupted):
        raise met
    if heard:
        worst, words = heard[0]
        raise worst(words)


def lost_another(error: RuntimeError) -> bool:
    """Whether an error means that another process of the run has ended, or cannot be reached."""
    if not torch.distributed.is_available():
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)
