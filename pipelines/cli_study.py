"""The verbs of `palimpsest study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

File = Annotated[Path, tyro.conf.Positional]


def study_plan(
    mde: float = 0.05, power: float = 0.8, alpha: float = 0.05, raters: int = 4, rho: float = 0.3, ties: float = 0.0,
    tests: int = 1, pairs: int = 1, criteria: int = 1, seconds: float = 6.0, block: int = 60,
    rate: float | None = None,
) -> None:  # fmt: skip
    """Say how many prompts, raters and hours a study takes.

    Args:
        mde: least win rate above one half that is to be found, such as 0.05 for 55 %.
        power: chance to find it.
        alpha: level of the two-sided test.
        raters: who judge every pair.
        rho: how alike their votes on one pair are; 0 is independent.
        ties: share of prompts that end in a tie.
        tests: how many are made, for Holm's correction: criteria times pairs of models.
        pairs: pairs of models.
        criteria: questions on every pair.
        seconds: that a question takes.
        block: pairs for one rater.
        rate: what an hour of a rater costs.
    """
    from eval.human.power import Effort
    from pipelines.study import plan_study

    asked = Effort(
        mde=mde, power=power, alpha=alpha, raters=raters, rho=rho, ties=ties, tests=tests, pairs=pairs,
        criteria=criteria, seconds=seconds, block=block, rate=rate,
    )  # fmt: skip
    print(plan_study(asked))


def study_export(file: File, out: Path = Path("study")) -> None:
    """Write a blinded study: pages for raters, files for platforms, the sealed key, and what was registered.

    Args:
        file: a study file, such as study.toml; docs/human-study.md shows one.
        out: folder for bundle/, which raters may see, and key.sealed.json, which they must not.
    """
    from pipelines.study import export_study

    print(export_study(file, out))


def study_import(
    votes: Annotated[tuple[Path, ...], tyro.conf.Positional], study: Path = Path("study"), names: bool = False
) -> None:
    """Turn what raters and platforms sent back into one table, votes.csv.

    Args:
        votes: votes.json of pages, Label Studio's JSON export, results of Mechanical Turk (.csv) or Toloka (.tsv).
        study: the folder of the study.
        names: keep the raters' names; else they are hidden behind the study's secret.
    """
    from pipelines.study import import_study

    print(import_study(votes, study, names=names))


def study_report(study: File, figures: Path | None = None) -> None:
    """Evaluate votes.csv of a study: report.html and study.json.

    Args:
        study: the folder of the study.
        figures: report.json of an evaluation, whose metrics are compared with people.
    """
    from pipelines.study import report_study

    print(report_study(study, figures))


def study_simulate(
    strengths: tuple[float, ...] = (0.5, 0.0, -0.5), prompts: int = 60, raters: int = 4, noise: float = 0.5,
    width: float = 0.3, bias: float = 0.0, careless: float = 0.1, seed: int = 0, studies: int = 1,
    out: Path | None = None,
) -> None:  # fmt: skip
    """Run a study on synthetic raters of known strengths, through export and import, and say what was recovered.

    Args:
        strengths: of the models, in nats; 1.1 more is to be preferred three times of four.
        prompts: how many.
        raters: who judge every pair.
        noise: how much a prompt changes a pair (standard deviation in nats).
        width: of ties: a difference below it is none.
        bias: for the left side, in nats.
        careless: share of raters who do not look.
        seed: of everything that is drawn.
        studies: above 1, also say how often intervals hold the truth over so many studies.
        out: keep the simulated study in this folder.
    """
    from eval.human.simulate import Truth
    from pipelines.study import simulate_study

    truth = Truth(strengths=strengths, noise=noise, width=width, bias=bias, careless=careless)
    print(simulate_study(truth, prompts=prompts, raters=raters, seed=seed, studies=studies, out=out))
