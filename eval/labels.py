"""The text of charts: numbers and names that are short enough, and heights at which names do not overlap."""

from collections.abc import Sequence

from eval.page import printable


def compact(x: float) -> str:
    """A tick label without mathematics: 1500 -> 1.5k."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{sign}"
    return f"{x:.3g}"


def clip(text: str, longest: int = 30) -> str:
    """A label short enough for an axis."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def spread(heights: Sequence[float], step: float) -> list[float]:
    """Heights, given rising, moved apart to `step` at least, the last no higher than 1: first up, then down."""
    moved = list[float]()
    for height in heights:
        moved.append(max(height, moved[-1] + step) if moved else height)
    top = 1.0 + step
    for i in reversed(range(len(moved))):
        moved[i] = top = min(moved[i], top - step)
    return moved
