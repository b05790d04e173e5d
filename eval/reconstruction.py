"""What an autoencoder keeps: PSNR and SSIM per picture, and how its codebook is used."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import correlate1d
from scipy.special import gammaln

from eval.interval import Interval, jackknife, mean_interval

CAP = 100.0  # decibels given to a picture without any error
FAR = 100.0  # values that are all >= 0 and reach it are bytes, and no decoder that overshoots
WINDOW = 11  # taps of the Gaussian of SSIM
SUBSAMPLE = 10_000  # tokens at which usage is comparable between sets of different size


@dataclass(frozen=True, kw_only=True)
class PSNR:
    """Mean of the per-picture decibels with its interval, and how many pictures were exact and count as CAP."""

    interval: Interval
    capped: int


def psnr(real: ArrayLike, fake: ArrayLike) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio 10 log10(range^2 / MSE) of each picture in dB, (B,), at most CAP.

    Both (B, ...) floats in [-1, 1] (range 2; `fake` is clamped first) or both uint8 (range 255).
    Raises ValueError for other types, shapes that differ, NaN, and real pictures outside [-1, 1].
    """
    x, y, span = _images(real, fake)
    mse = ((x - y) ** 2).reshape(len(x), -1).mean(1)
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(span**2 / mse), CAP)


def summarise_psnr(values: NDArray[np.float64]) -> PSNR:
    """Mean of per-picture dB, which is not the dB of the mean error; exact pictures are counted."""
    return PSNR(interval=mean_interval(values), capped=int((values >= CAP).sum()))


def ssim(real: ArrayLike, fake: ArrayLike) -> NDArray[np.float64]:
    """Structural similarity of each picture, (B,), as in Wang et al. 2004 (doi:10.1109/TIP.2003.819861), eq. 13.

        (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2))

    Gaussian window of 11 taps and deviation 1.5, biased moments, c = (0.01 range)^2 and (0.03 range)^2, mean over the
    channels and the region where the window fits. (B, C, H, W) floats in [-1, 1] or (B, H, W, C) uint8.
    """
    x, y, span = _images(real, fake)
    rows, columns = (1, 2) if np.asarray(real).dtype == np.uint8 else (2, 3)
    if x.ndim != 4 or min(x.shape[rows], x.shape[columns]) < WINDOW:
        raise ValueError(f"SSIM needs four axes and sides of at least {WINDOW} pixels, got shape {x.shape}")
    return np.array([_ssim(a, b, span, (rows - 1, columns - 1)) for a, b in zip(x, y, strict=True)])


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64], span: float, axes: tuple[int, int]) -> float:
    taps = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in axes:
            inner = np.arange(WINDOW // 2, values.shape[axis] - WINDOW // 2)
            values = correlate1d(values, taps, axis=axis).take(inner, axis=axis)
        return values

    m_x, m_y = local(x), local(y)
    v_x, v_y, v_xy = local(x * x) - m_x**2, local(y * y) - m_y**2, local(x * y) - m_x * m_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return float(((2 * m_x * m_y + c1) * (2 * v_xy + c2) / ((m_x**2 + m_y**2 + c1) * (v_x + v_y + c2))).mean())


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """Use of K codes over a whole split: shares in [0, 1], perplexity = exp(entropy) in [1, K], entropy in bits."""

    usage: float
    usage_at_subsample: float  # expected share of codes met in SUBSAMPLE tokens; NaN where there are fewer
    perplexity: float
    bits: float
    dead: int
    top_share: float
    tokens: int


def count_codes(codes: ArrayLike, size: int) -> NDArray[np.int64]:
    """Count each of `size` codes in an integer array of any shape, (size,); counts of batches and ranks simply add."""
    flat = np.asarray(codes).ravel()
    if len(flat) and (flat.min() < 0 or flat.max() >= size):
        raise ValueError(f"codes lie in [{flat.min()}, {flat.max()}], expected [0, {size - 1}]")
    return np.bincount(flat, minlength=size)


def codebook(counts: ArrayLike) -> Codebook:
    """Statistics of the counts (K,) over the whole split; a mean of per-batch perplexities would be too low."""
    c = np.asarray(counts, dtype=np.float64)
    total = c.sum()
    if c.ndim != 1 or total <= 0 or c.min() < 0:
        raise ValueError(f"counts must be (K,), not negative and not all zero, got shape {c.shape} with sum {total}")
    p = c[c > 0] / total
    entropy = float(-(p * np.log(p)).sum())
    return Codebook(
        usage=float((c > 0).mean()),
        usage_at_subsample=_usage_at(c, SUBSAMPLE),
        perplexity=float(np.exp(entropy)),
        bits=float(entropy / np.log(2)),
        dead=int((c == 0).sum()),
        top_share=float(c.max() / total),
        tokens=int(total),
    )


def perplexity_interval(codes: ArrayLike, size: int) -> Interval:
    """Perplexity of the codes (n, L) of n pictures, with an interval over pictures whose codes hang together.

    The jackknife of the entropy, exponentiated. A bootstrap draws pictures with repeats and so loses codes: its
    entropies would lie below that of the split. n counts pictures.
    """
    found = jackknife(np.log(codebook(count_codes(codes, size)).perplexity), entropies_without(codes, size))
    value, low, high = np.exp([found.value, found.low, found.high]).tolist()
    return Interval(value, low, high, found.n)


def entropies_without(codes: ArrayLike, size: int) -> NDArray[np.float64]:
    """Entropy in nats of the codes (n, L) without each of the n pictures in turn, (n,).

        H_i = log M - 1/M sum_k c_k log c_k,   c the counts of the M = (n - 1) L tokens that are left

    A picture changes only the terms of the codes that it holds, so that all cost no more than the counting.
    """
    held = np.asarray(codes).reshape(len(np.asarray(codes)), -1)
    n, length = held.shape
    counts = count_codes(held, size).astype(np.float64)
    keys, own = np.unique(held + np.arange(n)[:, None] * size, return_counts=True)
    whole = counts[keys % size]
    added = np.bincount(keys // size, _c_log_c(whole) - _c_log_c(whole - own), n)
    rest = max((n - 1) * length, 1)
    return np.log(rest) - (_c_log_c(counts).sum() - added) / rest


def top_share_interval(codes: ArrayLike, size: int) -> Interval:
    """Share of the commonest code in the codes (n, L): the mean over pictures of its share in each, n of them."""
    held = np.asarray(codes).reshape(len(np.asarray(codes)), -1)
    return mean_interval((held == count_codes(held, size).argmax()).mean(1))


def _c_log_c(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts * np.log(np.maximum(counts, 1))


def _usage_at(counts: NDArray[np.float64], tokens: int) -> float:
    """Expected share of codes in `tokens` tokens drawn without replacement: mean of 1 - C(N - c, t) / C(N, t)."""
    n = counts.sum()
    if n < tokens:
        return float("nan")
    rest = n - counts
    possible = rest >= tokens  # a code missing from too few tokens cannot be missed
    log_missed = gammaln(rest + 1) - gammaln(np.where(possible, rest - tokens, 0) + 1)
    log_missed += gammaln(n - tokens + 1) - gammaln(n + 1)
    return float((1 - np.where(possible, np.exp(log_missed), 0)).mean())


def _images(real: ArrayLike, fake: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Both sets as float64 with their data range."""
    x, y = np.asarray(real), np.asarray(fake)
    if x.shape != y.shape or x.ndim < 2 or not x.size:
        raise ValueError(f"pictures must have one shape (B, ...) with pixels, got {x.shape} and {y.shape}")
    if x.dtype == y.dtype == np.uint8:
        return x.astype(np.float64), y.astype(np.float64), 255.0
    if not (np.issubdtype(x.dtype, np.floating) and np.issubdtype(y.dtype, np.floating)):
        raise ValueError(f"pictures must both be uint8 or both floats in [-1, 1], got {x.dtype} and {y.dtype}")
    for name, side in (("real", x), ("fake", y)):
        if not np.isfinite(side).all():
            broken = int((~np.isfinite(side)).reshape(len(side), -1).any(1).sum())
            raise ValueError(f"{broken} of {len(side)} {name} pictures hold NaN or infinite values: check the model")
    if np.abs(x).max() > 1 + 1e-6:
        raise ValueError(f"real pictures must lie in [-1, 1], got [{x.min():g}, {x.max():g}]: scale them")
    if y.min() >= 0 and y.max() > FAR:
        raise ValueError(f"fake pictures lie in [{y.min():g}, {y.max():g}], expected about [-1, 1]: scale them")
    return x.astype(np.float64), y.astype(np.float64).clip(-1, 1), 2.0
