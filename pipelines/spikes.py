"""Gradient norms and their spikes: a step that would go many times as far as its neighbours is not taken."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

WINDOW = 128  # norms that the median is of
LEAST = 32  # of them, before a step is judged


@dataclass
class Norms:
    """The last WINDOW finite gradient norms of each player.

    A spike is a norm above `limit` times their median. The norms of steps that were left out count as well: one spike
    does not move a median, and a change that lasts is no spike for longer than half a window.
    """

    recent: dict[str, deque[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Iterable[float]]) -> Norms:
        """Take norms over from a checkpoint."""
        return cls({name: deque(norms, WINDOW) for name, norms in values.items()})

    def values(self) -> dict[str, list[float]]:
        """Return the norms as plain values."""
        return {name: list(norms) for name, norms in self.recent.items()}

    def judge(self, norms: Mapping[str, float], limit: float) -> str | None:
        """Note the norms of a step; return why it is a spike, none where it is not."""
        reasons = [self._spike(name, norm, limit) for name, norm in norms.items()]
        return next((reason for reason in reasons if reason), None)

    def _spike(self, name: str, norm: float, limit: float) -> str | None:
        recent = self.recent.setdefault(name, deque(maxlen=WINDOW))
        usual = statistics.median(recent) if len(recent) >= LEAST else None
        recent.append(norm)
        if usual is None or norm <= limit * usual:
            return None
        times = f"{norm / usual:.3g} times" if usual else "above"
        return f"its {name.replace('_', ' ')} of {norm:.3g} is {times} the recent median of {usual:.3g}"

    def forget(self) -> None:
        """Begin anew, where what is trained changes."""
        self.recent.clear()
