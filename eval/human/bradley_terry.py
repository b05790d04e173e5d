"""Strengths from paired comparisons (Bradley & Terry 1952): P(i beats j) = sigmoid(theta_i - theta_j).

One fit over all votes, never a rating that is updated vote by vote: that would depend on the order of the votes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.human.errors import StudyError

RIDGE = 0.01  # weight of theta^2 / 2 against one comparison, where the likelihood alone has no maximum
STEPS = 60
LARGEST_STEP = 2.0  # of a strength in one Newton step, in nats
SCALE = 400 / np.log(10)  # display: 400 points are odds of ten to one


def bradley_terry(wins: ArrayLike, names: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Maximum-likelihood strengths (M,) in nats with sum 0; a tie is half a win for each side.

        max over theta of sum_ij W_ij log sigmoid(theta_i - theta_j)

    wins: W (M, M), W[i, j] = wins of i over j. Where some models never lost to the others (`separated`) the maximum
    lies at infinity: then RIDGE holds it back, and only the order says something, not the distance. Raises StudyError
    for values that are no counts, and where the comparisons fall apart into groups, which it names.
    """
    w = _checked(wins)
    parts = groups(w)
    if len(parts) > 1:
        called = [", ".join(str(names[i] if names else i) for i in part) for part in parts]
        raise StudyError(
            f"the comparisons fall apart into {len(parts)} groups ({' | '.join(called)}) that nobody compared with one "
            "another: their strengths have no common scale; add pairs between the groups, or report each by itself"
        )
    return fit(w[None])[0]


def groups(wins: ArrayLike) -> list[list[int]]:
    """Models that are linked by comparisons, as lists of their numbers."""
    w = _checked(wins)
    return _classes(reachable(((w + w.T) > 0)[None])[0])


def separated(wins: ArrayLike) -> list[list[int]]:
    """Classes of models, best first, between which one side won everything; one class where the maximum is finite."""
    w = _checked(wins)
    reach = reachable((w > 0)[None])[0]
    return sorted(_classes(reach & reach.T), key=lambda part: -int(reach[part[0]].sum()))


def fit(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strengths (B, M) of many win matrices (B, M, M) at once by Newton's method; NaN where one falls apart."""
    w = np.asarray(wins, dtype=np.float64)
    models = w.shape[-1]
    played = w + w.swapaxes(-1, -2)  # (B, M, M)
    whole = reachable(played > 0).all((-1, -2))
    ridge = np.where(reachable(w > 0).all((-1, -2)), 0.0, RIDGE)[:, None]  # (B, 1)
    theta = np.zeros(w.shape[:-1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))  # (B, M, M): P(i beats j)
        gradient = (w - played * p).sum(-1) - ridge * theta
        curvature = played * p * (1 - p)
        hessian = np.eye(models) * (curvature.sum(-1) + ridge)[:, None, :] - curvature
        hessian[~whole] = np.eye(models)
        step = np.linalg.solve(hessian + 1 / models, gradient[..., None])[..., 0]  # 1/M fixes the sum at 0
        longest = np.abs(step).max(-1, keepdims=True)
        theta = theta + step * np.minimum(1, LARGEST_STEP / np.maximum(longest, 1e-300))
        if longest[whole].max(initial=0) < 1e-11:
            break
    theta[~whole] = np.nan
    return theta - theta.mean(-1, keepdims=True)


def reachable(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Transitive closure of directed graphs (B, M, M), every node with itself."""
    closed = edges | np.eye(edges.shape[-1], dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(edges.shape[-1]))))):
        closed = (closed.astype(np.float32) @ closed.astype(np.float32)) > 0
    return closed


def cycles(wins: ArrayLike) -> list[list[int]]:
    """Condorcet cycles: sets of models each of which is beaten by another of the set in the majority of votes."""
    w = _checked(wins)
    reach = reachable((w > w.T)[None])[0]
    return [part for part in _classes(reach & reach.T) if len(part) > 1]


def _classes(same: NDArray[np.bool_]) -> list[list[int]]:
    return [list(map(int, np.flatnonzero(row))) for i, row in enumerate(same) if np.flatnonzero(row)[0] == i]


def _checked(wins: ArrayLike) -> NDArray[np.float64]:
    w = np.asarray(wins, dtype=np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or len(w) < 2:
        raise StudyError(f"wins has shape {w.shape}: expected a square matrix of at least two models")
    bad = np.argwhere(~np.isfinite(w) | (w < 0))
    if len(bad):
        i, j = bad[0]
        raise StudyError(f"wins[{i}, {j}] is {w[i, j]}: expected a count of at least 0; count these votes again")
    if np.diagonal(w).any():
        raise StudyError("a model was compared with itself: leave the diagonal of wins at 0")
    return w
