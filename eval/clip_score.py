"""Agreement of pictures with their captions: the raw cosine of two embeddings, never scaled, with its floor."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.interval import Interval, mean_interval
from eval.rows import check_pair


def cosines(images: ArrayLike, texts: ArrayLike) -> NDArray[np.float64]:
    """Cosine of each picture with its caption, (n,) in [-1, 1]. images, texts: (n, d).

    Raises ValueError where a picture is missing, an embedding is not finite or has length zero.
    """
    a, b = check_pair(images, texts)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} pictures for {len(b)} captions: a missing picture is an error, not a smaller mean")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not lengths.all():
        raise ValueError(f"{int((lengths == 0).sum())} embeddings have length zero")
    return (a * b).sum(1) / lengths


def clip_score(images: ArrayLike, texts: ArrayLike, prompts: Sequence[Hashable] | None = None) -> Interval:
    """Mean raw cosine: over the pictures of a prompt, then over prompts, which the interval is over (Student's t).

    images, texts: (n, d); prompts: n ids, by default every row is its own prompt. Published scales (x 100, x 2.5) and
    other models give other numbers: the caller names the embedder beside the value.
    """
    cos = cosines(images, texts)
    groups: dict[Hashable, list[float]] = {}
    for prompt, value in zip(range(len(cos)) if prompts is None else prompts, cos, strict=True):
        groups.setdefault(prompt, []).append(float(value))
    return mean_interval([float(np.mean(group)) for group in groups.values()])


def shuffled_floor(
    images: ArrayLike, texts: ArrayLike, prompts: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval:
    """`clip_score` of the same pictures with the caption of another prompt: what no agreement at all would score."""
    rows = range(len(np.asarray(texts))) if prompts is None else prompts
    partner = other_prompt(rows, seed=seed)
    return clip_score(images, np.asarray(texts)[partner], prompts)


def other_prompt(prompts: Sequence[Hashable], *, seed: int = 0) -> NDArray[np.int64]:
    """For each row the first row of another prompt: one random cycle through all prompts, so that none meets itself."""
    first: dict[Hashable, int] = {}
    for row, prompt in enumerate(prompts):
        first.setdefault(prompt, row)
    if len(first) < 2:
        raise ValueError("shuffling captions needs at least two different prompts")
    names = list(first)
    cycle = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    following = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return np.array([first[following[prompt]] for prompt in prompts])
