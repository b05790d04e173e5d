"""Draw docs/toys/*.png and the figures of docs/toys.md: all paths, predictions, samplers, guidance and students.

    python scripts/toys.py            about two minutes on one CPU core
    python scripts/toys.py --quick    seconds, hardly trained, into runs/toys

What there is to see stands in toy_rows.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
import tyro
from torch import Tensor

from latent.grid import karras, uniform
from latent.loss import Objective, Weighting
from latent.predict import Denoise, Prediction, as_model
from latent.sample import consistency, ddim, euler, heun
from latent.schedule import VP, Flow, Schedule
from scripts.toy_models import Lesson, Net, denoiser, draw, energy_distance, learn, learn_classifier, one_hot
from scripts.toy_pictures import Page, Panel, draw_page, figures, replace_figures
from scripts.toy_rows import GUIDANCE, PATHS, SAMPLERS, Path2D, Taught, seeded, start
from scripts.toy_students import consistent, halving, reflowed

ROOT = Path(__file__).resolve().parent.parent
SCALES = (1.0, 2.0, 4.0)
EULER_STEPS = (1, 2, 4, 8, 64)
STUDENT_STEPS = (4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work the page is: training steps of the networks and of the small ones, points, evaluations of each."""

    steps: int = 1200
    small_steps: int = 600
    points: int = 1000
    density: str = "spirals"
    evaluations: Sequence[int] = (4, 8, 16, 32, 64)


FULL = Size()
QUICK = Size(steps=200, small_steps=10, points=300, density="moons", evaluations=(8, 64))


def main(quick: bool = False, out: Path | None = None) -> None:
    """Draw the page.

    Args:
        quick: train hardly at all, to see that everything runs; the pictures are poor.
        out: folder of toys.md and toys/*.png; docs, or runs/toys with --quick.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    docs, began = ROOT / "docs", time.monotonic()
    out = out or (ROOT / "runs" / "toys" if quick else docs)
    (out / "toys").mkdir(parents=True, exist_ok=True)
    if out.resolve() != docs:
        shutil.copy(docs / "toys.md", out)
    for name, page in pages(QUICK if quick else FULL):
        draw_page(out / "toys" / f"{name}.png", page)
        replace_figures(out / "toys.md", name, figures(page))
        print(f"{time.monotonic() - began:4.0f} s  {out / 'toys' / name}.png", flush=True)


def pages(size: Size) -> Iterator[tuple[str, Page]]:
    """Every picture with its name, one after the other."""
    nets = {name: learn(path_lesson(path, size)) for name, path in PATHS.items()}
    yield "paths", paths_page(nets, size)
    yield "samplers", samplers_page(nets, size)
    yield "guidance", guidance_page(size)
    yield "training", training_page(size)
    yield "coupling", coupling_page(size)
    yield "students", students_page(nets["Flow"], size)


def path_lesson(path: Path2D, size: Size) -> Lesson:
    """What the network of a path learns."""
    return Lesson(objective=path.objective, density=size.density, times=path.times, steps=size.steps)


def fresh(size: Size, density: str) -> Panel:
    """New data, and how far they are from other new data: what a perfect sampler would show."""
    return judged(draw(density, size.points, seeded(2))[0], density)


def judged(points: Tensor, density: str, text: str = "") -> Panel:
    """A panel that says how far its points are from fresh data."""
    data, _ = draw(density, 2 * len(points), seeded(3))
    return Panel(points=points, text=text, distance=energy_distance(points, data, seeded(4)))


def stations(
    sampler: Callable[..., Tensor], denoise: Denoise, schedule: Schedule, x: Tensor, grids: Sequence[Tensor]
) -> list[Tensor]:
    """Where x stands at the ends of consecutive time grids, itself first."""
    found = [x]
    for grid in grids:
        found.append(sampler(denoise, schedule, found[-1], grid))
    return found


def paths_page(nets: Mapping[str, Net], size: Size) -> Page:
    """From noise to the spirals on every path, by Heun's method, in units of the standard deviation at t."""
    page = Page(columns=["noise", *(f"{i} of 6" for i in range(1, 6)), "samples", "data"], panels={})
    for name, path in PATHS.items():
        schedule, times = path.objective.schedule, path.grid(24)
        denoise, x = denoiser(nets[name], path.objective), start(schedule, times, size.points)
        *before, last = stations(heun, denoise, schedule, x, [times[i : i + 5] for i in range(0, 24, 4)])
        shown = [
            Panel(points=x_t / torch.hypot(schedule.alpha(t), schedule.sigma(t)).float(), text=f"t = {t.item():.2g}")
            for x_t, t in zip(before, times[:-1:4], strict=True)
        ]
        page.panels[f"{name}, {path.objective.prediction}"] = [
            *shown,
            judged(last, size.density),
            fresh(size, size.density),
        ]
    return page


def samplers_page(nets: Mapping[str, Net], size: Size) -> Page:
    """Every sampler with few and many evaluations, on the spirals."""
    page = Page(columns=[f"{count} evaluations" for count in size.evaluations], panels={})
    for name, row in SAMPLERS.items():
        path = PATHS[row.path]
        denoise = denoiser(nets[row.path], path.objective)
        found = [row.run(denoise, path, size.points, count) for count in size.evaluations]
        page.panels[f"{name}, on {row.path}"] = [
            judged(some.points, size.density, f"{some.calls} calls") if some else None for some in found
        ]
    noise = torch.randn(size.points, 2, generator=seeded())
    for name, panel in (("noise", judged(noise, size.density)), ("fresh data", fresh(size, size.density))):
        page.panels[name] = [panel] * len(size.evaluations)
    return page


def guidance_page(size: Size) -> Page:
    """Every guidance rule at several scales, on moons that overlap, by Heun's method in 32 steps."""
    page, taught, per_class = (
        Page(columns=[f"scale {scale:g}" for scale in SCALES], panels={}),
        teach(size),
        size.points // 2,
    )
    data, label_of_data = draw("moons", 4000, seeded(3))
    label = torch.arange(2).repeat_interleave(per_class)
    times = karras(taught.schedule, 32)  # starts below t = 1, where a classifier says nothing
    for name, rule in GUIDANCE.items():
        page.panels[name] = []
        for scale in SCALES:
            x = start(taught.schedule, times, size.points).reshape(2, per_class, 2)
            points = heun(rule(taught, scale), taught.schedule, x, times).flatten(0, 1)
            own = (label_of_data[torch.cdist(points, data).argmin(1)] == label).float().mean().item()
            page.panels[name].append(replace(judged(points, "moons", f"{own:.0%} own"), label=label))
    page.panels["fresh data"] = [replace(fresh(size, "moons"), label=draw("moons", size.points, seeded(2))[1])] * len(
        SCALES
    )
    return page


def teach(size: Size) -> Taught:
    """Train all that guidance needs: a conditional network, a weaker one, and a classifier of noisy points."""
    objective = PATHS["Flow"].objective
    lesson = Lesson(objective=objective, density="moons", steps=size.steps, labelled=True)
    weaker = replace(lesson, steps=size.steps // 8, width=32)
    judge = learn_classifier(replace(lesson, labelled=False, waves=0))
    cond = (one_hot(torch.arange(2)).repeat_interleave(size.points // 2, 0).reshape(2, -1, 2),)

    def log_prob(x_t: Tensor, t: Tensor) -> Tensor:
        return (judge(x_t, t.float().expand(2), ()).log_softmax(-1) * cond[0]).sum((1, 2))

    return Taught(
        schedule=objective.schedule,
        model=as_model(learn(lesson), objective.schedule, objective.prediction),
        cond=cond,
        null=(torch.zeros_like(cond[0]),),
        weak=denoiser(learn(weaker), objective, cond),
        log_prob=log_prob,
    )


def training_page(size: Size) -> Page:
    """Small networks, one for every prediction and weighting, on the spirals and VP, by Heun's method in 32 steps."""
    page = Page(columns=get_args(Weighting), panels={})
    times = uniform(32)
    for prediction in get_args(Prediction):
        page.panels[prediction] = []
        for weighting in get_args(Weighting):
            objective = Objective(schedule=VP(), prediction=prediction, weighting=weighting)
            net = learn(Lesson(objective=objective, density=size.density, steps=size.small_steps, batch=256, width=64))
            x = start(objective.schedule, times, size.points)
            page.panels[prediction].append(
                judged(heun(denoiser(net, objective), objective.schedule, x, times), size.density)
            )
    return page


def coupling_page(size: Size) -> Page:
    """Independent noise against optimal transport on a checkerboard: ways of the flow, and few Euler steps."""
    page = Page(columns=["ways", *(f"N = {steps}" for steps in EULER_STEPS)], panels={})
    for name, coupled in (("independent", False), ("optimal transport", True)):
        lesson = replace(path_lesson(PATHS["Flow"], size), density="checkerboard", batch=256)
        denoise = denoiser(learn(replace(lesson, coupled=coupled)), lesson.objective)
        x = start(Flow(), torch.ones(1), size.points)
        states = torch.stack(stations(euler, denoise, Flow(), x, list(uniform(64).unfold(0, 2, 1))))
        ways = Panel(points=states[-1], text=f"bend {bend(states):.2f}", lines=states[:, :60])
        page.panels[name] = [
            ways,
            *(judged(euler(denoise, Flow(), x, uniform(steps)), lesson.density) for steps in EULER_STEPS),
        ]
    return page


def students_page(teacher: Net, size: Size) -> Page:
    """Distilled students of the straight path with few steps, beside their teacher."""
    page = Page(columns=[f"N = {steps}" for steps in STUDENT_STEPS], panels={})
    path = PATHS["Flow"]
    schedule, lesson = path.objective.schedule, path_lesson(path, size)
    x = start(schedule, torch.ones(1), size.points)

    def panel(net: Net, sampler: Callable[..., Tensor], steps: int) -> Panel:
        points = sampler(denoiser(net, path.objective), schedule, x, uniform(steps))
        return judged(points, size.density)

    halved = [teacher]
    for steps in STUDENT_STEPS:
        halved.append(halving(halved[-1], lesson, steps))
    renewed = partial(consistency, generator=seeded(1))
    straight, agreeing = reflowed(teacher, lesson), consistent(teacher, lesson)
    page.panels["teacher, ddim"] = [panel(teacher, ddim, steps) for steps in STUDENT_STEPS]
    page.panels["progressive, ddim"] = [
        panel(net, ddim, steps) for net, steps in zip(halved[1:], STUDENT_STEPS, strict=True)
    ]
    page.panels["reflow, euler"] = [panel(straight, euler, steps) for steps in STUDENT_STEPS]
    page.panels["consistency"] = [panel(agreeing, renewed, steps) for steps in STUDENT_STEPS]
    page.panels["fresh data"] = [fresh(size, size.density)] * len(STUDENT_STEPS)
    return page


def bend(states: Tensor) -> float:
    """How far ways are from straight: mean |x_1 - x_0 - dx/dt|^2 over time and points (S of arXiv:2209.03003).

    states: (N + 1, n, 2) at even times from 1 to 0.
    """
    velocity = (len(states) - 1) * states.diff(dim=0)
    return (states[-1] - states[0] - velocity).square().sum(-1).mean().item()


if __name__ == "__main__":
    tyro.cli(main)
