"""The figures of an evaluation: what is computed on which pictures, and the tables and grids that show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eval.blocks import (
    Column,
    Figure,
    Gallery,
    Known,
    Row,
    Section,
    Table,
    Usage,
)
from eval.clip_score import clip_score, shuffled_floor
from eval.features import NOTE, feature_key, quantise
from eval.frechet import frechet_distance
from eval.interval import Interval, mean_interval
from eval.kernel import kernel_distance
from eval.prdc import prdc
from eval.reconstruction import codebook, count_codes, psnr, ssim
from eval.scene import chance
from pipelines.artefact import read_json
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import once
from pipelines.hardware import device_of
from pipelines.judging import Judges, Pictures, scene_figures
from pipelines.models import load_vae, load_vqvae
from pipelines.pictures import from_uint8
from pipelines.runs import Run
from pipelines.stage_config import EvalStage, GenerateStage
from tokenizer.kmeans import patch_kmeans_psnr

BATCH = 128


@dataclass
class Set:
    """Pictures with what was asked for."""

    pictures: Pictures
    captions: list[str]
    labels: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labelled(self) -> bool:
        """Whether the labels are exact scenes."""
        return all("objects" in label for label in self.labels)


@dataclass
class Evaluation:
    """One evaluation while it is being made: figures by name, and the sections that show them."""

    run: Run
    name: str
    stage: EvalStage
    judges: Judges
    real: Set
    train: Set
    figures: dict[str, Known] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """Seed of every bootstrap."""
        return self.run.recipe.seed

    def note(self, name: str, interval: Interval, source: str) -> None:
        """Keep a figure."""
        self.figures[name] = Figure.of(interval, source)

    def generated(self) -> dict[str, str]:
        """Return {generate stage: model stage}."""
        stages = {
            n: s
            for n, s in self.run.recipe.stage.items()
            if isinstance(s, GenerateStage) and n in self.run.recipe.forerunners(self.name)
        }
        return {n: self.run.manifest(n)["model"] for n in stages}


def read_set(run: Run, split: str, count: int) -> Set:
    """Read the first pictures of a split with captions and labels."""
    batch = next(once(run.open(split), image_and_caption(run.recipe.data.size), batch=count))
    return Set(quantise(batch["image"]), batch["caption"], batch["label"])


def read_generated(folder: Path) -> Set:
    """Read what a generate stage wrote for one split."""
    sidecars = sorted(folder.glob("*.json"))
    made = [read_json(path) for path in sidecars]
    pictures = np.stack([np.asarray(Image.open(path.with_suffix(".png")).convert("RGB")) for path in sidecars])
    return Set(pictures, [m["prompt"] for m in made], [m["label"] for m in made])


@torch.no_grad()
def reconstructions(e: Evaluation) -> None:
    """PSNR, SSIM and codebook use on held-out pictures, and the judge's reading of what came back."""
    shown: list[Gallery | Table | Usage] = []
    for kind in ("vae", "vqvae"):
        for stage in e.run.recipe.of_kind(e.name, kind):
            again, codes = _reconstruct(e, stage, kind)
            source = f"{stage} {e.run.manifest(stage)['hash'][:12]}, first {len(e.real)} held-out pictures"
            e.note(f"{stage}.psnr", mean_interval(psnr(e.real.pictures, again)), source)
            e.note(f"{stage}.ssim", mean_interval(ssim(e.real.pictures, again)), source)
            if codes is not None:
                shown.append(_codebook(e, stage, codes, source))
            if e.judges.scene is not None and e.real.labelled:
                for attribute, interval in scene_figures(e.judges, again, e.real.labels, seed=e.seed).items():
                    e.note(f"recon.{stage}.scene.{attribute}", interval, f"scene judge on reconstructions by {source}")
            pairs = [
                (list(map(Image.fromarray, pair)), "") for pair in zip(e.real.pictures[:32], again[:32], strict=True)
            ]
            shown.append(Gallery(f"{stage}: held-out pictures", pairs, columns=8, labels=("input", "reconstruction")))
    e.sections.append(Section("Reconstructions", shown))


def _reconstruct(e: Evaluation, stage: str, kind: str) -> tuple[Pictures, np.ndarray | None]:
    """Return reconstructions and, from a VQ-VAE, the codes."""
    pictures, codes = [], []
    model = load_vae(e.run, stage) if kind == "vae" else load_vqvae(e.run, stage)
    for start in range(0, len(e.real), BATCH):
        x = from_uint8(e.real.pictures[start : start + BATCH]).to(device_of(model))
        if kind == "vae":
            pictures.append(quantise(model.decode(model.encode(x).mean)))  # type: ignore[union-attr]
        else:
            codes.append(model.codes(x))  # type: ignore[union-attr]
            pictures.append(quantise(model.decode_codes(codes[-1])))  # type: ignore[union-attr]
    return np.concatenate(pictures), torch.cat(codes).cpu().numpy() if codes else None


def _codebook(e: Evaluation, stage: str, codes: np.ndarray, source: str) -> Usage:
    """Note usage, perplexity and the k-means baseline of a VQ-VAE; return its chart."""
    config = e.run.manifest(stage)["model"]
    counts = count_codes(codes, config["quantizer"]["codes"])
    book = codebook(counts)
    e.figures[f"{stage}.usage"] = Figure(book.usage, book.tokens, source=f"{source}; a count over all tokens")
    e.figures[f"{stage}.perplexity"] = Figure(book.perplexity, book.tokens, source=f"{source}; a count over all tokens")
    baseline = patch_kmeans_psnr(
        from_uint8(e.train.pictures),
        from_uint8(e.real.pictures),
        config["quantizer"]["codes"],
        config["factor"],
        seed=e.seed,
    )
    about = f"k-means on raw patches of {len(e.train)} training pictures, same codes and patch size"
    e.note(f"{stage}.patch_kmeans_psnr", mean_interval(baseline.numpy()), about)
    return Usage(
        f"{stage}: use of the codebook",
        counts.tolist(),
        f"{book.dead} dead codes; the commonest holds {book.top_share:.1%}.",
    )


def judged_real(e: Evaluation) -> None:
    """The scene judge's own error, its floor with shuffled captions, and chance."""
    if e.judges.scene is None or not e.real.labelled:
        return
    about = f"scene judge on {len(e.real)} real held-out scenes"
    for attribute, interval in scene_figures(e.judges, e.real.pictures, e.real.labels, seed=e.seed).items():
        e.note(f"real.scene.{attribute}", interval, about)
    moved = np.roll(np.arange(len(e.real)), 1)
    labels = [e.real.labels[i] for i in moved]
    for attribute, interval in scene_figures(e.judges, e.real.pictures, labels, seed=e.seed).items():
        e.note(f"shuffled.scene.{attribute}", interval, "real scenes judged by another scene's caption")
    for attribute, share in chance(e.judges.scene.config).items():
        e.figures[f"chance.scene.{attribute}"] = Figure(share, len(e.real), source="a uniform guess")


def judged_generated(e: Evaluation, generate: str, model: str) -> None:
    """Exact scene accuracy of a model's pictures, seen and unseen, and their grid."""
    stage, folder = e.run.manifest(generate), e.run.stage_folder(generate)
    settings = stage["settings"]
    how = f"{settings['sampler']}, {settings['steps']} steps, guidance {settings['guidance']:g}, seed {stage['seed']}"
    held_out = read_generated(folder / e.run.held_out_name())
    for split in (e.run.held_out_name(), "unseen"):
        if e.judges.scene is None or split not in stage["counts"]:
            continue
        pictures = read_generated(folder / "unseen") if split == "unseen" else held_out
        if not pictures.labelled:
            continue
        source = (
            f"{generate} ({how}), {len(pictures)} {'unseen' if split == 'unseen' else 'held-out'} captions, scene judge"
        )
        for attribute, interval in scene_figures(e.judges, pictures.pictures, pictures.labels, seed=e.seed).items():
            if split != "unseen":
                e.note(f"{model}.scene.{attribute}", interval, source)
            elif "." not in attribute:
                e.note(f"{model}.scene.{attribute}.unseen", interval, source)
    items = [(Image.fromarray(p), c) for p, c in zip(held_out.pictures, held_out.captions, strict=True)][
        : e.stage.pictures
    ]
    note = f"The first {len(items)} of {len(held_out)}, none picked. {how}."
    e.sections.append(Section(f"Pictures by {model}", [Gallery(f"{generate}: held-out captions", items, note=note)]))


def distances(e: Evaluation) -> None:
    """Frechet and kernel distance, precision and recall, and CLIP score, between a floor and a ceiling."""
    if e.judges.tower is None:
        e.sections.append(
            Section("Distances", empty="No judge: the recipe has no stage of kind judge before this one.")
        )
        return
    sets = {
        f"{generate} ({model})": (model, read_generated(e.run.stage_folder(generate) / e.run.held_out_name()))
        for generate, model in e.generated().items()
    }
    n = min([len(e.real), *(len(made) for _, made in sets.values())])
    tower = e.judges.tower
    reference = tower.embed(e.train.pictures[: max(n, 2000)])
    rows = {"real held-out pictures": ("real", e.real, "ceiling")} | {k: (m, s, "model") for k, (m, s) in sets.items()}
    distance_rows, clip_rows = [], []
    for label, (subject, made, kind) in rows.items():
        features = tower.embed(made.pictures[:n])
        distance_rows.append(_distance_row(e, label, subject, features, reference, kind))
        texts = e.judges.caption_features(made.captions[:n])
        found = clip_score(features, texts, made.captions[:n], seed=e.seed)
        e.note(f"{subject}.clip_score[{tower.name}:{tower.sha256[:8]}]", found, f"raw cosine, {label}")
        clip_rows.append(Row([label, Figure.of(found, "raw cosine"), found.n], kind))  # type: ignore[arg-type]
        if subject == "real":
            floor = shuffled_floor(features, texts, made.captions[:n], seed=e.seed)
            e.note(f"shuffled.clip_score[{tower.name}:{tower.sha256[:8]}]", floor, "real pictures, captions of others")
            clip_rows.append(
                Row(["real pictures, captions shuffled", Figure.of(floor, "raw cosine"), floor.n], "floor")
            )
    warning = f"These numbers are {NOTE}."
    names = [
        Column("Frechet", "plain", "lower"),
        Column("kernel", "plain", "lower"),
        Column("precision", "share", "higher"),
        Column("recall", "share", "higher"),
    ]
    tables = [
        Table(
            "Distances on judge features",
            ["pictures", *names, Column("key", code=True)],
            distance_rows,
            warning=warning,
        ),
        Table(
            "CLIP score of the judge (raw cosine)",
            ["pictures", Column("cosine", "plain", "higher"), "n"],
            clip_rows,
            warning=warning,
        ),
    ]
    e.sections.append(Section("Distances", tables))


def _distance_row(
    e: Evaluation, label: str, subject: str, features: np.ndarray, reference: np.ndarray, kind: str
) -> Row:
    assert e.judges.tower is not None
    keys = {
        metric: str(
            feature_key(metric, e.judges.tower, generated=len(features), reference=len(reference), split="train")
        )
        for metric in ("fd", "kd")
    }
    frechet = Figure(frechet_distance(features, reference), len(features), source="biased upwards by about c / n")
    kernel = kernel_distance(features, reference)
    kd = Figure.of(kernel.interval(), f"{kernel.blocks} disjoint blocks of {len(features)} pictures")
    e.figures[f"{subject}.{keys['fd']}"], e.figures[f"{subject}.{keys['kd']}"] = frechet, kd
    same = min(len(features), len(reference))
    measured = prdc(real=reference[:same], fake=features[:same], k=5)
    return Row([label, frechet, kd, measured.precision, measured.recall, keys["fd"]], kind)  # type: ignore[arg-type]
