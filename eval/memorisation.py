"""Whether a model repeats its training set: how near its samples lie to training samples, beside held-out real ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.interval import BLOCK, RESAMPLES, Interval, ends, wilson
from eval.neighbours import nearest
from eval.rows import repeats

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Distances to the training set of generated and of held-out real samples, and what they say.

    A held-out sample lies as near to the training set as chance and the data's own repetition bring it. `closer` counts
    generated samples nearer than all but a share q of the held-out ones: q where nothing is memorised.
    """

    generated: Array  # (n,) Euclidean distance of each generated sample to its nearest training sample
    neighbours: NDArray[np.int64]  # (n,) that training sample
    real: Array  # (r,) the same distance of each held-out sample
    quantile: float  # q
    threshold: float  # the q-quantile of `real`
    closer: Interval  # share of generated samples nearer than the threshold
    copies: Interval  # share of generated samples that equal a training sample
    duplicates: float  # share of generated samples that equal an earlier generated one


def memorisation(
    generated: ArrayLike, held_out: ArrayLike, train: ArrayLike, *, quantile: float = 0.05, seed: int = 0
) -> Memorisation:
    """Compare generated (n, ...), held-out (r, ...) and training samples (m, ...) in one space: pixels or features.

    Pictures may stay uint8: distances are read a block at a time, exactly, in values of the type given. Pixels find
    copies, features also what was shifted or recoloured. The interval of `closer` is a bootstrap over generated and
    held-out samples, the training set being fixed. Raises ValueError for shapes that differ, NaN, fewer held-out
    samples than the quantile needs, or as many of them in the training set.
    """
    made, real, known = (
        _flat(x, name) for x, name in ((generated, "generated"), (held_out, "held_out"), (train, "train"))
    )
    if not made.shape[1] == real.shape[1] == known.shape[1]:
        raise ValueError(
            f"generated, held_out and train have widths {made.shape[1]}, {real.shape[1]} and {known.shape[1]}: bring "
            "them to one size, or use one embedder for all"
        )
    if not (0 < quantile < 1 and len(real) * quantile >= 1):
        raise ValueError(
            f"quantile={quantile} of {len(real)} held-out samples needs 0 < quantile < 1 and at least 1 / quantile of "
            "them: pass more samples or a higher quantile"
        )
    to_train = nearest(made, known)
    distance, mark = (np.sqrt(found[:, 0]) for found in (to_train.squared, nearest(real, known).squared))
    threshold = float(np.quantile(mark, quantile))
    if threshold == 0:
        raise ValueError(
            f"{int((mark == 0).sum())} of {len(mark)} held-out samples equal training samples, so that none can be "
            "nearer: pass held-out samples that are not in the training set"
        )
    return Memorisation(
        generated=distance,
        neighbours=to_train.rows[:, 0],
        real=mark,
        quantile=quantile,
        threshold=threshold,
        closer=share_closer(distance, mark, quantile, seed=seed),
        copies=wilson(int((distance == 0).sum()), len(distance)),
        duplicates=repeats(made),
    )


def share_closer(generated: Array, real: Array, quantile: float, *, seed: int = 0) -> Interval:
    """Share of distances (n,) below the q-quantile of real ones (r,), with a bootstrap over both; n counts the first.

    None or all of them below leave a bootstrap without spread: then Wilson's interval.
    """
    value = float((generated < np.quantile(real, quantile)).mean())
    if value in (0, 1):
        return wilson(value * len(generated), len(generated))
    rng, step, shares = np.random.default_rng(seed), max(1, BLOCK // max(len(generated), len(real))), []
    for start in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - start)
        marks = np.quantile(rng.choice(real, (draws, len(real))), quantile, axis=1)
        shares.append((rng.choice(generated, (draws, len(generated))) < marks[:, None]).mean(1))
    low, high = ends(np.concatenate(shares), min(len(generated), len(real)))
    return Interval(value, low, high, len(generated))


def _flat(samples: ArrayLike, name: str) -> NDArray:
    """Samples as rows (n, d) of the type that they have."""
    x = np.asarray(samples)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"{name} must have shape (n, ...) with n >= 1, got {x.shape}: one row or picture per sample")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has NaN or infinite entries, not finite ones: check the embedder")
    return x.reshape(len(x), -1)
