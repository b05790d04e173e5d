"""Tiny runs of pictures in three shapes."""

from pipelines.config import parse_recipe
from pipelines.runs import Run
from pipelines.stages import run_stage

from .data.conftest import tar
from .data.test_buckets import pictures
from .test_classifier_stage import MATCH, MODEL, SMALL, STAGES

SIZES = ["16x16", "24x8", "8x24"]
OF = {"square": (4, 4), "tall": (6, 2), "wide": (2, 6)}  # latents of the kinds of pictures
COUNTS = {"square": 17, "tall": 6, "wide": 11}
FRONT = ("bpe", "vae", "clip")
TOWERS = {"width": 16, "heads": 2, "layers": 1, "text_width": 16, "text_layers": 1, "embed_dim": 16}
TRAINED = {**SMALL, "steps": 12, "batch": 4, "ema": 0.9, "save_seconds": 1e-9}
LATENT = {"kind": "latent", "needs": ["encode"], "model": MODEL, "training": TRAINED}
SHORT = {**TRAINED, "steps": 2}


def recipe_of(shard=5000, batch=4, buckets=SIZES, **more):
    stages = {name: STAGES[name] for name in FRONT}
    stages["clip"] = {**STAGES["clip"], "model": TOWERS}
    stages |= {"encode": {"kind": "encode", "needs": list(FRONT), "shard": shard, "batch": batch}, "latent": LATENT}
    data = {"kind": "shards", "size": 16, **({"buckets": {"sizes": buckets}} if buckets else {})}
    return {"name": "shaped", "data": data, "stage": stages | more}


def of(recipe, folder, data=None):
    return Run(recipe=parse_recipe(recipe, "shaped"), folder=folder / "shaped", data=data or folder / "data")


def beside(run, folder, *, names=(*FRONT, "encode", "cache"), **changes):
    """Another run that takes over what is made of one."""
    (folder / "shaped").mkdir(parents=True)
    for name in names:
        (folder / "shaped" / name).symlink_to(run.folder / name)
    return of(recipe_of(**changes), folder, run.data)


MORE = {
    "match": {"kind": "classifier", "needs": ["encode"], "model": {**MATCH, "bank": 8}, "training": SHORT},
    "student": {"kind": "distill", "needs": ["latent"], "method": "progressive", "steps": 2, "training": SHORT},
    "quick": {"kind": "distill", "needs": ["latent"], "method": "consistency", "training": SHORT},
}


def made(folder):
    """A run with a cache of three shapes, of two shards of pictures and one of those that are held out."""
    whole = list(pictures(("wide003",), ("tall005",), **COUNTS).items())
    tar(folder / "data" / "train-0.tar", dict(whole[::-1][:28]))
    tar(folder / "data" / "train-1.tar", dict(whole[::-1][28:]))
    tar(folder / "data" / "test.tar", pictures(square=5, tall=2, wide=3))
    run = of(recipe_of(), folder)
    for name in (*FRONT, "encode"):
        run_stage(run, name)
    return run
