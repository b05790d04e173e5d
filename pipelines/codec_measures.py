"""The figures of autoencoders: what comes back, what it costs, and all of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.blocks import Bars, Block, Column, Gallery, Point, Row, Scatter, Section, Table
from eval.features import NOTE, feature_key, paired_distance, quantise
from eval.figure import Figure, Known, missing
from eval.frechet import frechet_interval, rank_note
from eval.interval import Interval, mean_interval
from eval.reconstruction import psnr, ssim
from eval.towers import is_fid
from pipelines.codebook_measures import codebook_use
from pipelines.codebook_measures import table as codebooks
from pipelines.hardware import device_of
from pipelines.judging import Pictures, scene_scores, scored
from pipelines.measures import Evaluation
from pipelines.models import load_vae, load_vqvae
from pipelines.pictures import from_uint8
from pipelines.posterior_measures import posterior_use
from pipelines.scoring.sets import PictureSet
from tokenizer.kmeans import patch_kmeans_psnr
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE

BATCH = 128
KMEANS_TRAIN = 5000  # training pictures behind the patch k-means baseline
SHOWN = 8  # pictures beside their reconstructions
WORST = 20  # pictures with the lowest PSNR of one autoencoder,
WORST_OF_ALL = 160  # of all of them together,
FEWEST = 4  # and of one however many there are
BRIGHTER = 4  # times that a difference is shown
BINS = 24
COMPARED = (
    "stage",
    Column("factor"),
    Column("bits / pixel", "plain", "lower"),
    Column("entropy coded", "plain", "lower"),
    Column("PSNR", "dB", "higher"),
    Column("SSIM", "plain", "higher"),
    Column("used", "share", "higher"),
    Column("perplexity", "plain", "higher"),
    "weights",
    "steps",
    "seconds",
)


@dataclass(frozen=True)
class Codec:
    """An autoencoder and what it made of the pictures that judge: reconstructions (n, H, W, 3), decibels (n,)."""

    stage: str
    model: VAE | VQVAE
    again: Pictures
    decibels: NDArray[np.float64]


def autoencoders(e: Evaluation) -> None:
    """Figures of every VAE and VQ-VAE: PSNR and SSIM, features and scenes, latents and codes, rates."""
    kinds = [(kind, stage) for kind in ("vae", "vqvae") for stage in e.run.recipe.of_kind(e.name, kind)]
    codecs, rows, apart, blocks = list[Codec](), list[Row](), list[Row](), list[Block]()
    for kind, stage in kinds:
        model = load_vae(e.run, stage) if kind == "vae" else load_vqvae(e.run, stage)
        again = reconstruct(model, e.real.pictures)
        codec = Codec(stage, model, again, psnr(e.real.pictures, again))
        codecs.append(codec)
        apart += _quality(e, codec)
        if isinstance(model, VAE):
            blocks += posterior_use(e, stage, model)
        else:
            _kmeans(e, stage, model)
            more, charts = codebook_use(e, stage, model)
            rows += more
            blocks += charts
    if codecs:
        side_by_side = [compared(e, codecs), rate_and_distortion(e, codecs), *histograms(codecs)]
        tables = [*([_apart(apart)] if apart else []), *([codebooks(rows)] if rows else [])]
        count = worst_shown(len(codecs))
        pictures = [*first_pictures(e, codecs), *(worst_pictures(e, codec, count) for codec in codecs)]
        e.sections.append(Section("Autoencoders", [*side_by_side, *tables, *blocks, *pictures]))


@torch.no_grad()
def reconstruct(model: VAE | VQVAE, pictures: Pictures) -> Pictures:
    """Pictures from the means of their posteriors, or from their codes."""
    made = []
    for start in range(0, len(pictures), BATCH):
        x = from_uint8(pictures[start : start + BATCH]).to(device_of(model))
        if isinstance(model, VAE):
            made.append(quantise(model.decode(model.encode(x).mean)))
        else:
            made.append(quantise(model.decode_codes(model.codes(x), *x.shape[-2:])))
    return np.concatenate(made)


def _quality(e: Evaluation, codec: Codec) -> list[Row]:
    """Note PSNR and SSIM, and what the judges make of the reconstructions; return rows of feature distances."""
    stage, again = codec.stage, codec.again
    source = f"{stage} {e.run.manifest(stage)['hash'][:12]}, {len(e.real)} {e.where} pictures"
    _each(e, "psnr", stage, lambda: codec.decibels, source)
    _each(e, "ssim", stage, lambda: ssim(e.real.pictures, again), source)
    if (lpips := e.lpips) is not None:
        _each(e, lpips.name, stage, lambda: lpips.each(e.real.pictures, again), f"{source}; {lpips.about}")
    if e.judges.scene is not None and e.real.labelled:
        scores = scene_scores(e.judges, again, e.real.labels)
        e.note_verdicts(f"recon.{stage}", [picture.tobytes() for picture in e.real.pictures], scores)
        for attribute, interval in scored(scores, e.real.labels).items():
            e.note(f"recon.{stage}.scene.{attribute}", interval, f"scene judge on reconstructions by {source}")
    return _features(e, f"recon.{stage}", again, source)


def _features(e: Evaluation, subject: str, again: Pictures, source: str) -> list[Row]:
    """Note the distances of reconstructions from their originals by every embedder: of the sets, and pair by pair."""
    if not e.embedders:
        for metric in ("fd", "featdist"):
            e.figures[f"{subject}.{metric}"] = missing("The recipe has no stage of kind judge before this one.")
    rows, shown = list[Row](), PictureSet.of(list(again), subject)
    for embedder in (opened.embedder for opened in e.embedders):
        real, made = e.features.of(embedder, e.held_out), e.features.of(embedder, shown)
        frechet = "fid" if is_fid(embedder.name, embedder.sha256, embedder.resize) else "fd"
        split, about = e.run.held_out_name(), f"reconstructions by {source}, against the same pictures"
        if embedder.name.startswith("indomain"):
            about = f"{about}; {NOTE}"
        keys = [
            str(feature_key(metric, embedder, generated=len(made), reference=len(real), split=split))
            for metric in (frechet, "featdist")
        ]
        bias = ("jackknife over blocks, biased by about c / n", rank_note(len(made), len(real), made.shape[1]))
        noted = "; ".join(filter(None, (about, *bias)))
        found = e.guarded(f"{subject}.{keys[0]}", partial(frechet_interval, made, real), noted)
        moved = _each(e, keys[1], subject, partial(paired_distance, made, real), about)
        rows.append(Row([subject, f"{embedder.name}:{embedder.sha256[:8]}", embedder.resize, found, moved]))
    return rows


def _each(e: Evaluation, metric: str, subject: str, measure: Callable[[], NDArray[np.float64]], source: str) -> Known:
    """Note a mean over the pictures that judge, and what each of them adds to it, or why it cannot be had."""

    def measured() -> Interval:
        values = measure()
        e.note_each(metric, subject, [picture.tobytes() for picture in e.real.pictures], values)
        return mean_interval(values)

    return e.guarded(f"{subject}.{metric}", measured, source)


def _kmeans(e: Evaluation, stage: str, model: VQVAE) -> None:
    """Note the PSNR of as many patches, where one code stands for a patch."""
    name = f"{stage}.patch_kmeans_psnr"
    if (grids := len(model.config.vocabularies)) > 1:
        e.figures[name] = missing(f"{grids} grids of codes stand for a picture, and k-means on patches gives one")
        return
    train, test = from_uint8(e.train.pictures[:KMEANS_TRAIN]), from_uint8(e.real.pictures)
    codes, patch = model.config.codes, model.downsample
    e.guarded(
        name,
        lambda: mean_interval(patch_kmeans_psnr(train, test, codes, patch, seed=e.seed).numpy()),
        f"k-means on raw patches of {len(train)} training pictures, same codes and patch size",
    )


def compared(e: Evaluation, codecs: list[Codec]) -> Table:
    """One row per autoencoder: rate, quality, and what it took."""
    rows = []
    for codec in codecs:
        made = e.run.manifest(codec.stage)
        names = ("bits_per_pixel", "bits_per_pixel[entropy]", "psnr", "ssim", "usage", "perplexity")
        figures: list[Known | None] = [e.figures.get(f"{codec.stage}.{name}") for name in names]
        weights = sum(parameter.numel() for parameter in codec.model.parameters())
        took = made.get("seconds", 0.0)  # before an interruption, too; none of a pretrained one
        rows.append(Row([codec.stage, codec.model.downsample, *figures, weights, made.get("steps", 0), took]))
    note = (
        "Bits per pixel of a VQ-VAE: its codes, all equally long; entropy coded: as a coder that knows "
        "each level's frequencies would write them. Of a VAE: its KL, which a coder reaches only with bits-back (it "
        "gets the noise of the latents back), and only for draws, while PSNR and SSIM are of reconstructions from the "
        "means. "
        "Weights: those that gradients train; a codebook that follows averages is not among them."
    )
    return Table("All autoencoders", COMPARED, rows, note)


def _apart(rows: list[Row]) -> Table:
    """How far reconstructions lie from their originals, embedder by embedder."""
    note = (
        "rFD: Fréchet distance of the reconstructions from the same pictures, which only Inception-2015-12-05 makes an "
        "rFID; it is no distance of generated pictures. Pair by pair: how far the features of each picture moved."
    )
    columns = ["pictures", Column("embedder", code=True), "resize", Column("rFD", "plain", "lower")]
    return Table("Reconstructions by their features", [*columns, Column("pair by pair", "plain", "lower")], rows, note)


def rate_and_distortion(e: Evaluation, codecs: list[Codec]) -> Scatter:
    """PSNR over bits per pixel, and where k-means on raw patches lies at the same rate."""
    points: dict[str, Point] = {}
    for codec in codecs:
        named = [(codec.stage, "psnr", False)]
        if isinstance(codec.model, VQVAE):  # one point for all that have as many codes for as large patches
            named.append(
                (f"k-means, {codec.model.config.codes} codes, f{codec.model.downsample}", "patch_kmeans_psnr", True)
            )
        for name, figure, floor in named:
            rate, quality = e.figures[f"{codec.stage}.bits_per_pixel"], e.figures.get(f"{codec.stage}.{figure}")
            if isinstance(rate, Figure) and isinstance(quality, Figure):
                points[name] = Point(name, rate.value, quality, floor)
    note = "Higher and further left is better. Diamonds: k-means on raw patches at the same rate, without a network."
    return Scatter("Rate and distortion", list(points.values()), "bits per pixel", "PSNR in dB", note)


def histograms(codecs: list[Codec]) -> list[Bars]:
    """PSNR of the pictures, on one scale for all."""
    edges = np.histogram_bin_edges(np.concatenate([codec.decibels for codec in codecs]), BINS)
    return [
        Bars(
            f"{codec.stage}: PSNR of {len(codec.decibels)} pictures",
            edges.tolist(),
            np.histogram(codec.decibels, edges)[0].tolist(),
            "PSNR in dB",
            "pictures",
        )
        for codec in codecs
    ]


def first_pictures(e: Evaluation, codecs: list[Codec]) -> list[Gallery]:
    """The first pictures, what comes back of each below them, autoencoder by autoencoder, and the differences."""
    real = e.real.pictures[:SHOWN]
    back, apart = [(_images(real), "input")], []
    for codec in codecs:
        again = codec.again[:SHOWN]
        about = f"{codec.stage}, {codec.decibels.mean():.2f} dB over all {len(codec.decibels)}"
        back.append((_images(again), about))
        apart.append((_images(difference(real, again)), about))
    which = f"The first {len(real)} of {len(e.real)} {e.where} pictures, none picked"
    return [
        Gallery("Reconstructions", back, columns=1, note=f"{which}."),
        Gallery(f"|input - reconstruction| × {BRIGHTER}", apart, columns=1, note=f"{which}; black is no difference."),
    ]


def difference(real: NDArray, again: NDArray) -> NDArray[np.uint8]:
    """The absolute difference of pictures, brighter, so that it can be seen."""
    return np.abs(real.astype(int) - again).clip(0, 255 // BRIGHTER).astype(np.uint8) * BRIGHTER


def worst_pictures(e: Evaluation, codec: Codec, count: int) -> Gallery:
    """The `count` pictures of which least comes back."""
    real, again = e.real.pictures, codec.again
    worst = [
        (
            _images([real[i], again[i], difference(real[i], again[i])]),
            f"{codec.decibels[i]:.2f} dB. {e.real.captions[i]}",
        )
        for i in np.argsort(codec.decibels, kind="stable")[:count]
    ]
    return Gallery(
        f"{codec.stage}: the {len(worst)} worst of {len(real)} by PSNR", worst, columns=4,
        labels=("input", "output", "difference"),
        note=f"Picked for being worst: they say where it fails, not how it does in general. Differences × {BRIGHTER}.",
    )  # fmt: skip


def worst_shown(codecs: int) -> int:
    """How many of the worst pictures stand on the page for each of so many autoencoders."""
    return max(FEWEST, min(WORST, WORST_OF_ALL // codecs))


def _images(pictures: Sequence[NDArray] | NDArray) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures]
