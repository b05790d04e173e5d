"""All that raters and platforms are given: pages, tables of tasks, instructions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.human.criteria import CRITERIA
from eval.human.key import Item
from eval.human.layout import Block
from eval.human.pages import completion_code, page
from eval.human.platforms import labelstudio_config, labelstudio_tasks, mturk_page, table
from eval.human.study import Study
from eval.page import write_whole


@dataclass(frozen=True)
class Shown:
    """An item with its prompt and the names of its picture files, left first."""

    item: Item
    prompt: str
    files: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """The item as raters see it."""
        return {
            "id": self.item.id,
            "prompt": self.prompt,
            "left": self.files[0],
            "right": self.files[1] if len(self.files) > 1 else None,
        }


def write_bundle(
    study: Study, identity: str, secret: str, blocks: Sequence[Block], shown: Sequence[Shown], bundle: Path
) -> None:
    """Write every file but the pictures, which lie there already."""
    base = study.base_url.rstrip("/") or "{BASE_URL}"
    set_of = {block.number: block.set for block in blocks}
    width = max(2, len(str(len(blocks))))
    visits = []
    for block in blocks:
        rows = [one.row() for one in shown if one.item.block == block.number]
        code = completion_code(secret, block.number)
        name = f"block-{block.number:0{width}}.html"
        write_whole(bundle / "pages" / name, page(study, identity, block.number, rows, bundle / "pictures", code))
        minutes = round(len(rows) * len(study.criteria) * 6 / 60, 1)
        asked = "&".join(f"{field}={{{{%{field}%}}}}" for field in ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID"))
        visits.append({"block": block.number, "set": block.set, "items": len(rows), "minutes": minutes,
                       "url": f"{base}/pages/{name}?{asked}", "completion_code": code})  # fmt: skip
    tasks = [_task(identity, one, base) for one in shown]
    for number in sorted(set(set_of.values())):
        mine = [task for task, one in zip(tasks, shown, strict=True) if set_of[one.item.block] == number]
        text = json.dumps(labelstudio_tasks(mine), indent=1) + "\n"
        write_whole(bundle / "labelstudio" / f"tasks-set-{number}.json", text)
    write_whole(bundle / "labelstudio" / "config.xml", labelstudio_config(study))
    write_whole(bundle / "prolific.csv", table(visits, ","))
    write_whole(bundle / "mturk.csv", table(tasks, ",", markup=True))
    write_whole(bundle / "mturk.html", mturk_page(study))
    write_whole(bundle / "toloka.tsv", table(tasks, "\t", prefix="INPUT:"))
    write_whole(bundle / "instructions.md", instructions(study))


def instructions(study: Study) -> str:
    """What raters are told, criterion by criterion."""
    lines = [f"# {study.title}", ""]
    if study.mode == "pairwise":
        neither = ", or *both bad* where neither will do." if study.both_bad else "."
        lines += [
            "You see two pictures, A (left) and B (right), and the description that both were made from. For each "
            f"question choose A or B, or a tie where you see no difference{neither}"
        ]
    else:
        lines += ["You see a picture and the description that it was made from. Grade it from 1 to 5 on each question."]
    lines += [
        "",
        "Go by your first clear impression. Some pictures come more than once. Now and then one picture is plainly "
        "wrong, to see whether people look; answer what you see.",
        "",
    ]
    for name in study.criteria:
        one = CRITERIA[name]
        lines += [f"## {name.capitalize()}", "", one.pair if study.mode == "pairwise" else one.grade, "", one.about, ""]
        if study.mode == "pairwise":
            lines += ["From worst to best:", ""]
        lines += [*(f"{grade}. {words}" for grade, words in enumerate(one.anchors, 1)), ""]
    if study.tags and "defects" in study.criteria:
        lines += ["## Kinds of defects", "", "Name what is broken in a picture, where something is: "
                  + ", ".join(study.tags) + ".", ""]  # fmt: skip
    return "\n".join(lines)


def _task(identity: str, shown: Shown, base: str) -> dict[str, Any]:
    sides = ("left", "right") if len(shown.files) > 1 else ("left",)
    urls = {side: f"{base}/pictures/{name}" for side, name in zip(sides, shown.files, strict=True)}
    return {"study": identity, "item": shown.item.id, "prompt": shown.prompt, **urls}
