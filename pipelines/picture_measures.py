"""The figures of pictures: reconstructions, codebooks, and scenes read by the judge."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from eval.blocks import (
    Figure,
    Gallery,
    Section,
    Table,
    Usage,
    missing,
)
from eval.features import quantise
from eval.interval import mean_interval
from eval.reconstruction import codebook, count_codes, psnr, ssim
from eval.scene import chance
from pipelines.hardware import device_of
from pipelines.judging import Pictures, scene_figures
from pipelines.measures import Evaluation, Generated, Set, read_generated, read_set
from pipelines.models import load_vae, load_vqvae
from pipelines.pictures import from_uint8
from tokenizer.kmeans import patch_kmeans_psnr
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE

BATCH = 128


@torch.no_grad()
def reconstructions(e: Evaluation) -> None:
    """PSNR, SSIM and codebook use on held-out pictures, and the judge's reading of what came back."""
    shown: list[Gallery | Table | Usage] = []
    for kind in ("vae", "vqvae"):
        for stage in e.run.recipe.of_kind(e.name, kind):
            model = load_vae(e.run, stage) if kind == "vae" else load_vqvae(e.run, stage)
            again, codes = _reconstruct(e, model)
            source = f"{stage} {e.run.manifest(stage)['hash'][:12]}, {len(e.real)} {e.where} pictures"
            e.note(f"{stage}.psnr", mean_interval(psnr(e.real.pictures, again)), source)
            e.guarded(f"{stage}.ssim", lambda shown=again: mean_interval(ssim(e.real.pictures, shown)), source)
            if isinstance(model, VQVAE) and codes is not None:
                shown.append(_codebook(e, stage, model, codes, source))
            if e.judges.scene is not None and e.real.labelled:
                for attribute, interval in scene_figures(e.judges, again, e.real.labels, seed=e.seed).items():
                    e.note(f"recon.{stage}.scene.{attribute}", interval, f"scene judge on reconstructions by {source}")
            pairs = [
                (list(map(Image.fromarray, pair)), "") for pair in zip(e.real.pictures[:32], again[:32], strict=True)
            ]
            shown.append(Gallery(f"{stage}: {e.where} pictures", pairs, columns=8, labels=("input", "reconstruction")))
    e.sections.append(Section("Reconstructions", shown))


def _reconstruct(e: Evaluation, model: VAE | VQVAE) -> tuple[Pictures, np.ndarray | None]:
    """Return reconstructions and, from a VQ-VAE, the codes."""
    pictures, codes = [], []
    for start in range(0, len(e.real), BATCH):
        x = from_uint8(e.real.pictures[start : start + BATCH]).to(device_of(model))
        if isinstance(model, VAE):
            pictures.append(quantise(model.decode(model.encode(x).mean)))
        else:
            codes.append(model.codes(x))
            pictures.append(quantise(model.decode_codes(codes[-1], *x.shape[-2:])))
    return np.concatenate(pictures), torch.cat(codes).cpu().numpy() if codes else None


def _codebook(e: Evaluation, stage: str, model: VQVAE, codes: np.ndarray, source: str) -> Usage:
    """Note usage, perplexity and the k-means baseline of a VQ-VAE; return its chart."""
    counts = count_codes(codes, model.config.codes)
    book = codebook(counts)
    e.figures[f"{stage}.usage"] = Figure(book.usage, book.tokens, source=f"{source}; a count over all tokens")
    e.figures[f"{stage}.perplexity"] = Figure(book.perplexity, book.tokens, source=f"{source}; a count over all tokens")
    train, test = from_uint8(e.train.pictures), from_uint8(e.real.pictures)
    codes_and_patch = model.config.codes, model.downsample
    about = f"k-means on raw patches of {len(e.train)} training pictures, same codes and patch size"
    if len(model.vocabularies) == 1:
        e.guarded(
            f"{stage}.patch_kmeans_psnr",
            lambda: mean_interval(patch_kmeans_psnr(train, test, *codes_and_patch, seed=e.seed).numpy()),
            about,
        )
    else:
        reason = f"{len(model.vocabularies)} grids of codes stand for a picture, and k-means on patches gives one"
        e.figures[f"{stage}.patch_kmeans_psnr"] = missing(reason)
    return Usage(
        f"{stage}: use of the codebook",
        counts.tolist(),
        f"{book.dead} dead codes; the commonest holds {book.top_share:.1%}.",
    )


def judged_real(e: Evaluation) -> None:
    """The scene judge's own error, seen and unseen, its floor with shuffled captions, and chance."""
    if e.judges.scene is None or not e.real.labelled:
        return
    note_scenes(e, "real", e.real, f"scene judge on {len(e.real)} real {e.where} scenes")
    if "unseen" in e.run.splits():
        unseen = read_set(e.run, "unseen", e.stage.reconstructions)
        note_scenes(e, "real", unseen, f"scene judge on {len(unseen)} real unseen scenes", unseen=True)
    labels = [e.real.labels[i - 1] for i in range(len(e.real))]
    shuffled = Set(e.real.pictures, e.real.captions, labels)
    note_scenes(e, "shuffled", shuffled, "real scenes judged by another scene's caption")
    for attribute, share in chance(e.judges.scene.config).items():
        e.figures[f"chance.scene.{attribute}"] = Figure(share, len(e.real), source="a uniform guess, not measured")


def note_scenes(e: Evaluation, subject: str, shown: Set, source: str, *, unseen: bool = False) -> None:
    """Note how many attributes are as asked; unseen compositions go by one slice of their own."""
    for attribute, interval in scene_figures(e.judges, shown.pictures, shown.labels, seed=e.seed).items():
        if not unseen:
            e.note(f"{subject}.scene.{attribute}", interval, source)
        elif "." not in attribute:
            e.note(f"{subject}.scene.{attribute}.unseen", interval, source)


def judged_generated(e: Evaluation, made: Generated) -> None:
    """Exact scene accuracy of a model's pictures, seen and unseen, and their grid."""
    split = e.run.held_out_name()
    shown = {name: read_generated(made.folder / name) for name in (split, "unseen") if name in made.manifest["counts"]}
    for name, pictures in shown.items():
        if e.judges.scene is not None and pictures.labelled:
            which = "unseen" if name == "unseen" else e.where
            source = f"{made.stage} ({made.how}), {len(pictures)} {which} captions, scene judge"
            note_scenes(e, made.subject, pictures, source, unseen=name == "unseen")
    pairs = zip(shown[split].pictures, shown[split].captions, strict=True)
    items = [(Image.fromarray(picture), caption) for picture, caption in pairs][: e.stage.pictures]
    note = f"The first {len(items)} of {len(shown[split])}, none picked. {made.how}."
    grid = Gallery(f"{made.stage}: {e.where} captions", items, note=note)
    e.sections.append(Section(f"Pictures by {made.subject}", [grid]))
