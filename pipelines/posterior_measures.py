"""The latents of a VAE over the held-out split: what its KL pays for, which channels are in use, and its bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.blocks import Bars, Block, Column, Curve, Row, Series, Table
from eval.figure import Figure, missing
from eval.interval import mean_interval
from eval.surgery import ACTIVE, Surgery, channel_surgery, mean_surgery, some_positions, surgery, unit_variance
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import once
from pipelines.hardware import device_of
from pipelines.measures import Evaluation
from pipelines.progress import track
from tokenizer.loss import levels_nll
from tokenizer.prior import LearnedConfig
from tokenizer.vae import VAE

BATCH = 128
PICTURES = 2000  # of the held-out split, evenly spaced
VALUES = 10_000  # of each channel in its mixture
BINS = 60
SATURATED = 1e-6  # nats between pictures
LINES = 6  # channels in the chart of latents
TERMS = ("kl", "mutual_information", "marginal_kl")


@dataclass(frozen=True)
class Latents:
    """Posteriors of n pictures and a draw of each, (n, c, h, w); nats of the pictures given the draws, (n,)."""

    mean: NDArray[np.float32]
    log_var: NDArray[np.float32]
    samples: NDArray[np.float32]
    log_prior: NDArray[np.float64]  # (n,)
    nll: NDArray[np.float64] | None  # where the VAE has a variance


def posterior_use(e: Evaluation, stage: str, model: VAE) -> list[Block]:
    """Note what the KL of a VAE pays for, its rate, its channels in use and its bound; return table and charts."""
    found = held_out_latents(e, stage, model)
    source = f"{stage} {e.run.manifest(stage)['hash'][:12]}, {len(found.mean)} {e.where} pictures, one draw of each"
    whole, channels = surgery(found.mean, found.log_var, found.samples, found.log_prior), _channels(found, e.seed)
    saturated = (
        f"{source}; the information of the mixture of {len(found.mean)} is at most {math.log(len(found.mean)):.2f}"
    )
    _terms(e, stage, "", mean_surgery(channels), f"{source}; {VALUES} values of each channel in its mixture at most")
    _terms(e, stage, "[picture]", whole, saturated)
    e.note(f"{stage}.bits_per_pixel", mean_interval(whole.kl / math.log(2) / e.run.recipe.size**2), source)
    variance = unit_variance(found.mean) if len(found.mean) > 1 else np.full(len(channels), np.nan)
    active = int((variance > ACTIVE).sum())
    e.figures[f"{stage}.active_units"] = Figure(
        active, len(found.mean), source=f"{source}; a count of {len(channels)} channels"
    )
    _bound(e, stage, found, whole, source)
    learned = isinstance(model.config.prior, LearnedConfig)
    table = _table(e, stage, whole, channels, variance, prior=learned)
    return [table, scaled_latents(e, stage, found, source), *_charts(stage, found, channels, variance)]


def scaled_latents(e: Evaluation, stage: str, found: Latents, source: str) -> Table:
    """Note how far held-out latents, scaled as stage two scales them, are from mean 0 and deviation 1; by channel."""
    made = e.run.manifest(stage)
    drawn = found.samples.astype(np.float64).swapaxes(0, 1).reshape(found.samples.shape[1], -1)  # (c, n h w)
    mean, std = np.array(made["latent_mean"]), np.array(made["latent_std"])
    offset, spread = (drawn.mean(1) - mean) / std, drawn.std(1) / std
    worst = int(np.abs(np.log(spread)).argmax())
    figures = {"latent_offset": np.abs(offset).max(), "latent_spread": spread[worst]}
    for name, value in figures.items():
        about = "the channel that is furthest off; no interval"
        e.figures[f"{stage}.{name}"] = Figure(float(value), len(found.mean), source=f"{source}; {about}")
    rows = [
        Row([f"channel {number}", *map(float, row)])
        for number, row in enumerate(zip(drawn.mean(1), mean, drawn.std(1), std, offset, spread, strict=True), 1)
    ]
    columns = ["latents", "mean", "of training", "deviation", "of training", "scaled mean", "scaled deviation"]
    note = (
        "Stage two takes the mean and the deviation of the training latents out of each channel. Held-out latents then "
        "have mean 0 and deviation 1, but for chance: where they do not, the statistics are of another autoencoder, or "
        "of other pictures."
    )
    return Table(f"{stage}: latents as stage two reads them", columns, rows, note)


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, 1) of each value, float64, which single channels are held against whatever the prior of them all."""
    return -0.5 * (math.log(2 * math.pi) + z.double().square())


@torch.no_grad()
def held_out_latents(e: Evaluation, stage: str, model: VAE) -> Latents:
    """Encode at most PICTURES of the held-out split, draw once from each posterior, and decode where that has a law."""
    split, device = e.run.held_out(), device_of(model)
    stride, generator = math.ceil(len(split) / PICTURES), torch.Generator().manual_seed(e.seed)
    columns: list[list[NDArray]] = [[], [], [], [], []]
    first = 0  # of the batch, counted over the split
    batches = once(split, image_and_caption(e.run.recipe.size), batch=BATCH)
    for batch in track(batches, f"{stage} latents", len(split), weight=BATCH):
        x = batch["image"][-first % stride :: stride].to(device)
        first += len(batch["image"])
        if not len(x):
            continue
        posterior = model.encode(x)
        z = posterior.sample(generator)
        parts = [posterior.mean, posterior.log_var, z, model.prior.log_prob(z).double()]
        if model.log_scale is not None:
            parts.append(levels_nll(model.decode(z), x, model.log_scale).double().flatten(1).sum(1))
        for column, part in zip(columns, parts, strict=False):
            column.append(part.cpu().numpy())
    mean, log_var, samples, prior, nll = (np.concatenate(column) if column else None for column in columns)
    assert mean is not None and log_var is not None and samples is not None and prior is not None
    return Latents(mean, log_var, samples, prior, nll)


def _channels(found: Latents, seed: int) -> list[Surgery]:
    """Carve up the KL of each channel's values, at positions drawn for each picture."""
    places = some_positions(found.mean, VALUES, seed)
    n, c = found.mean.shape[:2]
    m, v, z = (
        np.take_along_axis(part.reshape(n, c, -1), places, 2) for part in (found.mean, found.log_var, found.samples)
    )
    prior = log_prior(torch.from_numpy(z)).numpy()
    return [channel_surgery(m[:, i], v[:, i], z[:, i], prior[:, i]) for i in range(c)]


def _terms(e: Evaluation, stage: str, part: str, found: Surgery, source: str) -> None:
    for term in TERMS:
        e.note(f"{stage}.{term}{part}", mean_interval(getattr(found, term)), source)
    if np.ptp(found.mutual_information) < SATURATED:  # every picture at the limit: an interval would be one of rounding
        value = float(found.mutual_information.mean())
        e.figures[f"{stage}.mutual_information{part}"] = Figure(value, len(found.kl), source=f"{source}; a lower bound")


def _bound(e: Evaluation, stage: str, found: Latents, whole: Surgery, source: str) -> None:
    """Note the bound on the pictures' own cost, per colour value, where the VAE has a law of pictures."""
    if found.nll is None:
        reason = f"the loss of {stage} is no bound on the cost of pictures: stage.{stage}.model.variance is 'none'"
        e.figures[f"{stage}.bits_per_dim"] = missing(reason)
        return
    values = 3 * e.run.recipe.size**2
    e.note(f"{stage}.bits_per_dim", mean_interval((found.nll + whole.kl) / values / math.log(2)), source)


def _table(
    e: Evaluation, stage: str, whole: Surgery, channels: list[Surgery], variance: NDArray, *, prior: bool
) -> Table:
    rows = [
        Row(["a latent value", *(e.figures[f"{stage}.{term}"] for term in TERMS), None]),
        *(
            Row([f"channel {number}", *_figures(one), float(moved)])
            for number, (one, moved) in enumerate(zip(channels, variance, strict=True), 1)
        ),
        Row(["a whole picture", *(e.figures[f"{stage}.{term}[picture]"] for term in TERMS), None]),
    ]
    columns = ["nats of", Column("KL"), Column("information"), Column("missed prior"), Column("variance of the means")]
    limit = math.log(len(whole.kl))
    learned = "Whole pictures are held against the learned prior, channels against N(0, 1). " if prior else ""
    note = (
        "KL = information + missed prior, E KL(q(z|x) || p(z)) = MI(x; z) + KL(q(z) || p(z)), with q(z) the mixture of "
        "the posteriors of these pictures (Hoffman and Johnson 2016). By channel, a value is a variable of one "
        "dimension and the mixture runs over pictures and positions. Of whole pictures the estimate of the information "
        f"cannot exceed the logarithm of their number, {limit:.2f} nats: where it stands there, the information is at "
        f"least that and the missed prior at most what is left. {learned}{int((variance > ACTIVE).sum())} of "
        f"{len(channels)} channels are active: their means vary by more than {ACTIVE} from picture to picture."
    )
    return Table(f"{stage}: what the KL pays for", columns, rows, note)


def _figures(found: Surgery) -> list[Figure]:
    return [Figure.of(mean_interval(getattr(found, term)), "one channel") for term in TERMS]


def _charts(stage: str, found: Latents, channels: list[Surgery], variance: NDArray) -> list[Block]:
    numbers = [float(number) + 0.5 for number in range(len(channels) + 1)]
    kl = [float(one.kl.mean()) for one in channels]
    dashed = f"Dashed: {ACTIVE}, above which a channel counts as active."
    return [
        _histogram(stage, found.samples, kl),
        Bars(f"{stage}: variance of the means", numbers, variance.tolist(), "channel", "variance", ACTIVE, dashed),
        Bars(f"{stage}: KL by channel", numbers, kl, "channel", "nats per value"),
    ]


def _histogram(stage: str, samples: NDArray[np.float32], kl: list[float]) -> Curve:
    """Densities of the drawn latents of the channels that cost most, and of the prior."""
    chosen = sorted(np.argsort(kl)[::-1][:LINES].tolist())
    span = max(4.0, float(np.quantile(np.abs(samples[:, chosen]), 0.999)))
    edges = np.linspace(-span, span, BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    lines = [Series("prior N(0, 1)", middle.tolist(), np.exp(log_prior(torch.from_numpy(middle)).numpy()).tolist())]
    for channel in chosen:
        counts = np.histogram(samples[:, channel], edges)[0]
        density = counts / samples[:, channel].size / np.diff(edges)
        lines.append(Series(f"channel {channel + 1}", middle.tolist(), density.tolist()))
    note = "" if len(chosen) == len(kl) else f"The {len(chosen)} of {len(kl)} channels that cost most."
    return Curve(f"{stage}: latents drawn", lines, "latent value", "density", note=note)
