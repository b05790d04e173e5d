"""Random draws with explicit generators: one for the whole batch, or one per item.

With one generator per item, item i is the same whatever batch it is drawn in. A draw happens on the generator's device
and is moved afterwards, so a CPU generator gives the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Randomness = torch.Generator | Sequence[torch.Generator]
"""One generator for the batch, or one per item of the batch."""


def noise_like(x: Tensor, generator: Randomness) -> Tensor:
    """Draw standard normal noise with the shape, dtype and device of x.

    x: (B, ...), any floating dtype. Half precision is drawn in float32 and rounded. Raises ValueError where the number
    of generators is not B.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)

    def normal(shape: Sequence[int], source: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=source, dtype=dtype, device=source.device)

    return _draw(normal, x.shape, generator).to(x.dtype).to(x.device)


def uniform(
    shape: Sequence[int],
    generator: Randomness,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw uniform numbers in [0, 1).

    shape: (B, ...). The default float64 keeps 53 random bits, which inverse-CDF sampling of rare events needs
    (arXiv:2409.02908). device: None is the generator's. Raises ValueError where the number of generators is not B.
    """

    def flat(size: Sequence[int], source: torch.Generator) -> Tensor:
        return torch.rand(size, generator=source, dtype=dtype, device=source.device)

    return _draw(flat, shape, generator).to(device)


def _draw(
    draw: Callable[[Sequence[int], torch.Generator], Tensor], shape: Sequence[int], generator: Randomness
) -> Tensor:
    if isinstance(generator, torch.Generator):
        return draw(shape, generator)
    if not shape or len(generator) != shape[0]:
        raise ValueError(
            f"{len(generator)} generators for a draw of shape {tuple(shape)}: expected one per item of the first axis; "
            "pass as many generators as there are items, or a single one for the whole batch"
        )
    if not len(generator):  # an empty batch draws nothing
        return draw(shape, torch.Generator())
    return torch.stack([draw(shape[1:], source) for source in generator])
