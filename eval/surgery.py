"""What the KL term of a VAE pays for: information about the pictures, and latents that miss the prior.

ELBO surgery (Hoffman and Johnson 2016, "ELBO surgery: yet another way to carve up the variational evidence lower
bound") over n held-out items, one draw z_i of each posterior:

    E KL(q(z|x) || p(z)) = MI(x; z) + KL(q(z) || p(z)),   q(z) = 1/n sum_j q(z | x_j)

All terms are means over items, so that an interval over items holds for each. The mixture is made of the same items;
its error does not add to the first order, since the mean of q(z | x_j) / q(z) over z ~ q is 1 for every j.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ACTIVE = 0.01  # variance of a posterior's mean above which a unit is in use (arXiv:1509.00519, sec. 4.1)
PAIRS = 1 << 22  # pairs of a draw and a posterior that are held in memory at once
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """Terms of each item in nats, (n,) float64 each: kl = mutual_information + marginal_kl."""

    kl: Array
    mutual_information: Array
    marginal_kl: Array


def surgery(mean: ArrayLike, log_var: ArrayLike, samples: ArrayLike, log_prior: ArrayLike) -> Surgery:
    """Carve up the KL of whole latents, from one draw of each posterior.

        mutual_information_i = log q(z_i | x_i) - log q(z_i);   marginal_kl_i = log q(z_i) - log p(z_i)

    mean, log_var, samples: (n, d) or (n, c, h, w), posteriors and z_i; log_prior: (n,) log p(z_i) of any prior.
    The information saturates at log n, which a vector of many values reaches at once: then log n is a lower bound on it
    and what is left an upper bound on the other term. Raises ValueError for shapes that differ and for NaN.
    """
    m, v, z = (_rows(part, name) for part, name in ((mean, "mean"), (log_var, "log_var"), (samples, "samples")))
    prior = np.asarray(log_prior, dtype=np.float64)
    if not m.shape == v.shape == z.shape or prior.shape != (len(m),):
        shapes = ", ".join(str(part.shape) for part in (m, v, z, prior))
        raise ValueError(f"mean, log_var, samples and log_prior have shapes {shapes}, expected (n, d) thrice and (n,)")
    own = -0.5 * (np.log(2 * np.pi) + v + (z - m) ** 2 / np.exp(v)).sum(1)
    mixture = _log_mixture(m, v, z, own)
    return Surgery(kl=own - prior, mutual_information=own - mixture, marginal_kl=mixture - prior)


def channel_surgery(mean: ArrayLike, log_var: ArrayLike, samples: ArrayLike, log_prior: ArrayLike) -> Surgery:
    """The same for the values of one channel as a variable of one dimension, a mean over each item's k values: (n,).

    mean, log_var, samples, log_prior: (n, k) each, log_prior being log p of each value. The mixture runs over items and
    positions, all n k, and the information is of both; it saturates at log (n k), far above what one value holds.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in (mean, log_var, samples, log_prior)]
    if any(part.shape != parts[0].shape or part.ndim != 2 for part in parts):
        raise ValueError(f"expected (n, k) four times, got {', '.join(str(part.shape) for part in parts)}")
    m, v, z, prior = (part.reshape(-1) for part in parts)
    each = surgery(m[:, None], v[:, None], z[:, None], prior)
    shape = parts[0].shape
    return Surgery(
        kl=each.kl.reshape(shape).mean(1),
        mutual_information=each.mutual_information.reshape(shape).mean(1),
        marginal_kl=each.marginal_kl.reshape(shape).mean(1),
    )


def mean_surgery(channels: list[Surgery]) -> Surgery:
    """Mean of channels that share their items: nats per latent value, (n,) each."""
    names = ("kl", "mutual_information", "marginal_kl")
    return Surgery(**{name: np.mean([getattr(one, name) for one in channels], 0) for name in names})


def unit_variance(mean: ArrayLike) -> Array:
    """How far a posterior's mean moves with the item: Cov_x(E_q[z | x]) (arXiv:1509.00519, sec. 4.1).

    mean: (n, d) -> (d,); (n, c, h, w) -> (c,), the variance over items at each position, a mean over positions: what
    differs between positions but not between items is no information about them. Needs two items.
    """
    m = np.asarray(mean, dtype=np.float64)
    if m.ndim not in (2, 4) or len(m) < 2:
        raise ValueError(f"means must be (n, d) or (n, c, h, w) of at least two items, got shape {m.shape}")
    variance = m.var(0, ddof=1)
    return variance if m.ndim == 2 else variance.mean((1, 2))


def some_positions(latents: ArrayLike, values: int, seed: int) -> NDArray[np.int64]:
    """Draw as many positions of each item, without repeats, as keep n k at or below `values` (at least one).

    latents: (n, c, h, w) of any content -> (n, 1, k) indices into the flattened h w, for `numpy.take_along_axis`.
    """
    n, _, h, w = np.shape(latents)
    count = min(h * w, max(1, values // n))
    rng = np.random.default_rng(seed)
    return np.sort(rng.permuted(np.tile(np.arange(h * w), (n, 1)), axis=1)[:, None, :count])


def _log_mixture(mean: Array, log_var: Array, samples: Array, own: Array) -> Array:
    """log 1/n sum_j q(z_i | x_j) of each row of samples, (n,); own: (n,) log q(z_i | x_i), exact.

    The squared distances come from matrix products around the common mean; a pair of an item with itself, which alone
    can decide the sum, is taken from `own`, so that no item exceeds log n by rounding.
    """
    n, origin = len(mean), mean.mean(0)
    m, z, precision = mean - origin, samples - origin, np.exp(-log_var)
    constant = ((m**2 * precision) + log_var).sum(1) + mean.shape[1] * np.log(2 * np.pi)  # (n,)
    found, step = np.empty(n), max(1, PAIRS // n)
    for start in range(0, n, step):
        part = z[start : start + step]
        pairs = (part**2) @ precision.T  # (b, n)
        pairs -= 2 * part @ (m * precision).T
        pairs += constant
        pairs *= -0.5
        rows = np.arange(len(part))
        pairs[rows, start + rows] = own[start : start + step]
        top = pairs.max(1, keepdims=True)
        found[start : start + step] = top[:, 0] + np.log(np.exp(pairs - top).sum(1))
    return found - np.log(n)


def _rows(values: ArrayLike, name: str) -> Array:
    """Values as float64 (n, d), whatever their trailing axes."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim not in (2, 4) or not x.size:
        raise ValueError(f"{name} must be (n, d) or (n, c, h, w) and not empty, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return x.reshape(len(x), -1)
