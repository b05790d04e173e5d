"""Stage three: all figures of a run in one report, with the training curves and what made them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.blocks import Curve, Report, Section, Series
from eval.figure import Known, missing
from eval.report import headline, write_report
from eval.samples import Samples
from pipelines.codebook_measures import FIGURES as CODEBOOK_FIGURES
from pipelines.codec_measures import KMEANS_TRAIN, autoencoders
from pipelines.config import dump_recipe
from pipelines.data.config import Sets
from pipelines.distance_measures import measure_distances
from pipelines.judged_config import EvalStage
from pipelines.judged_models import files_behind, judged_models
from pipelines.judging import Judges
from pipelines.ledger import said
from pipelines.logged import logged, read_log
from pipelines.lpips_measure import LocalLPIPS
from pipelines.measures import REFERENCE, Evaluation, read_set
from pipelines.picture_measures import judged_generated, judged_real
from pipelines.prior_measures import prior_costs
from pipelines.provenance import made_by
from pipelines.runs import Run
from pipelines.sheets import sheets
from pipelines.sweep_report import sweeps
from pipelines.text.config import TextData
from pipelines.upscale_measures import enlargements
from pipelines.word_measures import words

ATTRIBUTES = ("background", "colour", "shape", "size", "relation")
VAE_FIGURES = ("psnr", "kl", "mutual_information", "marginal_kl", "active_units", "bits_per_dim", "bits_per_pixel")
VQVAE_FIGURES = ("psnr", "patch_kmeans_psnr", "bits_per_pixel", "bits_per_pixel[entropy]", *CODEBOOK_FIGURES)
READ_TRAIN = max(KMEANS_TRAIN, REFERENCE)  # training pictures that are read, where copies are not looked for in more
NOT_CURVES = ("step", "seconds", "split", "keys", "gradient_norm", "rival_gradient_norm", "waiting")
BY_TIME = re.compile(r"(\w+)_t([\d.-]+)")  # a figure of validation at some times: name_t0.00-0.25
NO_LABELS = "this data has no exact labels: only scenes made by `palimpsest data scenes` have them"


def evaluate(run: Run, name: str, stage: EvalStage) -> dict[str, Any]:
    """Compute all figures and write report.html and report.json beside the manifest."""
    lpips = LocalLPIPS(Path(stage.lpips)) if stage.lpips else None
    real = read_set(run, run.held_out_name(), stage.reconstructions)
    train = read_set(run, "train", max(READ_TRAIN, stage.searched))
    e = Evaluation(run, name, stage, Judges.load(run, name), real, train, lpips)
    autoencoders(e)
    enlargements(e)
    judged_real(e)
    for made in e.generated():
        judged_generated(e, made)
    measure_distances(e)
    words(e)
    prior_costs(e)
    sweeps(e)
    e.sections += [curves(e.run), sheets(e.run)]
    sections = [headline(e.figures), *e.sections]
    _name_missing(e)
    credit = credits_of(run.recipe.data)
    summary = f"at {run.recipe.size} pixels, judged on {len(e.real)} {e.where} pictures. {credit}"
    report = report_of(run, name, e.figures, sections, summary, samples=e.samples)
    page, figures = write_report(report, run.stage_folder(name))
    return {"report": page.name, "figures": figures.name, "count": len(e.figures)}


def credits_of(data: Any) -> str:
    """Return the licence lines of all sets."""
    more = data.more if isinstance(data, Sets) else ()
    return " ".join(line for one in (data, *more) if (line := getattr(one, "credit", "")))


def curves(run: Run) -> Section:
    """Loss curves of every stage that trained."""
    blocks = []
    for name in run.recipe.order():
        lines = read_log(run.stage_folder(name))
        names = dict.fromkeys(key for line in lines for key in line if key not in NOT_CURVES)
        for field_name in names:
            if not BY_TIME.fullmatch(field_name):
                series = [logged(lines, field_name, split, split) for split in ("train", "validation")]
                blocks.append(_curve(name, field_name, series))
        timed = [found for field_name in names if (found := BY_TIME.fullmatch(field_name))]
        for what in dict.fromkeys(found[1] for found in timed):
            series = [logged(lines, found[0], "validation", f"t {found[2]}") for found in timed if found[1] == what]
            blocks.append(_curve(name, f"{what} by time", series))
    return Section("Training", blocks)


def _curve(stage: str, what: str, series: list[Series]) -> Curve:
    shown = [one for one in series if one.x]
    positive = all(value > 0 for one in shown for value in one.y)
    return Curve(f"{stage}: {what}", shown, y_label=what, log=positive and what.startswith("loss"))


def _name_missing(e: Evaluation) -> None:
    """Give every promised figure a place: null with a reason where it cannot be had."""
    nobody = "no stage of this recipe makes it, or the stage goes by another name"
    promised = [f"{model}.scene.{attribute}" for model in ("latent", "mdlm") for attribute in ATTRIBUTES]
    promised += [f"vae.{name}" for name in VAE_FIGURES] + [f"vqvae.{name}" for name in VQVAE_FIGURES]
    promised += ["caption.scene.colour"]
    promised += ["text.nats_per_token", "text.exact_nats_per_token"]
    for name in promised:
        unlabelled = not e.real.labelled and ".scene." in name
        e.figures.setdefault(name, missing(NO_LABELS if unlabelled else nobody))


def mixed_of(run: Run) -> dict[str, str]:
    """Return the sets of a mixture with what is drawn of each for each picture, to be shown."""
    shares = run.recipe.shares()
    named = [f"{one.name} ({one.called}) {shares[one.name]}" for one in (*run.pictures, *run.texts) if shares]
    return {"sets": ", ".join(named)} if named else {}


def report_of(
    run: Run, name: str, figures: Mapping[str, Known], sections: Sequence[Section], summary: str,
    samples: Mapping[str, Samples] | None = None,
) -> Report:  # fmt: skip
    """Put a report together with what made it, and with what it holds beside its own figures."""
    recipe = run.recipe
    manifests = {other: run.manifest(other) for other in recipe.order() if other != name and run.finished(other)}
    provenance = made_by(
        recipe=recipe.name,
        recipe_hash=run.recipe_hash(),
        command=run.command(),
        resolved=dump_recipe(recipe),
        seeds={"recipe": recipe.seed},
        artefacts={other: manifest["hash"][:16] for other, manifest in manifests.items()},
        data={**judged_by(run), **mixed_of(run), **left_out(manifests)},
        wall_time={other: manifest["wall_seconds"] for other, manifest in manifests.items()},
        models=judged_models(run, name, manifests),
        files=files_behind(manifests),
    )
    report = Report(
        title=f"Palimpsest: {recipe.name}",
        summary=f"{len(manifests)} stages on {recipe.data.kind} {summary}".strip(),
        provenance=provenance,
        sections=sections,
        figures=figures,
        samples=samples or {},
    )
    return report if run.beside is None else run.beside.added_to(report)


def judged_by(run: Run) -> dict[str, str]:
    """Return what the data is called, its hash, and the split that judges."""
    split = "test" if isinstance(run.recipe.data, TextData) else run.held_out_name()
    return {"folder": run.data_name(), "hash": run.data_hash(), "split": split}


def left_out(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Say how many samples the stages could not use and how many captions they cut."""
    found = {}
    if encoded := next((made for made in manifests.values() if "skipped_samples" in made), None):
        skipped = ", ".join(f"{count} of {split}" for split, count in encoded["skipped_samples"].items())
        found = {"samples left out": skipped, "captions cut": str(encoded["truncated_captions"])}
    trained = {name: made["passed_over"] for name, made in manifests.items() if made.get("passed_over")}
    return found | {f"samples passed over while training {name}": said(rows) for name, rows in trained.items()}
