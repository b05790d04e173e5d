"""What every stage of a recipe has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The stages that it needs."""

    needs: tuple[str, ...] = ()

    @property
    def by_all(self) -> bool:
        """Whether all processes work on it together: what trains; all else is the main one's."""
        return getattr(self, "training", None) is not None
