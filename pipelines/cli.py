"""The `palimpsest` command: one verb per step of the pipeline.

palimpsest run recipes/scenes.toml: every stage in order; run again after an interruption and it goes on.

palimpsest sample image "a red star on a sky background": a picture from a finished run.

palimpsest VERB --help: what a verb takes.
"""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from safetensors import SafetensorError
from tyro.extras import SubcommandApp

from pipelines.cli_codec import export, reconstruct
from pipelines.cli_data import data_check, data_import, data_scenes
from pipelines.cli_ema import ema
from pipelines.cli_eval import compare, evaluate, run_kind
from pipelines.cli_sample import (
    Words,
    sample_caption,
    sample_image,
    sample_infill,
    sample_pair,
    sample_prior,
    sample_text,
)
from pipelines.cli_study import study_export, study_import, study_plan, study_report, study_simulate
from pipelines.errors import Interrupted, PalimpsestError, said
from pipelines.stopping import STOPPED

LOST = (
    "another process of this run has ended, or cannot be reached, and this one ends with it. What that one said stands "
    "in its own output. The same command goes on from what is saved."
)
Recipe = Annotated[Path, tyro.conf.Positional]
Data = Annotated[str | None, tyro.conf.arg(metavar="DIR|URL")]
Sets = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="KEY=VALUE ...")]


def run(
    recipe: Recipe, out: Path = Path("runs"), data: Data = None, budget: float | None = None, set_: Sets = (),
    dry: bool = False,
) -> None:  # fmt: skip
    """Run every stage of a recipe; finished stages are skipped and an interrupted one goes on.

    Args:
        recipe: a TOML file, such as recipes/scenes.toml.
        out: where runs are kept; this one goes to OUT/<recipe name>.
        data: folder of shards, or its address (https://, s3://, gs://); needed where the recipe names none.
        budget: minutes for the whole run; training times are scaled to fit.
        set_: recipe values to change, such as stage.vae.training.minutes=5.
        dry: build every network without memory, print what the recipe would train, or why it cannot, and run nothing.
    """
    if dry:
        from pipelines.config import load_recipe
        from pipelines.dry import dry_run
        from pipelines.run import within_budget, worker_count

        read = load_recipe(recipe, set_)
        print(dry_run(read if budget is None else within_budget(read, budget, worker_count())))
        return
    from pipelines.run import run_recipe, start_run, summary

    opened = start_run(recipe, out=out, data=data, budget=budget, overrides=set_)
    run_recipe(opened)
    print(summary(opened))


def plan(
    recipe: Recipe, gpus: int, gpu: str = "h200", data: Data = None, utilisation: float = 0.35,
    price: float | None = None, set_: Sets = (),
) -> None:  # fmt: skip
    """Say what the trainings of a recipe take on GPUs: memory, operations, time, price and data, and what cannot fit.

    Args:
        recipe: a TOML file, such as recipes/t2i-256.toml.
        gpus: how many there are.
        gpu: which: a100-40, a100-80, h100, h200, b200, l40s, rtx4090.
        data: folder of shards, or its address, for epochs and volumes; further sets lie where the recipe says.
        utilisation: share of the GPU's peak that training reaches; measure yours on a short run.
        price: dollars for a GPU and an hour, in place of a rough rent.
        set_: recipe values to change.
    """
    from pipelines.amount import amounts
    from pipelines.config import load_recipe
    from pipelines.data.place import place_of
    from pipelines.forecast import plan
    from pipelines.outlook import Machines
    from pipelines.progress import ticking

    machines = Machines(gpus=gpus, gpu=gpu, utilisation=utilisation, price=price)
    read = load_recipe(recipe, set_)
    with ticking("plan") as tick:
        text = plan(read, machines, [] if data is None else amounts(read, place_of(data), Path("runs")), tick)
    print(text)


def train(name: Words, recipe: Recipe, out: Path = Path("runs"), data: Data = None, set_: Sets = ()) -> None:
    """Run one stage of a recipe, by its name. Its forerunners must be finished.

    Args:
        name: the stage, as the recipe names it, such as vae.
        recipe: a TOML file, or the recipe.json of a run.
        out: where runs are kept.
        data: folder of shards, or its address.
        set_: recipe values to change.
    """
    from pipelines.runs import open_run
    from pipelines.stages import run_stage

    run_stage(open_run(recipe, out=out, data=data, overrides=set_), name)


def encode(recipe: Recipe, out: Path = Path("runs"), data: Data = None, set_: Sets = ()) -> None:
    """Cache latents, image tokens, text tokens and text embeddings of all splits in shards.

    Args:
        recipe: a TOML file with a stage of kind encode.
        out: where runs are kept.
        data: folder of shards, or its address.
        set_: recipe values to change.
    """
    run_kind(("encode",), recipe, out, data, set_)


VERBS: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "train": train,
    "encode": encode,
    "eval": evaluate,
    "compare": compare,
    "ema": ema,
    "export": export,
    "reconstruct": reconstruct,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "sample": (
        "Draw pictures, write texts, caption or infill a picture, make pairs, draw from a prior, from a finished run.",
        {
            "image": sample_image,
            "text": sample_text,
            "caption": sample_caption,
            "infill": sample_infill,
            "pair": sample_pair,
            "prior": sample_prior,
        },
    ),
    "data": (
        "Render the built-in scenes, import your own pictures, check shards.",
        {"scenes": data_scenes, "import": data_import, "check": data_check},
    ),
    "study": (
        "Blinded comparison of pictures by people: plan, export, import, report, and a trial on synthetic raters.",
        {
            "plan": study_plan,
            "export": study_export,
            "import": study_import,
            "report": study_report,
            "simulate": study_simulate,
        },
    ),
}


def application() -> SubcommandApp:
    """Return the command with all its verbs."""
    app = SubcommandApp()
    for name, verb in VERBS.items():
        app.command(name=name)(verb)
    for name, (about, verbs) in GROUPS.items():
        group = SubcommandApp()
        for inner, verb in verbs.items():
            group.command(name=inner)(verb)
        app.command(group, name=name, help=about)
    return app


def main() -> None:
    """Run the command line.

    A mistake of the user's ends in one message and exit code 2, a training that was asked to stop and has saved in 75.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    end_with(lambda: application().cli(prog="palimpsest", description=__doc__))


def end_with(work: Callable[[], object]) -> None:
    """Do the work of a process and end it with its exit code, the other processes of a run with it."""
    code = _code(work)
    if "torch" in sys.modules:
        from pipelines.hardware import leave_group

        leave_group(code, together=code in (0, STOPPED))
    if code:
        sys.exit(code)


def _nobody_reads() -> bool:
    """Whether whoever read the output has gone, as `head` does."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _code(work: Callable[[], object]) -> int:
    """Do some work and return the exit code; say what went wrong."""
    try:
        work()
    except Interrupted as stopped:
        print(f"palimpsest: {stopped}", file=sys.stderr)
        return STOPPED
    except (PalimpsestError, ValueError, OSError, SafetensorError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.stderr.close()
            return 0
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in str(error).lower()
        remedy = ". Free some space and run the same command again; what was saved before is intact." if full else ""
        print(f"palimpsest: {said(error)}{remedy}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from pipelines.together import lost_another

        if not lost_another(error):
            raise
        print(f"palimpsest: {LOST} ({str(error).splitlines()[0]})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("palimpsest: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    main()
