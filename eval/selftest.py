"""The metrics against known answers, on the machine that writes a report: a library that has moved shows here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from eval.blocks import Column, Row, Table
from eval.frechet import Moments, frechet_distance, frechet_terms
from eval.human.agreement import krippendorff_alpha
from eval.human.bradley_terry import SCALE, bradley_terry
from eval.human.power import sign_test_power, votes_needed
from eval.interval import wilson
from eval.kernel import cmmd, kid
from eval.mauve import frontier_integral, mauve_of
from eval.prdc import prdc
from eval.reconstruction import codebook, psnr, summarise_psnr
from eval.sliced import mind
from eval.text import sequence_entropy

Sets = tuple[NDArray[np.float64], NDArray[np.float64]]
SKEWED, EVEN = (0.5, 0.3, 0.2, 0.0), (0.25,) * 4
RATINGS = (  # Krippendorff (2011): four raters and twelve items
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


@dataclass(frozen=True)
class Golden:
    """A known answer: `measure` must give each of `expected` within `tolerance`. what: where the answer is from."""

    name: str
    what: str
    expected: tuple[float, ...]
    tolerance: float
    measure: Callable[[], tuple[float, ...]]


@dataclass(frozen=True)
class Check:
    """What became of a golden; `got` is empty where the metric failed, and `error` says how."""

    name: str
    what: str
    expected: tuple[float, ...]
    got: tuple[float, ...]
    tolerance: float
    passed: bool
    error: str = ""


@cache
def wide() -> Sets:
    """Two sets (2000, 64) of different spread and mean."""
    rng = np.random.RandomState(0)
    return rng.randn(2000, 64), rng.randn(2000, 64) * 1.5 + 0.25


@cache
def few() -> Sets:
    """Two sets (50, 256): fewer rows than columns."""
    rng = np.random.RandomState(1)
    return rng.randn(50, 256), rng.randn(50, 256)


@cache
def flat() -> Sets:
    """Real and generated features (400, 8), the generated ones narrower and moved."""
    rng = np.random.RandomState(5)
    return rng.randn(400, 8), rng.randn(400, 8) * 0.8 + 0.2


def gaussian(mean: object, cov: object) -> Moments:
    """Moments of a Gaussian that nobody drew from."""
    return Moments(n=2, mean=np.asarray(mean, float), scatter=np.asarray(cov, float))


def _diagonal() -> tuple[float, ...]:
    a = np.arange(1.0, 9)
    return (sum(frechet_terms(gaussian(np.full(8, 0.5), np.diag(a)), gaussian(np.zeros(8), np.diag(a + 1)))),)


def _turned() -> tuple[float, ...]:
    return (sum(frechet_terms(gaussian([0, 0], [[2, 1], [1, 3]]), gaussian([0, 0], [[5, -1], [-1, 1]]))),)


def _far() -> tuple[float, ...]:
    a, b = ((x + 1e3).astype(np.float32) for x in wide())
    return (frechet_distance(a, b),)


def _balls(k: int) -> tuple[float, ...]:
    found = prdc(*flat(), k)
    return found.precision, found.recall, found.density, found.coverage


def _codes() -> tuple[float, ...]:
    found = codebook([10] * 4 + [0] * 4)
    return found.usage, found.perplexity, found.bits


def _decibels() -> tuple[float, ...]:
    real = np.zeros((2, 3, 4, 4))
    fake = np.full_like(real, 0.2)  # of the squared range of 2: errors of 0.01 and 0.0001
    fake[1] = 0.02
    return (summarise_psnr(psnr(real, fake)).interval.value,)


def _two_players() -> tuple[float, ...]:
    first, second = bradley_terry([[0, 60], [40, 0]])
    return first - second, (first - second) * SCALE


def _sixty() -> tuple[float, ...]:
    found = wilson(60, 100)
    return found.low, found.high


KIDS = "RandomState(0); torch-fidelity, torchmetrics and clean-fid's formula agree"
KYNKAANNIEMI = "RandomState(5); prdc and torch-fidelity agree: precision, recall, density, coverage"
TABLE_OF_FOUR = "the table of four raters in Krippendorff (2011)"
GOLDENS: tuple[Golden, ...] = (
    Golden("FD, diagonal", "closed form of commuting covariances", (2.546993406920837,), 1e-12, _diagonal),
    Golden("FD, turned", "closed form of two by two covariances that do not commute", (2.0681979623372,), 1e-11,
           _turned),
    Golden("FD, 2000 x 64", "RandomState(0); five implementations agree", (21.69875717457,), 1e-9,
           lambda: (frechet_distance(*wide()),)),
    Golden("FD, float32 far from 0", "the same with 1000 added, in float32", (21.69875,), 1e-4, _far),
    Golden("FD, 50 x 256", "RandomState(1); fewer rows than columns, exact by singular values", (333.75430035,), 1e-8,
           lambda: (frechet_distance(*few()),)),
    Golden("FD, one picture", "closed form: squared shift and lost variance", (509.1609271386,), 1e-8,
           lambda: (frechet_distance(few()[0], np.ones((50, 256))),)),
    Golden("KID", KIDS, (0.3404313236602,), 1e-12, lambda: (kid(wide()[0][:500], wide()[1][:500]),)),
    Golden("KID, one law", "two halves of one sample: below 0", (-0.000828925,), 1e-9,
           lambda: (kid(wide()[0][:500], wide()[0][500:1000]),)),
    Golden("KID, itself", "a set against itself is not 0", (-0.0279646,), 1e-7,
           lambda: (kid(wide()[0][:500], wide()[0][:500]),)),
    Golden("CMMD", "rows of length one, float64", (0.370935842,), 1e-8,
           lambda: (cmmd(wide()[0][:500], wide()[1][:500]),)),
    Golden("MIND", "directions of torch-fidelity", (60.73994,), 1e-5, lambda: (mind(*wide()),)),
    Golden("PRDC, k = 3", KYNKAANNIEMI, (0.9725, 0.63, 1.45, 0.87), 1e-12, lambda: _balls(3)),
    Golden("PRDC, k = 5", KYNKAANNIEMI, (0.985, 0.7125, 1.399, 0.9375), 1e-12, lambda: _balls(5)),
    Golden("PSNR", "a mean of decibels, not the decibels of a mean (22.97)", (30.0,), 1e-9, _decibels),
    Golden("codebook", "four of eight codes equally often: usage, perplexity, bits", (0.5, 4.0, 2.0), 1e-12, _codes),
    Golden("entropy", "two words equally often; one word alone", (math.log(2), 0.0), 1e-15,
           lambda: (sequence_entropy("abab"), sequence_entropy("aaaa"))),
    Golden("MAUVE, apart", "disjoint histograms; 1/252 in the limit", (0.00407210, 0.00396831), 5e-9,
           lambda: (mauve_of([1, 0], [0, 1], points=25), mauve_of([1, 0], [0, 1], points=1000))),
    Golden("MAUVE", "(.5, .3, .2, 0) against four equal parts, 25 and 1000 points; against itself",
           (0.608114, 0.607982, 1.0), 5e-7,
           lambda: (mauve_of(SKEWED, EVEN, points=25), mauve_of(SKEWED, EVEN, points=1000), mauve_of(SKEWED, SKEWED))),
    Golden("frontier integral", "the same histograms", (0.156801,), 5e-7, lambda: (frontier_integral(SKEWED, EVEN),)),
    Golden("Bradley-Terry, two", "60 : 40 is ln 1.5, and 70.44 points", (math.log(1.5), 70.4365), 1e-4, _two_players),
    Golden("Bradley-Terry, three", "choix on the same wins", (0.41460338, -0.06915816, -0.34544522), 1e-7,
           lambda: tuple(bradley_terry([[0, 60, 70], [40, 0, 55], [30, 45, 0]]))),
    Golden("Krippendorff, nominal", TABLE_OF_FOUR, (0.743421,), 5e-7,
           lambda: (krippendorff_alpha(RATINGS, "nominal"),)),
    Golden("Krippendorff, ordinal", TABLE_OF_FOUR, (0.815388,), 5e-7,
           lambda: (krippendorff_alpha(RATINGS, "ordinal"),)),
    Golden("Krippendorff, interval", TABLE_OF_FOUR, (0.849107,), 5e-7,
           lambda: (krippendorff_alpha(RATINGS, "interval"),)),
    Golden("Krippendorff, ratio", TABLE_OF_FOUR, (0.797403,), 5e-7, lambda: (krippendorff_alpha(RATINGS, "ratio"),)),
    Golden("Wilson", "60 of 100", (0.5020, 0.6906), 5e-5, _sixty),
    Golden("votes needed", "win rates of 52, 55, 60, 65 and 70 %, power 80 %", (4904, 783, 194, 85, 47), 0,
           lambda: tuple(votes_needed(rate) for rate in (0.52, 0.55, 0.6, 0.65, 0.7))),
    Golden("sign test", "power of 200 votes at 60 %", (0.787,), 5e-4, lambda: (sign_test_power(200, 0.6),)),
)  # fmt: skip


@cache
def self_test() -> tuple[Check, ...]:
    """Every golden, measured once in a process."""
    return tuple(check(golden) for golden in GOLDENS)


def check(golden: Golden) -> Check:
    """Measure one golden; a metric that raises has failed and costs no report."""
    kept = (golden.name, golden.what, golden.expected)
    try:
        got = tuple(float(value) for value in golden.measure())
    except Exception as error:  # of any kind: the check has failed, and the report is written all the same
        return Check(*kept, (), golden.tolerance, False, f"{type(error).__name__}: {error}")
    near = [abs(a - b) <= golden.tolerance for a, b in zip(got, golden.expected, strict=False)]  # NaN is near nothing
    return Check(*kept, got, golden.tolerance, all(near) and len(got) == len(golden.expected))


def as_table(checks: tuple[Check, ...]) -> Table:
    """What the appendix of a report shows of the checks."""
    rows = [
        Row(
            [
                one.name,
                one.what,
                numbers(one.expected),
                numbers(one.got) or one.error,
                f"{one.tolerance:g}",
                verdict(one),
            ],
            "model" if one.passed else "worse",
        )
        for one in checks
    ]
    columns = [
        "metric",
        "known answer",
        Column("expected", code=True),
        Column("got", code=True),
        "tolerance",
        "verdict",
    ]
    note = "Measured on this machine when this page was written; `palimpsest eval --self-test` repeats it."
    return Table("Metrics against known answers", columns, rows, note=note)


def alarm(checks: tuple[Check, ...]) -> str:
    """One sentence on what failed, for the top of the page; nothing where all passed."""
    failed = [one.name for one in checks if not one.passed]
    if not failed:
        return ""
    return (
        f"{len(failed)} of {len(checks)} metrics miss their known answers on this machine ({', '.join(failed)}): no "
        "figure of these kinds can be trusted. The appendix has what was expected."
    )


def numbers(values: tuple[float, ...]) -> str:
    """Numbers with as many digits as tolerances ask for."""
    return ", ".join(f"{value:.13g}" for value in values)


def verdict(one: Check) -> str:
    """Passed or failed, with a sign."""
    return "✓ passed" if one.passed else "✗ failed"
