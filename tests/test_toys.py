import math
from typing import get_args

import pytest
import torch
from scipy.spatial.distance import cdist

from latent import guide, sample
from latent.loss import Weighting
from latent.predict import Prediction
from latent.schedule import AnySchedule
from scripts.toy_models import DENSITIES, REACH, draw, energy_distance
from scripts.toy_pictures import figures, replace_figures
from scripts.toy_rows import GUIDANCE, PATHS, SAMPLERS, seeded
from scripts.toys import QUICK, ROOT, bend, main, pages

PAGES = ("paths", "samplers", "guidance", "training", "coupling", "students")
PAGE = ROOT / "docs" / "toys.md"


def first_words(rows):
    return {name.split(",")[0] for name in rows}


@pytest.fixture(scope="module")
def quick():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield dict(pages(QUICK))
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)  # the command sets both


@pytest.fixture(scope="module")
def noise(quick):
    return quick["samplers"].panels["noise"][0].distance


def test_every_exported_sampler_and_guidance_rule_has_a_row():
    assert first_words(SAMPLERS) == set(sample.__all__)
    assert first_words(GUIDANCE) >= set(guide.__all__) - {"Rule"}


def test_every_schedule_and_prediction_has_a_path():
    assert {type(path.objective.schedule) for path in PATHS.values()} == set(get_args(AnySchedule))
    assert {path.objective.prediction for path in PATHS.values()} == set(get_args(Prediction))


def test_every_prediction_meets_every_weighting(quick):
    page = quick["training"]
    assert list(page.panels) == list(get_args(Prediction))
    assert list(page.columns) == list(get_args(Weighting))
    assert all(panel is not None for row in page.panels.values() for panel in row)


def test_every_page_is_drawn(quick):
    assert set(quick) == set(PAGES)
    assert all(len(row) == len(page.columns) for page in quick.values() for row in page.panels.values())


@pytest.mark.parametrize("row", PATHS)
def test_samples_on_every_path_are_far_nearer_to_the_data_than_noise(quick, noise, row):
    panels = quick["paths"].panels[f"{row}, {PATHS[row].objective.prediction}"]
    assert panels[-2].distance.value < noise.value / 2


@pytest.mark.parametrize("row", SAMPLERS)
def test_every_sampler_comes_far_nearer_to_the_data_than_noise(quick, noise, row):
    panel = quick["samplers"].panels[f"{row}, on {SAMPLERS[row].path}"][-1]
    assert panel.distance.value < noise.value / 2


@pytest.mark.parametrize("row", SAMPLERS)
def test_no_sampler_exceeds_its_evaluations(quick, row):
    panels = quick["samplers"].panels[f"{row}, on {SAMPLERS[row].path}"]
    for panel, most in zip(panels, QUICK.evaluations, strict=True):
        assert panel is None or most / 2 < int(panel.text.split()[0]) <= most


@pytest.mark.parametrize("row", GUIDANCE)
def test_guidance_brings_points_to_their_own_class(quick, row):
    plain, *guided = (int(panel.text.split("%")[0]) for panel in quick["guidance"].panels[row])
    assert plain > 80
    if not row.startswith("autoguidance"):  # it leads away from a weak network, not from the other class
        assert max(guided) > plain


def test_optimal_transport_straightens_the_ways(quick):
    independent, coupled = (float(row[0].text.split()[1]) for row in quick["coupling"].panels.values())
    assert coupled < independent / 4


def test_students_of_one_step_come_far_nearer_to_the_data_than_their_teacher(quick):
    teacher, *students, _ = (row[-1].distance.value for row in quick["students"].panels.values())
    assert len(students) == 3
    assert max(students) < teacher / 2


def test_a_quarter_circle_bends_as_calculus_says_and_a_line_does_not():
    angle = math.pi / 2 * torch.linspace(0, 1, 2001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    line = torch.linspace(0, 1, 9)[:, None, None] * torch.tensor([3.0, -1.0])
    assert bend(circle) == pytest.approx(math.pi**2 / 4 - 2, rel=1e-4)  # E|v|^2 - |E v|^2
    assert bend(line) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", DENSITIES)
def test_data_have_mean_zero_and_variance_one_in_both_classes_together(name):
    points, label = draw(name, 50_000, seeded(9))
    torch.testing.assert_close(points.mean(0), torch.zeros(2), rtol=0, atol=0.02)
    torch.testing.assert_close(points.std(0), torch.ones(2), rtol=0, atol=0.02)
    assert label.float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_energy_distance_equals_its_definition_by_scipy():
    x, y = (draw(name, 40, seeded(1))[0] for name in ("moons", "spirals"))
    across, within_x, within_y = (1 - torch.tensor(cdist(a, b) / -REACH).exp() for a, b in ((x, y), (x, x), (y, y)))
    wanted = 2 * across.mean() - (within_x.sum() + within_y.sum()) / (40 * 39)
    assert energy_distance(x, y, seeded()).value == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
def test_the_energy_distance_of_two_draws_is_zero_within_its_interval_and_not_of_noise(name):
    (x, _), (y, _) = (draw(name, 500, seeded(seed)) for seed in (1, 2))
    same, other = (
        energy_distance(x, y, seeded()),
        energy_distance(torch.randn(500, 2, generator=seeded(3)), y, seeded()),
    )
    assert same.low < 0 < same.high
    assert other.low > 5 * abs(same.value)


def test_the_page_shows_every_picture_and_every_row():
    text = PAGE.read_text()
    for name in PAGES:
        assert (PAGE.parent / "toys" / f"{name}.png").stat().st_size < 150_000
        assert f"](toys/{name}.png)" in text
    tables = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    samplers = {f"{name}, on {row.path}" for name, row in SAMPLERS.items()}
    paths = {f"{name}, {path.objective.prediction}" for name, path in PATHS.items()}
    assert samplers | paths | set(GUIDANCE) | set(get_args(Prediction)) <= set(tables)


def test_the_command_writes_pictures_and_figures_into_its_folder(monkeypatch, tmp_path, quick):
    monkeypatch.setattr("scripts.toys.pages", lambda size: iter([("samplers", quick["samplers"])]))
    before = PAGE.read_bytes()
    main(quick=True, out=tmp_path)
    assert PAGE.read_bytes() == before
    assert (tmp_path / "toys" / "samplers.png").read_bytes().startswith(b"\x89PNG")
    assert figures(quick["samplers"]) in (tmp_path / "toys.md").read_text()


def test_a_page_without_its_comments_is_refused(tmp_path):
    page = tmp_path / "toys.md"
    page.write_text("<!-- paths -->\n")
    with pytest.raises(ValueError, match=r"0 places <!-- paths -->.*expected 1"):
        replace_figures(page, "paths", "| |")
