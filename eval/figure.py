"""A figure of a report: a number with its count, its interval and what made it, or why it cannot be had."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from eval.interval import Interval

Unit = Literal["share", "dB", "plain"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Figure:
    """One number with the count behind it, its 95 % interval where there is one, and what made it.

    df: degrees of freedom behind the interval, as of `eval.interval.Interval`.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    source: str = ""
    df: float = math.inf

    @classmethod
    def of(cls, interval: Interval, source: str) -> "Figure":
        """The figure of an interval; an infinite end (one value alone has no spread) becomes no interval."""
        return cls(interval.value, interval.n, interval.low, interval.high, source, interval.df)

    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None where either is missing or not finite."""
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return float(self.low), float(self.high)


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be had, and why, in one sentence."""

    reason: str


def missing(reason: str) -> Missing:
    """A figure that cannot be had. `reason` is a sentence that a reader of the report can act on."""
    return Missing(reason)


def why_not_finite(figure: Figure) -> str:
    """The reason that stands in place of a value that is not a finite number."""
    return f"the computation gave {float(figure.value)} over n = {figure.n}"


Known: TypeAlias = Figure | Missing


def attempted(measure: Callable[[], Interval], source: str) -> Known:
    """The figure of a measure, or why it cannot be had: a set that is too small must not cost the report."""
    try:
        return Figure.of(measure(), source)
    except ValueError as error:
        return missing(str(error))
