"""Sweeps: rows that go on where they stopped, weights that training left, figures of real runs, and their table."""

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eval.blocks import Curve, Table, Tradeoff
from eval.definitions import define
from eval.features import Tower
from eval.figure import Figure, Missing
from eval.interval import Interval, mean_interval, paired, wilson
from eval.kernel import kid_interval
from pipelines.artefact import ArtefactError
from pipelines.checkpoints import Checkpoints
from pipelines.judged_config import SweepStage
from pipelines.kept_weights import USED, Weights, over_training, put
from pipelines.measures import Set
from pipelines.posthoc import PosthocEMA, Tracked
from pipelines.runs import Run, reopen_run
from pipelines.sampling_options import Settings
from pipelines.sweep import _sampler_rows, judged_of
from pipelines.sweep_csv import to_csv, write_csv
from pipelines.sweep_guidance import kinship
from pipelines.sweep_judged import REAL, SAME, SHUFFLED, STEPS, Figures, Judged, settings_of_real
from pipelines.sweep_report import _best, apart, figures, sections
from pipelines.sweep_rows import ROWS, SCHEMA, Setting, measure_rows, plain_interval, read_rows, timed
from pipelines.sweep_table import difference, distance, kept
from pipelines.sweep_training import LENGTH

PLAIN = Settings(sampler="euler", steps=4, guidance=3.0)
WANTED = [
    Setting("guidance", "latent", "plain", PLAIN),
    Setting("temperature", "mdlm", "pictures", dataclasses.replace(PLAIN, temperature=0.7)),
    Setting(LENGTH, "latent", "averages", PLAIN, weights=Weights(0.1)),
    Setting(LENGTH, "latent", "averages", PLAIN, weights=Weights(0.2)),
    Setting(STEPS, "latent", "over the training", PLAIN, weights=Weights(0.1, 10)),
    Setting(STEPS, "latent", "over the training", PLAIN, weights=Weights(0.1, 20)),
]


class Stop(Exception):
    """What interrupts a sweep."""


def test_an_interrupted_sweep_measures_only_what_is_missing_in_every_group(tmp_path: Path):
    assert len({setting.key for setting in WANTED}) == len(WANTED)
    made = []

    def measure(setting):
        if len(made) == 3:
            raise Stop
        made.append(setting)
        return {**setting.plain, "figures": {}}

    with pytest.raises(Stop):
        measure_rows(tmp_path, "sweep", WANTED, measure)
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"schema": 2, "key": "torn')  # killed while it wrote
    rest = []
    measure_rows(tmp_path, "sweep", WANTED, lambda setting: rest.append(setting) or {**setting.plain, "figures": {}})
    assert (made, rest) == (WANTED[:3], WANTED[3:])
    assert [row["step"] for row in read_rows(tmp_path / ROWS).values()] == [None] * 4 + [10, 20]


def test_an_interrupted_sweep_makes_rows_of_an_older_version_again(tmp_path: Path):
    old = {"key": WANTED[0].key, "figures": {"kd": {"value": 1.0, "low": 0.0, "high": 2.0, "n": 20}}}
    (tmp_path / ROWS).write_text(json.dumps(old) + "\n")
    measure_rows(tmp_path, "sweep", WANTED[:1], lambda _: {"figures": {}})
    (row,) = read_rows(tmp_path / ROWS).values()
    assert row == {"schema": SCHEMA, "key": WANTED[0].key, "figures": {}}


def test_equal_settings_are_measured_once_whatever_was_allowed(tmp_path: Path):
    one_step = dataclasses.replace(PLAIN, sampler="rk4", steps=1)
    wanted = [Setting("samplers", "latent", "rk4", one_step, within) for within in (4, 5)]
    made = []
    assert measure_rows(tmp_path, "sweep", wanted, lambda setting: made.append(setting) or {"figures": {}}) == 1
    assert made == wanted[:1] and len((tmp_path / ROWS).read_text().splitlines()) == 1


def test_settings_of_equal_steps_are_equal_but_where_other_steps_count():
    stage = SweepStage(kind="sweep", needs=["latent", "judge"], evaluations=(4, 7, 8))

    def keys(sampler):
        return {row.key for row in _sampler_rows("latent", sampler, stage)}

    assert len(keys("heun")) == 2  # two steps, and four for 7 and 8
    assert len(keys("annealed_langevin")) == 3


def test_the_key_of_a_row_with_the_weights_in_use_is_what_it_always_was():
    key = json.dumps(["guidance", "latent", "plain", dataclasses.asdict(PLAIN)], sort_keys=True)
    assert Setting("guidance", "latent", "plain", PLAIN, weights=USED).key == key


def test_seconds_are_those_of_all_pictures_and_have_an_interval_from_three_batches_on():
    assert timed([2.0, 1.0], [4, 1]) == Interval(0.6, -math.inf, math.inf, 5)
    found = timed([2.0, 4.0, 6.0], [2, 2, 2])
    assert found.value == 2.0 and found.n == 6
    assert found.high - found.value == pytest.approx(4.302652729911275 / math.sqrt(3))  # t of two degrees of freedom
    assert plain_interval(timed([1.0], [1])) == {"value": 1.0, "low": None, "high": None, "n": 1}


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A stage with snapshots of steps 10, 20, 30, and the averages of both lengths at each."""
    network, seen = nn.Linear(3, 2), []
    tracked = Tracked(network, PosthocEMA(every=10))
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 31):
        with torch.no_grad():
            network.weight.copy_(torch.randn(2, 3, generator=generator))
        tracked.update(network, step)
        if step % 10 == 0:
            tracked.snapshot(tmp_path, step)
            seen.append({name: value.clone() for name, value in tracked.state_dict().items()})
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    tracked.finish(tmp_path, {})
    return tmp_path, seen


def test_the_weights_of_an_earlier_step_are_the_average_that_was_tracked_there(trained):
    folder, seen = trained
    assert over_training(folder, 8) == [Weights(0.1, step) for step in (10, 20, 30)]
    assert over_training(folder, 2) == [Weights(0.1, 10), Weights(0.1, 30)]
    assert over_training(folder, 1) == [Weights(0.1, 30)] and over_training(folder, 0) == []
    for weights, expected in zip(over_training(folder, 3), seen, strict=True):
        network = nn.Linear(3, 2)
        assert put(network, folder, weights) < 1e-6
        assert torch.allclose(network.weight, expected["1/weight"], atol=1e-5)


def test_the_weights_of_a_kept_checkpoint_are_its_average_else_its_own(tmp_path: Path):
    kept = Checkpoints(folder=tmp_path, keep=1, every=10)
    facts = {"cursor": 0, "seconds": 0.0, "skipped": 0, "best": None, "norms": {}}
    for step, average in ((10, None), (15, None), (20, {"weight": torch.full((2, 3), 7.0), "bias": torch.zeros(2)})):
        state = {"weight": torch.full((2, 3), float(step)), "bias": torch.zeros(2)}
        kept.begin({"step": step, **facts}, {"network": state, "average": average, "optimizers": []})
        kept.settle()
    kept.close()
    assert over_training(tmp_path, 8) == [Weights(None, 10), Weights(None, 20)]  # 15 does not stay for good
    network = nn.Linear(3, 2)
    for step, value in ((10, 10.0), (20, 7.0)):
        assert put(network, tmp_path, Weights(None, step)) == 0 and (network.weight == value).all()
    with pytest.raises(ArtefactError, match="weights of step 15 cannot be had"):
        put(network, tmp_path, Weights(None, 15))
    (tmp_path / "checkpoints" / "000020" / "state.pt").write_bytes(b"torn")
    with pytest.raises(ArtefactError, match=r"state.pt has 4 bytes"):
        put(network, tmp_path, Weights(None, 20))


def test_a_stage_that_kept_nothing_has_no_way_to_show(tmp_path: Path):
    assert over_training(tmp_path, 8) == []


def row(**changes):
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    plain = {**WANTED[0].plain, "evaluations": 4, "scale": 3.0, "figures": {"kd": figure, "fd": figure}}
    return {**plain, **changes}


def test_the_table_has_a_line_for_each_row_and_four_cells_for_each_metric(tmp_path: Path):
    no_interval = {"value": 0.1, "low": None, "high": None, "n": 20}
    rows = [row(curve='a "b", c', keys={"fd": "fd[x]"}), row(figures={"seconds": no_interval}, step=10)]
    first, second = csv.DictReader(io.StringIO(to_csv({"latent_sweep": rows})))
    assert first["curve"] == 'a "b", c' and json.loads(first["keys"]) == {"fd": "fd[x]"}
    assert [float(first[f"kd{end}"]) for end in ("", "_low", "_high", "_n")] == [0.5, 0.4, 0.6, 20]
    assert [second[f"seconds{end}"] for end in ("", "_low", "_high", "_n")] == ["0.1", "", "", "20"]
    assert second["kd"] == first["seconds"] == "" and (first["step"], second["step"]) == ("", "10")
    write_csv(tmp_path, {"latent_sweep": rows})
    assert (tmp_path / "sweep.csv").exists()
    write_csv(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_the_remarks_and_what_may_be_ranked():
    rows = [row(notes={"fd": "rank-deficient"}), row(comparable=False, passes=2.5, why="repeats itself")]
    first, second = csv.DictReader(io.StringIO(to_csv({"sweep": rows})))
    assert json.loads(first["notes"]) == {"fd": "rank-deficient"} and first["comparable"] == second["notes"] == ""
    assert (second["comparable"], second["passes"], second["why"]) == ("False", "2.5", "repeats itself")


def names(**changes):
    return [name for name, _ in figures("sweep", [row(**changes)])]


def test_names_hold_what_was_asked_and_not_what_it_took():
    adaptive = {"sampler": "dormand_prince", "curve": "dormand_prince"}
    assert names(**adaptive, evaluations=18.0) == names(**adaptive, evaluations=19.5)
    assert names(**adaptive)[0] == "latent.sweep.kd[guidance: dormand_prince|tolerance=0.001|guidance=3|n=20]"
    assert names(sampler="entropy_bound")[0] == "latent.sweep.kd[guidance: plain|bound=0.1|guidance=3|n=20]"
    assert names(sampler="autoregressive")[0] == "latent.sweep.kd[guidance: plain|guidance=3|n=20]"
    assert "|steps=4|" in names(sampler="first_hitting", evaluations=3.2)[0]
    assert "18" in dict(figures("sweep", [row(**adaptive, evaluations=18.0)]))[names(**adaptive)[0]].source


def test_a_figure_that_cannot_be_had_is_missing_with_its_reason_under_the_same_name():
    keys = {"kd": "kd[judge:abc|n=20/100]", "fd": "fd[judge:abc|n=20/100]"}
    whole = dict(figures("sweep", [row(keys=keys, line={"value": 1.0, "se": 0.1, "r2": 0.9})]))
    notes = {"kd": "too few", "line": "far too few"}
    less = dict(figures("sweep", [row(keys=keys, notes=notes, figures={"fd": row()["figures"]["fd"]})]))
    lost = {name: one.reason for name, one in less.items() if isinstance(one, Missing)}
    assert whole.keys() == less.keys() and sorted(lost.values()) == ["far too few", "too few"]


def test_names_that_two_sweeps_share_have_the_sweep_in_them():
    real, other = row(group=REAL, model=REAL, curve="held-out pictures"), row(curve="other")
    found = apart({name: dict(figures(name, rows)) for name, rows in (("a", [real]), ("b", [real, other]))})
    assert [name for name in found if ".kd[" in name] == [
        "real.sweep.kd[real: held-out pictures|n=20|sweep=a]",
        "real.sweep.kd[real: held-out pictures|n=20|sweep=b]",
        "latent.sweep.kd[guidance: other|steps=4|guidance=3|n=20]",
    ]
    assert all("No definition" not in define(name).text for name in found)
    bits = apart({name: {"latent.bits_per_dim[ode]": Figure(1.0, 5)} for name in "ab"})
    assert len(bits) == 2 and all("No definition" not in define(name).text for name in bits)


def test_the_kernel_distance_of_a_sweep_has_a_definition_of_its_own():
    assert define(names()[0]).label == "sampling sweep: kernel distance"


def test_the_best_sampler_goes_by_evaluations():
    rows = [row(group="samplers", curve="rk4", within=4, evaluations=2)]
    rows[0]["figures"] = {"kd": rows[0]["figures"]["kd"]}
    table = _best(rows, (1, 4, 8), "sweep")
    assert [line.cells[1] for line in table.rows] == ["–", "rk4", "rk4"]


class Splits:
    """A run whose data has some splits."""

    def __init__(self, name: str):
        self.name = name

    def held_out_name(self) -> str:
        return self.name


class Faces:
    """Judges that take pictures for their features."""

    tower = Tower(name="judge", sha256="a" * 64, dim=2, size=8, network=lambda x: x)
    scene = None

    def features(self, pictures):
        return pictures

    def caption_features(self, captions):
        return np.ones((len(captions), 2)) / math.sqrt(2)


def sorted_judged(split: str, count: int = 40) -> Judged:
    """What judges pictures whose order means kinds."""
    rng = np.random.default_rng(0)
    made, reference = (np.sort(rng.normal(size=(n, 2)), axis=0).astype(np.float32) for n in (count, 200))
    captions = [f"caption {number}" for number in range(count)]
    return Judged(Splits(split), Faces(), Set(made, captions, [{}] * count), reference, 0)


def test_distances_of_a_row_go_over_sets_in_a_drawn_order():
    judged = sorted_judged("test")
    found = judged.judge(judged.real.pictures, mind_too=True)
    in_order = kid_interval(judged.real.pictures, judged.reference, blocks=10)
    assert found.figures["kd"].value == pytest.approx(in_order.value, abs=1e-6)
    width, ordered = (one.high - one.low for one in (found.figures["kd"], in_order))
    assert width > 2 * ordered  # blocks of like kinds, left out together on both sides, hide the spread
    assert found.figures["precision"].value > 0.8 and found.figures["recall"].value > 0.8
    assert found.keys["kd"] == "kd[judge:aaaaaaaa|resize=none|n=40/200|split=train]"


def test_without_a_test_split_real_pictures_have_no_distance_and_are_called_what_they_are():
    judged = sorted_judged("train")
    first, second = settings_of_real(judged.run)
    assert first.curve == "TRAINING (the data has no test split) pictures" and second.curve == SHUFFLED
    for setting, gone in ((first, {"kd", "fd", "precision", "recall"}), (second, {"kd", "fd"})):
        found = judged.measure(setting)
        assert found["notes"] == dict.fromkeys(gone, SAME) and found["figures"].keys() == {"clip_score"}
    held = sorted_judged("test").measure(settings_of_real(Splits("test"))[0])
    assert held["curve"] == "held-out pictures" and "kd" in held["figures"] and "notes" not in held


def test_the_remark_on_rank_leaves_the_reason_of_a_missing_distance():
    judged = sorted_judged("test", 1)
    found = Figures()
    judged._distances(found, judged.real.pictures, judged.reference)
    assert "fd" not in found.figures and "rank-deficient" not in found.notes["fd"]


def test_the_distance_to_read_is_the_kernel_distance_where_some_row_lacks_rank():
    assert distance([row(), row()]).key == "fd"
    assert distance([row(), row(notes={"fd": "rank-deficient"})]).key == "kd"


def test_a_difference_to_the_best_row_is_paired_by_prompts():
    best, other = row(each={"clip_score": [0.5, 0.7, 0.6]}), row(each={"clip_score": [0.4, 0.5, 0.6]})
    found, exact = difference(other, best, "clip_score"), paired([0.4, 0.5, 0.6], [0.5, 0.7, 0.6])
    assert found is not None and (found.value, found.low, found.high) == (exact.value, exact.low, exact.high)
    assert found.value == pytest.approx(-0.1)
    assert difference(best, best, "clip_score") is None and difference(row(), best, "clip_score") is None


@pytest.fixture(scope="module")
def run(smoke: Path) -> Run:
    return reopen_run(smoke)


@pytest.fixture(scope="module")
def rows(run: Run) -> list[dict]:
    return list(read_rows(run.stage_folder("latent_sweep") / ROWS).values())


def test_every_figure_of_a_sweep_is_known_and_has_a_name_of_its_own(run: Run, rows):
    for name in ("latent_sweep", "mdlm_sweep"):
        mine = list(read_rows(run.stage_folder(name) / ROWS).values())
        found = list(figures(name, mine))
        lines = sum("line" in row or "line" in row.get("notes", {}) for row in mine)
        assert len(dict(found)) == len(found) == sum(len(row["figures"]) for row in mine) + lines
        for name, _ in found:
            assert "No definition" not in define(name).text, name
    keyed = [name for name, _ in figures("latent_sweep", rows) if re.search(r"\.sweep\.[fk]d\[guidance", name)]
    assert keyed and all("|n=20/" in name and "|split=train]" in name for name in keyed)


def test_a_report_shows_rows_of_older_versions_without_what_they_lack(run: Run, rows):
    old = []
    for row in rows:
        if row["group"] in ("samplers", "guidance", "students"):
            kept = {name: row["figures"][name] for name in ("kd", "colour", "shape")}
            new = ("schema", "keys", "notes", "each", "machine", "profile_error", "length", "step")
            old.append({**{name: value for name, value in row.items() if name not in new}, "figures": kept})
    made = sections(run, "latent_sweep", 20, (4,), old)
    assert [section.title for section in made] == ["Samplers: latent", "Guidance: latent", "Few steps"]
    assert not any(isinstance(block, Tradeoff) for section in made for block in section.blocks)
    assert dict(figures("latent_sweep", old))


def test_the_section_about_guidance_has_its_trade_off_beside_real_pictures(run: Run, rows):
    (made,) = [one for one in sections(run, "latent_sweep", 20, (4,), rows) if one.title == "Guidance: latent"]
    chart = made.blocks[0]
    assert isinstance(chart, Tradeoff) and "kernel distance, since 20 pictures" in chart.note
    pairs = [pair for of in chart.series.values() for pair in of]
    assert len(pairs) == sum(row["group"] == "guidance" for row in rows) and set(chart.front) <= set(pairs)
    assert [pair.name for pair in chart.references] == ["held-out pictures"]
    assert all(pair.x.interval() and pair.y.interval() for pair in pairs)
    table = made.blocks[-1]
    assert isinstance(table, Table) and [line.kind for line in table.rows[:3]] == ["ceiling", "floor", "model"]


def test_the_sections_about_training_mark_the_length_and_show_the_loss(run: Run, rows):
    made = {one.title: one for one in sections(run, "latent_sweep", 20, (4,), rows)}
    lengths = made["Length of the average: latent"].blocks[0]
    assert isinstance(lengths, Curve)
    assert [line.name.split(",")[0] for line in lengths.series] == ["averages", "weights in use", "least distance"]
    way = {block.title: block for block in made["Over the training: latent"].blocks}
    assert {"latent: loss", "MIND over the training"} <= set(way) and list(
        way["MIND over the training"].series[0].x
    ) == [
        10,
        60,
    ]
    fit = made["Fréchet distance over 1 / n: latent"].blocks[0]
    assert isinstance(fit, Curve) and len(fit.series[0].x) == 15 and fit.series[1].x[0] == 0
    (usual,) = [row for row in rows if row["group"] == "usual"]
    assert fit.series[1].y[0] == usual["line"]["value"]


def test_the_judge_is_said_to_be_no_kin_or_the_same_as_what_conditions(run: Run, monkeypatch: pytest.MonkeyPatch):
    assert "trained apart from clip" in kinship(run, "latent_sweep", "latent")
    assert "reads the words themselves" in kinship(run, "mdlm_sweep", "mdlm")
    same = run.manifest("clip")
    monkeypatch.setattr(Run, "manifest", lambda self, name: same)
    assert kinship(run, "latent_sweep", "latent").startswith("Beware")


@pytest.fixture(scope="module")
def judged(run: Run) -> Judged:
    return judged_of(run, "latent_sweep", 20, 0, 0)[0]


def test_a_row_measured_again_has_the_same_figures_but_for_the_time(judged: Judged, rows):
    (before,) = [row for row in rows if (row["group"], row["step"]) == (STEPS, 10)]
    usual = {"sampler": "ancestral_large", "steps": 12, "guidance": 3.0}
    setting = Setting(STEPS, "latent", "over the training", Settings(**usual), weights=Weights(0.1, 10))
    assert setting.key == before["key"]
    again = json.loads(json.dumps(judged.measure(setting)))
    for figure, found in before["figures"].items():
        if figure != "seconds":
            assert again["figures"][figure]["value"] == pytest.approx(found["value"], rel=1e-4, abs=1e-6), figure
    assert again["figures"]["seconds"]["value"] > 0


def test_rows_of_other_weights_leave_the_weights_in_use_and_the_draws_as_they_are(judged: Judged, rows):
    other = judged.measure(Setting(LENGTH, "latent", "averages", PLAIN, weights=Weights(0.2)))
    setting = Setting("samplers", "latent", "euler", PLAIN)
    (before,) = [row for row in rows if row["key"] == setting.key]
    after = judged.measure(setting)
    assert after["each"]["clip_score"] == pytest.approx(before["each"]["clip_score"], abs=1e-4)
    assert other["each"] != after["each"] and 0 < other["profile_error"] < 0.2 and after["profile_error"] == 0


@pytest.mark.parametrize("count", [1, 3])
def test_few_pictures_cost_figures_and_no_row(judged: Judged, run: Run, count: int):
    few = dataclasses.replace(judged, real=judged.real.first(count))
    groups = ("guidance", "ema", "checkpoints", "usual")
    weights = {"ema": Weights(0.2), "checkpoints": Weights(0.1, 10)}
    settings = [Setting(group, "latent", "plain", PLAIN, weights=weights.get(group, USED)) for group in groups]
    found = [json.loads(json.dumps(few.measure(setting))) for setting in settings]
    assert "needs 2 <= blocks" in found[0]["notes"]["kd"] or "at least 2 are needed" in found[0]["notes"]["kd"]
    assert "kd" not in found[0]["figures"] and ("clip_score" in found[0]["figures"]) == (count == 3)
    assert f"{count} pictures for 32 dimensions" in found[-1]["notes"]["line"]
    made = sections(run, "latent_sweep", count, (4,), found)
    assert len(made) == 4 and dict(figures("latent_sweep", found)) and to_csv({"latent_sweep": found})


def test_an_interval_that_was_written_down_keeps_its_degrees_of_freedom():
    for found in (mean_interval([1.0, 2.0, 4.0]), wilson(3, 9)):
        assert kept(plain_interval(found), "x") == Figure.of(found, "x")
