"""What every stage of a recipe has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The stages that it needs."""

    needs: tuple[str, ...] = ()
