"""The distances of two sets of features: what each figure is called, and what stands beside it."""

import numpy as np
import pytest

from eval.definitions import define
from eval.features import Tower
from eval.figure import Figure, Missing
from eval.frechet import frechet_distance
from eval.kernel import kid
from eval.prdc import prdc
from eval.sliced import mind
from pipelines.scoring.distances import SetRow, distances, figures_of, table_of

TOWER = Tower(name="judge", sha256="0" * 64, dim=8, size=32, network=lambda x: x)


def measured(n, m, d=8):
    rng = np.random.RandomState(0)
    features, reference = rng.randn(n, d).astype(np.float32), rng.randn(m, d).astype(np.float32) * 1.2
    row = SetRow("latent", "latent", "model", distances(features, reference, TOWER, "train"))
    return row, features, reference


def test_every_distance_has_its_figure_column_and_definition():
    row, features, reference = measured(60, 60)
    figures = figures_of([row])
    named = {name.removeprefix("latent.").split("[")[0]: figure.value for name, figure in figures.items()}
    overlap = prdc(reference, features, 5)
    assert named.pop("fd-infinity") < named["fd"]
    assert named == pytest.approx({
        "fd": frechet_distance(features, reference), "kd": kid(features, reference), "mind": mind(features, reference),
        "precision-k5": overlap.precision, "recall-k5": overlap.recall,
        "density-k5": overlap.density, "coverage-k5": overlap.coverage,
    })  # fmt: skip
    assert next(iter(figures)) == "latent.fd[judge:00000000|resize=none|n=60/60|split=train]"
    for name, figure in figures.items():
        assert isinstance(figure, Figure) and figure.interval() is not None, name
        assert figure.low <= figure.value <= figure.high and "no interval" not in figure.source
    columns = table_of("Distances", [row], TOWER).columns[1:]
    for column, name in zip(columns, figures, strict=True):
        found = define(name)
        assert (found.unit, found.better) == (column.unit, column.better)


def test_the_frechet_distance_has_an_interval_and_says_where_rank_is_missing():
    full, short = (measured(n, 90)[0].distances[0].figure for n in (60, 8))
    assert isinstance(full, Figure) and isinstance(short, Figure)
    assert full.low < full.value < full.high and "rank-deficient" not in full.source
    assert "rank-deficient: 8 rows for 8 dimensions" in short.source and "kernel distance" in short.source


def test_sets_too_small_say_so_in_each_of_their_figures():
    figures = figures_of([measured(5, 90)[0]])
    lost = [figure for name, figure in figures.items() if "-k5" in name]
    assert len(lost) == 4 and all(isinstance(figure, Missing) and "k=5 needs" in figure.reason for figure in lost)
    (infinite,) = (figure for name, figure in figures.items() if ".fd-infinity" in name)
    assert isinstance(infinite, Missing) and "5 pictures for 8 dimensions" in infinite.reason
