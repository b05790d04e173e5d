"""Learning rates over a training run: what `training.schedule` names, each a function of the step and the steps.

A rate depends on the step and on the number of steps as planned at that step, on nothing else, so that a resumed run
repeats it. All are shares of training.learning_rate, on top of a linear warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never


@dataclass(frozen=True, kw_only=True)
class _Falling:
    """A schedule that ends at the share `final`."""

    final: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0 <= self.final <= 1:
            raise ValueError(f"schedule.final = {self.final}, expected a share of the learning rate from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
    """Half a cosine from 1 to `final` (arXiv:1608.03983, eq. 5, without restarts)."""

    kind: Literal["cosine"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Linear(_Falling):
    """A line from 1 to `final`."""

    kind: Literal["linear"] = "linear"


@dataclass(frozen=True, kw_only=True)
class Constant:
    """1 throughout."""

    kind: Literal["constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class WSD(_Falling):
    """Warm-up, stable, decay (arXiv:2404.06395, sec. 4): 1, then over the last share `decay` a line to `final`."""

    kind: Literal["wsd"] = "wsd"
    decay: float = 0.1

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise ValueError(f"schedule.decay = {self.decay}, expected a share of the steps, such as 0.1")


@dataclass(frozen=True, kw_only=True)
class InverseSqrt:
    """1 up to step `reference`, then 1 / sqrt(step / reference), as EDM2 trains (arXiv:2312.02696).

    It knows no last step: a run can be made longer.
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    reference: int

    def __post_init__(self) -> None:
        """Refuse a step that is none."""
        if self.reference < 1:
            raise ValueError(f"schedule.reference = {self.reference}, expected a step, such as 1000")


RateSchedule = Cosine | Linear | Constant | WSD | InverseSqrt


def cosine(step: int, steps: int, final: float = 0.0) -> float:
    """final + (1 - final) (1 + cos(pi step / steps)) / 2."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / steps))


def linear(step: float, steps: float, final: float = 0.0) -> float:
    """1 - (1 - final) step / steps."""
    return 1 - (1 - final) * step / steps


def wsd(step: int, steps: int, decay: float, final: float = 0.0) -> float:
    """1 before step (1 - decay) steps, then a line that would meet `final` at `steps`."""
    begins = (1 - decay) * steps
    return 1.0 if step <= begins else linear(step - begins, steps - begins, final)


def inverse_sqrt(step: int, reference: int) -> float:
    """1 / sqrt(max(step / reference, 1))."""
    return 1 / math.sqrt(max(step / reference, 1.0))


def warm_up(step: int, steps: int, warmup: int) -> float:
    """Rise in equal parts to 1 over `warmup` steps, or a quarter of all where they are fewer."""
    return min(1.0, (step + 1) / max(1, min(warmup, steps // 4)))


def share(schedule: RateSchedule, step: int, steps: int) -> float:
    """Return the share of the learning rate at a step."""
    match schedule:
        case Cosine():
            return cosine(step, steps, schedule.final)
        case Linear():
            return linear(step, steps, schedule.final)
        case Constant():
            return 1.0
        case WSD():
            return wsd(step, steps, schedule.decay, schedule.final)
        case InverseSqrt():
            return inverse_sqrt(step, schedule.reference)
        case _:
            assert_never(schedule)
