"""Standard sizes by name, so that a recipe can say size = "B" instead of listing widths and depths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

SizeName = Literal["S", "B", "L", "XL"]

TRANSFORMER_SIZES: Mapping[str, Mapping[str, int]] = {  # arXiv:2212.09748, table 1
    "S": {"dim": 384, "layers": 12, "heads": 6},
    "B": {"dim": 768, "layers": 12, "heads": 12},
    "L": {"dim": 1024, "layers": 24, "heads": 16},
    "XL": {"dim": 1152, "layers": 28, "heads": 16},
}
UNET_SIZES: Mapping[str, Mapping[str, int]] = {
    # With four levels, (1, 2, 3, 4), about the parameters of the DiT of that letter; L is as wide and deep as ADM at 64
    # pixels (arXiv:2105.05233). How many levels there are follows the resolution, not the size.
    "S": {"width": 64, "blocks": 2},
    "B": {"width": 128, "blocks": 2},
    "L": {"width": 192, "blocks": 3},
    "XL": {"width": 256, "blocks": 3},
}


class Default(int):
    """A default value, which the same number can be told from when somebody wrote it down."""


def settle(config: object, size: str | None, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Fill the fields of a frozen configuration that a size names; without a size, defaults become plain numbers.

    Raises ValueError for an unknown size, and for a field that was given another value than the size's.
    """
    if size is not None and size not in sizes:
        raise ValueError(f"size is {size!r}, expected one of {', '.join(sizes)}, or None and sizes of your own")
    for name in next(iter(sizes.values())):
        given = getattr(config, name)
        wanted = given if size is None else sizes[size][name]
        if not isinstance(given, Default) and given != wanted:
            raise ValueError(f"{name} is {given}, expected {wanted} with size {size!r}; leave out {name} or size")
        object.__setattr__(config, name, int(wanted))
