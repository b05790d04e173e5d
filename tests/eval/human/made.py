"""Pictures, studies and answers for the tests of human studies."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from eval.human.study import Source, Study

NAMES = ("latent-flow-zq7", "mdlm-kx9", "ddpm-wv3", "ar-qj5", "cascade-yb2")
AT = "2026-01-02T03:04:05.678Z"


def prompts(count):
    return [f"a red star, number {i}" for i in range(count)]


def pictures(folder, count, models=2, size=16):
    """A picture per prompt and model whose files carry the model's name wherever they can; later ones are smoother."""
    made = {}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for m, model in enumerate(NAMES[:models]):
        made[model] = []
        for i in range(count):
            pixels = np.random.RandomState(97 * i + m).randint(0, 256, (size, size, 3), dtype=np.uint8)
            pixels[:, : m * size // 6] = 128
            note = PngImagePlugin.PngInfo()
            note.add_text("model", model)
            path = Path(folder) / f"{model}-{i}.png"
            Image.fromarray(pixels).save(path, pnginfo=note, icc_profile=model.encode())
            made[model].append(path)
    return made


def study(models=2, **changes):
    sources = {name: Source(folder=f"{name}-folder") for name in NAMES[:models]}
    return Study(**{"name": "test", "model": sources, **changes})


def data_of(page):
    """The data of a study page."""
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page, re.DOTALL)[1])
