"""The benchmarks run and compare what they say; their figures are not looked at."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.attention import available
from discrete.predict import denoiser
from scripts.bench import accelerator, autoencoders, sampling, timing, training
from scripts.bench import discrete as text
from scripts.bench.peers import PEERS, ours, theirs
from scripts.bench.rivals import Rival, batch_of, count

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings_of_torch():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def tables(text):
    """Cells of every Markdown table, titles first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    starts = [i - 1 for i, row in enumerate(rows) if set(row) == {"---"}]
    return [[rows[a], *rows[a + 2 : b]] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]


def test_quick_sampling_has_a_row_for_every_peer_in_both_tables(capsys):
    sampling.main(quick=True)
    free, beside = tables(capsys.readouterr().out)
    for found, columns in ((free, 4), (beside, 7)):
        assert {len(row) for row in found} == {columns}
        assert [row[0] for row in found[1:]] == list(PEERS)


def test_quick_training_has_a_row_for_every_pair_and_says_where_it_ran(capsys):
    training.main(training.Options(quick=True))
    printed = capsys.readouterr().out
    (found,) = tables(printed)
    assert {len(row) for row in found} == {8}
    assert [row[0] for row in found[1:]] == list(training.QUICK)
    assert "processor time" in printed
    assert "load over" in printed


class Counting:
    """A network that returns half of what it sees, and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x_t, t, cond):
        assert t.shape == (len(x_t),)
        assert all(len(part) == len(x_t) for part in cond)
        self.calls += 1
        return x_t / 2


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_both_loops_ask_the_network_equally_often_and_go_all_the_way(peer):
    work = sampling.QUICK["tiny"].work(5, CPU)
    for loop in (ours, theirs):
        network = Counting()
        found = loop(peer, replace(work, network=network))()
        assert network.calls == peer.calls(5)
        assert found.shape == work.noise.shape
        assert found.isfinite().all()


def test_both_loops_of_the_flow_make_the_same_samples_on_one_grid():
    """On the grid of FlowMatchEulerDiscreteScheduler, which stops at 0.001 on its way to 0."""
    peer, work = PEERS["Euler, flow"], sampling.QUICK["tiny"].work(5, CPU)
    scheduler = peer.scheduler()
    scheduler.set_timesteps(5)
    work = replace(work, network=lambda x_t, t, cond: torch.tanh(x_t) + cond.tokens.mean((1, 2))[:, None, None, None])
    same = replace(peer, grid=lambda steps: scheduler.sigmas.double())
    torch.testing.assert_close(ours(same, work)(), theirs(peer, work)())


@pytest.mark.parametrize("setting", [*training.SETTINGS.values(), *training.QUICK.values()])
def test_rivals_have_the_same_size_within_two_per_cent(setting):
    with torch.device("meta"):
        pair = setting.pair(setting.side, torch.device("meta"))
    assert pair["ours"].parameters == pytest.approx(pair["theirs"].parameters, rel=0.02)


@pytest.mark.parametrize("setting", training.QUICK.values(), ids=training.QUICK)
def test_both_rivals_learn_and_heed_the_text(setting):
    batch = batch_of(2, setting.side, CPU)
    for rival in setting.pair(setting.side, CPU).values():
        step = training.step_of(rival, batch, CPU, bf16=False)
        before = [parameter.clone() for parameter in rival.network.parameters()]
        for _ in range(3):
            step()
        moved = [not torch.equal(a, b) for a, b in zip(before, rival.network.parameters(), strict=True)]
        assert sum(moved) > 0.8 * len(moved)
        other = replace(batch, cond=batch.cond._replace(tokens=-batch.cond.tokens))
        rival.network.eval()
        assert not torch.equal(rival.forward(batch), rival.forward(other))


def test_contestants_take_turns_and_making_ready_is_not_timed(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "process_time", lambda: now[0])

    def contestant(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        def ready():
            now[0] += 100.0
            return run

        return ready

    torch.set_num_threads(1)
    found = timing.alternate({"a": contestant("a", 2.0), "b": contestant("b", 1.0)}, 3, CPU)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert found == {"a": [2.0] * 3, "b": [1.0] * 3}


def test_ratios_are_taken_within_rounds():
    slow_machine = [1.0, 10.0, 100.0, 1.0, 10.0]
    assert timing.ratio([2 * s for s in slow_machine], slow_machine) == (2, 2, 2)
    assert timing.difference([s + 0.5 for s in slow_machine], slow_machine) == (0.5, 0.5, 0.5)


def test_an_interval_narrows_with_rounds_and_holds_the_median():
    values = torch.linspace(0, 1, 400).tolist()
    few, many = timing.median(values[::40]), timing.median(values)
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_the_share_outside_products_counts_products_alone():
    a = torch.randn(64, 64)
    assert training.share_outside_products(lambda: a.exp().sum()) == 1
    assert training.share_outside_products(lambda: a @ a) < 1


def test_utilisation_knows_the_peak_by_the_name_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert accelerator.utilisation(494.5e12, CPU) == "50.0%"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Unknown")
    assert accelerator.utilisation(494.5e12, CPU) == "494.5 TFLOP/s"


def test_operations_are_those_of_the_products():
    """A linear layer multiplies once forwards and once for the gradient of its weight: 2 B n m operations each."""
    layer = torch.nn.Linear(6, 10, bias=False)
    batch = batch_of(3, 2, CPU)
    x, wanted = torch.randn(5, 6), torch.randn(5, 10)
    rival = Rival(network=layer, forward=lambda batch: layer(x), parts=[])
    assert accelerator.flops_of(rival, replace(batch, target=wanted)) == 2 * (2 * 5 * 6 * 10)
    assert layer.weight.grad is None


def test_the_tables_of_a_gpu_are_made(monkeypatch):
    """With a small network on the CPU in the place of the real ones, since there may be no GPU here."""
    monkeypatch.setattr(accelerator, "BATCHES", {"B": 2})
    monkeypatch.setattr(accelerator, "TRANSFORMER_SIZES", {"B": {"dim": 32, "layers": 1, "heads": 2}})
    monkeypatch.setattr(accelerator, "ROUNDS", 2)
    monkeypatch.setattr(accelerator, "can_compile", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 2**30)
    (found,) = tables(accelerator.sizes_table(CPU))
    assert [row[1] for row in found[1:]] == ["ours", "theirs"]
    assert {len(row) for row in found} == {7}
    (found,) = tables(accelerator.attention_table(CPU, (2, 2, 16, 8)))
    assert [row[0] for row in found[1:]] == list(available())
    assert all(float(row[1]) < 0.02 for row in found[1:])  # of numbers near 1 with eight bits


def test_without_a_gpu_a_sentence_says_what_was_not_measured():
    assert "not measured here" in accelerator.accelerator_tables(CPU)


def values(cells):
    """The numbers of a table's cells, without their intervals."""
    return [float(cell.split(" [")[0]) for cell in cells if cell]


def test_quick_discrete_has_every_table_and_its_numbers_are_above_zero(capsys):
    text.main(text.Options(quick=True, tables=tuple(text.TABLES), peers=tuple(text.PEERS)))
    printed = capsys.readouterr().out
    trained, rows, draws, generated = tables(printed)
    assert [row[0] for row in trained[1:]] == list(text.PEERS)
    assert [row[0] for row in draws[1:]] == ["step", "network", "subs", "draws"]
    assert [row[0] for row in generated[1:]][0::2] == ["one after the other, 16", "ancestral, 4", "confidence, 4"]
    numbers = [value for row in trained[1:] for value in values(row[3:])]
    numbers += [value for row in [*rows[1:], *generated[1:]] for value in values(row[1:])]
    numbers += [value for row in draws[1:] for value in values(row[2:])]
    assert all(value > 0 for value in numbers)
    assert "transformers" in printed


def test_quick_autoencoders_have_every_table_with_both_kinds_on_both_sides(capsys):
    autoencoders.main(autoencoders.Options(quick=True))
    speed, sweep, quality, book = tables(capsys.readouterr().out)
    assert [row[1] for row in speed[1:]] == ["vae", "vae", "vqvae", "vqvae"]
    assert [(row[1], row[2]) for row in sweep[1:]] == list(product(("vae", "vqvae"), ("ours", "theirs")))
    assert [row[1] for row in quality[1:]] == ["vae", "vqvae"]
    assert [row[0] for row in book[1:]] == ["0", "1"]
    for row in quality[1:]:
        mine, other, difference = values(row[3:6])
        assert difference == pytest.approx(mine - other, abs=0.011)
        assert np.mean([float(part) for part in row[6].split(",")]) == pytest.approx(difference, abs=0.011)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_rows_of_cached_sampling_are_counted_as_by_hand(steps):
    options = text.settled(text.Options(quick=True))
    size, seen = options.size, []
    denoise = denoiser(text.logits_of(text.text_network(size, CPU), bf16=False), mask_id=size.vocab)

    def recorded(x_t, t):
        seen.append(x_t)
        return denoise(x_t, t)

    text.sampling(recorded, options, size, steps)()
    changed = [int((a != b).any(-1).sum()) for a, b in pairwise(seen)]
    assert len(seen) == steps
    assert text.asked(denoise, size, options, steps) == size.batch + sum(changed)
    row = text.rows_row(denoise, size, options, steps)
    assert float(row[-1]) == pytest.approx(steps * size.batch / (size.batch + sum(changed)), abs=0.01)


@pytest.mark.parametrize(("length", "steps"), [(1, 1), (1, 4), (3, 2), (4, 3)])
def test_expected_rows_are_the_mean_over_all_ways_to_reveal(length, steps):
    """Each token is revealed in a step of its own choice; after the last step nobody asks."""
    ways = list(product(range(steps), repeat=length))
    mean = sum(1 + len(set(way) - {steps - 1}) for way in ways) / len(ways)
    assert text.expected(length, steps) == pytest.approx(mean)


@pytest.mark.parametrize("peer", text.PEERS.values(), ids=text.PEERS)
def test_text_peers_have_the_same_size_within_four_per_cent_and_both_learn(peer):
    pair = {"ours": text.ours(peer.objective, text.Size(), CPU), "theirs": peer.learner(text.Size(), CPU)}
    assert count(pair["ours"].network) == pytest.approx(count(pair["theirs"].network), rel=0.04)
    for learner in (text.ours(peer.objective, text.QUICK, CPU), peer.learner(text.QUICK, CPU)):
        assert len(learner.parts) == text.QUICK.layers
        step = text.step_of(learner, CPU, bf16=False)
        before = [parameter.clone() for parameter in learner.network.parameters()]
        for _ in range(3):
            step()
        moved = [not torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True)]
        assert sum(moved) > 0.8 * len(moved)


def read_by(learner, steps):
    """The tokens that a network is given in its next losses."""
    found = []

    def note(module, positional, named):
        found.append(named["input_ids"] if "input_ids" in named else positional[0])

    with learner.network.register_forward_pre_hook(note, with_kwargs=True):
        for _ in range(steps):
            learner.loss()
    return torch.stack(found)


@pytest.mark.parametrize("peer", text.PEERS.values(), ids=text.PEERS)
def test_text_peers_read_the_same_tokens_at_every_step(peer):
    first = read_by(text.ours(peer.objective, text.QUICK, CPU), 3)
    assert torch.equal(first, read_by(peer.learner(text.QUICK, CPU), 3))
    assert (first == text.QUICK.vocab).any(-1).all()


def test_bert_predicts_the_masked_tokens_and_no_others():
    learner = text.bert(text.QUICK, CPU)
    x, _ = text.texts(text.QUICK, CPU)
    labels = []
    hook = learner.network.register_forward_pre_hook(lambda m, a, named: labels.append(named), with_kwargs=True)
    with hook:
        learner.loss()
    masked = labels[0]["input_ids"] == text.QUICK.vocab
    assert torch.equal(labels[0]["labels"] != text.IGNORED, masked)
    assert torch.equal(labels[0]["labels"][masked], x[masked])


def test_the_benchmark_runs_as_a_file_though_it_has_the_name_of_a_package():
    script = Path(text.__file__)
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--tables" in done.stdout
