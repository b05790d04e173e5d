"""What a mean over pictures is a mean of: one value per picture, kept beside the figure so that two reports can pair.

Keys say what a value belongs to: the hash of the caption that a picture was made for, or of the picture that was
reconstructed. Values with one key hang together. In report.json a figure's keys and weights stand once; where another
figure has the same, its name stands in their place.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from eval.interval import Interval

NOISE = 1e-4  # of the spread of values: what rounding and other processors change
DIGITS = 5  # significant ones of every value: 10,000 of them are some 70 kB
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """A figure as sum(weights values) / sum(weights) over pictures or prompts; weights are 1 where none are given.

    Raises ValueError for lengths that differ, no values at all, or numbers that are not finite.
    """

    keys: tuple[str, ...]
    values: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.values) == len(self.weights or self.keys) or not self.keys:
            lengths = f"{len(self.keys)} keys, {len(self.values)} values and {len(self.weights)} weights"
            raise ValueError(f"{lengths}, expected as many of each (or no weights), and at least one")
        if not np.isfinite([*self.values, *self.weights]).all() or min(self.weights, default=1) < 0:
            raise ValueError("values must be finite, and weights finite and not negative")

    @property
    def mean(self) -> float:
        """The figure that the values make."""
        return float(np.average(self.values, weights=self.weights or None))

    def by_key(self) -> tuple[list[str], Array, Array]:
        """The k different keys in order, and the sums of their weighted values and of their weights, (k,) each."""
        keys, place = np.unique(self.keys, return_inverse=True)
        weights = np.asarray(self.weights or np.ones(len(self.keys)), dtype=np.float64)
        sums, totals = (np.bincount(place, part).astype(np.float64) for part in (weights * self.values, weights))
        return keys.tolist(), sums, totals


def key_of(content: str | bytes) -> str:
    """The identity of a caption or of a picture's bytes: 12 hexadecimal digits."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:12]


def within_prompts(keys: Sequence[str]) -> tuple[float, ...]:
    """Weights with which every key counts once, however many values it has."""
    counts = {key: 0 for key in keys}
    for key in keys:
        counts[key] += 1
    return tuple(1 / counts[key] for key in keys)


def change(first: Samples, second: Samples) -> tuple[Interval, float] | None:
    """Second less first over the same keys, with its interval, and p of no change; None where the keys differ.

        e_k = (s'_k - r' t'_k) / T' - (s_k - r t_k) / T,   variance K / (K - 1) sum_k e_k^2

    s, t: sums of weighted values and of weights of each of K keys, r and T those of all. What both share, such as how
    hard a caption is, cancels in e. Student's t with K - 1 degrees of freedom; where every key has one value that is 0
    or 1, p is that of the exact sign test over the keys that changed. Changes below NOISE of the spread of the values
    are none: another processor moves as much. None also where all keys changed by the same: nothing says how much they
    vary.
    """
    (keys, *a), (others, *b) = first.by_key(), second.by_key()
    if keys != others or len(keys) < 2 or not a[1].sum() or not b[1].sum():
        return None
    left = [(sums - sums.sum() / totals.sum() * totals) / totals.sum() for sums, totals in (a, b)]
    error = float(np.sqrt(len(keys) / (len(keys) - 1) * ((left[1] - left[0]) ** 2).sum()))
    value, df = second.mean - first.mean, len(keys) - 1
    half = float(stats.t.ppf(0.975, df)) * error
    found = Interval(value, value - half, value + half, len(keys), df)
    if abs(value) <= max(1e-12, NOISE * float(np.std([*first.values, *second.values]))):
        return found, 1.0
    if _verdicts(first) and _verdicts(second):
        moved = b[0] - a[0]
        return found, float(stats.binomtest(int((moved > 0).sum()), int((moved != 0).sum())).pvalue)
    if error <= 1e-12 * max(1.0, abs(value)):
        return None
    return found, float(2 * stats.t.sf(abs(value) / error, df))


def _verdicts(one: Samples) -> bool:
    """Whether every key has one value, which is right or wrong."""
    plain = not one.weights or set(one.weights) == {1.0}
    return plain and set(one.values) <= {0.0, 1.0} and len(set(one.keys)) == len(one.keys)


def to_json(samples: Mapping[str, Samples]) -> dict[str, dict[str, Any]]:
    """Samples by figure as plain data; what an earlier figure has the same of is named by it."""
    seen: dict[tuple[Any, ...], str] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, one in samples.items():
        parts: dict[str, Any] = {"keys": one.keys, "values": [float(f"{v:.{DIGITS}g}") for v in one.values]}
        if one.weights:
            parts["weights"] = tuple(float(f"{w:.{DIGITS}g}") for w in one.weights)
        for part in ("keys", "weights"):
            if part in parts:
                before = seen.setdefault((part, parts[part]), name)
                parts[part] = list(parts[part]) if before == name else before
        found[name] = parts
    return found


def from_json(content: Any) -> dict[str, Samples]:
    """Samples of a report.json by figure. Raises ValueError for what `to_json` never wrote."""
    found: dict[str, Samples] = {}
    if not isinstance(content, dict):
        raise ValueError(f"samples are a {type(content).__name__}, expected values by figure")
    for name, one in content.items():
        try:
            parts = {part: one[part] for part in ("keys", "values", "weights") if part in one}
            for part in ("keys", "weights"):
                if isinstance(parts.get(part), str):
                    parts[part] = getattr(found[parts[part]], part)
            keys, values = tuple(map(str, parts["keys"])), tuple(map(float, parts["values"]))
            found[name] = Samples(keys, values, tuple(map(float, parts.get("weights", ()))))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the samples of {name} cannot be read ({error}): make the report again") from error
    return found


def written(content: Mapping[str, Any]) -> str:
    """A report as JSON text, samples one figure a line: ten thousand numbers need no lines of their own."""
    rest = {key: value for key, value in content.items() if key != "samples"}
    text = json.dumps(rest, indent=1, ensure_ascii=False, allow_nan=False)
    if not content.get("samples"):
        return text + "\n"
    lines = [
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(one, separators=(',', ':'), allow_nan=False)}"
        for name, one in content["samples"].items()
    ]
    return text.removesuffix("\n}") + ',\n "samples": {\n' + ",\n".join(lines) + "\n }\n}\n"
