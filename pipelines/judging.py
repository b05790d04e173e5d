"""What the judges say: pictures in, features, captions' features and verdicts on scenes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.features import Tower
from eval.interval import Interval
from eval.scene import Canonical, SceneJudge, Scores, read, score, summarise
from eval.towers import openclip
from pipelines.data.picture import fit
from pipelines.hardware import device_of
from pipelines.models import device, load_scene_judge
from pipelines.pictures import from_uint8
from pipelines.runs import Run
from tokenizer.embed import TextEncoder, load_text_encoder

Pictures = NDArray[np.uint8]  # (n, H, W, 3)
BATCH = 256


@dataclass(frozen=True)
class Judges:
    """The judges of a run; either may be missing."""

    tower: Tower | None  # features for distances and CLIP score
    text: TextEncoder | None  # its text side
    scene: SceneJudge | None
    size: int  # side of the pictures that they were trained on

    @classmethod
    def load(cls, run: Run, name: str) -> Judges:
        """Load the judges that stage `name` needs."""
        contrastive, scene = (run.recipe.of_kind(name, kind) for kind in ("judge", "scene_judge"))
        tower, text = _contrastive(run, contrastive[0]) if contrastive else (None, None)
        return cls(tower, text, load_scene_judge(run, scene[0]) if scene else None, run.recipe.size)

    def seen(self, pictures: Pictures) -> Pictures:
        """Return pictures at the size that the judges know, by the rule that reduced what they were trained on."""
        if pictures.shape[1] == self.size:
            return pictures
        return np.stack([np.asarray(fit(Image.fromarray(picture), self.size)) for picture in pictures])

    def features(self, pictures: Pictures) -> NDArray[np.float32]:
        """Features (n, dim) of pictures."""
        assert self.tower is not None
        return self.tower.embed(self.seen(pictures))

    @torch.no_grad()
    def verdicts(self, pictures: Pictures) -> list[Canonical]:
        """Read scenes."""
        assert self.scene is not None
        found, pictures = list[Canonical](), self.seen(pictures)
        for start in range(0, len(pictures), BATCH):
            x = from_uint8(pictures[start : start + BATCH]).to(device_of(self.scene))
            found += read(self.scene(x), self.scene.config)
        return found

    def caption_features(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """Pooled text features (n, P) of the judge."""
        assert self.text is not None
        return self.text.embed(captions).pooled.double().cpu().numpy()

    def cut(self, captions: Sequence[str]) -> int:
        """Count the distinct captions of which the judge reads only the beginning."""
        assert self.text is not None
        return int(self.text.tokenizer.encode(sorted(set(captions))).truncated.sum())


def _contrastive(run: Run, name: str) -> tuple[Tower, TextEncoder]:
    folder = run.stage_folder(name)
    run.manifest(name)
    tower = judge_tower(folder)
    how = "none" if tower.size == run.recipe.size else "clean"
    return dataclasses.replace(tower, how=how), load_text_encoder(folder).to(device())


def judge_tower(folder: Path) -> Tower:
    """The image side of a stage of kind judge."""
    return openclip(folder, name="indomain-openclip-unit", unit=True, device=str(device()))


def scene_figures(judges: Judges, pictures: Pictures, labels: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Shares of pictures as asked, by attribute and number of objects; labels are what was asked for."""
    return scored(scene_scores(judges, pictures, labels), labels)


def scene_scores(judges: Judges, pictures: Pictures, labels: Sequence[dict[str, Any]]) -> list[Scores]:
    """Verdicts on every picture, by attribute."""
    return [score(found, label) for found, label in zip(judges.verdicts(pictures), labels, strict=True)]


def scored(scores: Sequence[Scores], labels: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Sum verdicts up."""
    return summarise(scores, [len(label["objects"]) for label in labels])
