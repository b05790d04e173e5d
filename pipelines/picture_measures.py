"""The figures of generated pictures: scenes read by the judge, with its own error, floor and chance."""

from __future__ import annotations

from PIL import Image

from eval.blocks import Gallery, Section
from eval.figure import Figure
from eval.scene import chance
from pipelines.judging import scene_scores, scored
from pipelines.measures import Evaluation, Generated, Set, read_set


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
    scores = scene_scores(e.judges, shown.pictures, shown.labels)
    e.note_verdicts(subject, shown.captions, scores, ".unseen" if unseen else "")
    for attribute, interval in scored(scores, shown.labels).items():
        if not unseen:
            e.note(f"{subject}.scene.{attribute}", interval, source)
        elif "." not in attribute:
            e.note(f"{subject}.scene.{attribute}.unseen", interval, source)


def judged_generated(e: Evaluation, made: Generated) -> None:
    """Exact scene accuracy of a model's pictures, seen and unseen, and their grid."""
    split = e.run.held_out_name()
    shown = {name: e.drawn(made, name) for name in (split, "unseen") if name in made.manifest["counts"]}
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
