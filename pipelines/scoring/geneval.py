"""Generated pictures in the layout that outside judges read (GenEval: NUMBER/metadata.jsonl, NUMBER/samples/*.png)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipelines.artefact import read_json
from pipelines.runs import Run


def export_pictures(run: Run, name: str, folder: Path) -> str:
    """Copy the held-out pictures of a generate stage, one folder for each prompt; returns what to say."""
    source = run.stage_folder(name) / run.held_out_name()
    made = [read_json(path) | {"picture": path.with_suffix(".png")} for path in sorted(source.glob("*.json"))]
    prompts: dict[str, list[Path]] = {}
    for one in made:
        prompts.setdefault(one["prompt"], []).append(one["picture"])
    for number, (prompt, pictures) in enumerate(prompts.items()):
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        for i, picture in enumerate(pictures):
            shutil.copyfile(picture, samples / f"{i:04d}.png")
        line = json.dumps({"prompt": prompt}, ensure_ascii=False)
        (samples.parent / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    return f"{folder}: {len(made)} pictures for {len(prompts)} prompts in GenEval's layout"
