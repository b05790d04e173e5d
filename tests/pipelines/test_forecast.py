"""What a recipe will take: operations against closed forms and another counter, memory against that of real steps."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.profiler import profile

from discrete.attend import causal_blocks
from discrete.text_model import TextTransformer, TextTransformerConfig
from pipelines.advice import warnings_of
from pipelines.amount import Amount
from pipelines.cli import application
from pipelines.config import load_recipe
from pipelines.cost import memory, operations, without_values
from pipelines.errors import PalimpsestError
from pipelines.forecast import outlook, plan
from pipelines.gpus import GPUS
from pipelines.outlook import Machines, at_once
from pipelines.passes import players_of, summed
from pipelines.task import Training
from tests.conftest import ROOT

TRAINING = Training(steps=1, bf16=False, batch=8)


def on_meta(build):
    with torch.device("meta"):
        return build()


def counted(network, run, **options):
    with without_values(network):
        return operations(network, run, **options)


def test_a_chain_of_maps_costs_six_operations_a_weight_and_item():
    sides = (64, 128, 256, 32)
    chain = on_meta(lambda: nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sides))))
    weights = sum(a * b for a, b in pairwise(sides))

    def run(network, items):
        return network(torch.randn(items, 64, requires_grad=True)).sum()

    assert counted(chain, run) == 6 * weights  # forward once, backward to weights and to what is read
    assert counted(chain, run, backward=False) == 2 * weights


def test_a_convolution_costs_its_window_at_every_place():
    conv = on_meta(lambda: nn.Conv2d(3, 16, 5, stride=2, padding=2, bias=False))
    windows = counted(conv, lambda network, items: network(torch.randn(items, 3, 32, 32)).sum(), backward=False)
    assert windows == 2 * 16 * 3 * 25 * 16 * 16


def test_attention_costs_what_its_two_products_do():
    """At any length, and five more products in the backward pass of a fused kernel, two of which it makes again."""
    length, dim, layers = 40, 32, 2
    config = TextTransformerConfig(dim=dim, layers=layers, heads=2)
    both = [
        counted(on_meta(lambda: TextTransformer(config, 10)), lambda network, items, at=at:
                summed(network(torch.zeros(items, at, dtype=torch.long))), backward=False)
        for at in (length, 2 * length)
    ]  # fmt: skip
    square = 2 * 2 * layers * dim * length**2  # of q k^T and of its product with v
    assert both[1] - 2 * both[0] == 2 * square  # (2 L)^2 - 2 L^2 = 2 L^2: all else grows with the length


def test_operations_are_those_that_another_counter_finds_in_a_real_pass():
    recipe = load_recipe(ROOT / "recipes" / "smoke.toml", ())
    for name in ("vae", "scene_judge"):
        (player,), (again,) = players_of(recipe, name), players_of(recipe, name)
        expected = counted(player.network, player.run, backward=False)
        real = again.network.to_empty(device="cpu")
        with torch.no_grad():
            for value in (*real.parameters(), *real.buffers()):
                value.fill_(0.01)
        with torch.no_grad(), profile(with_flops=True, record_shapes=True) as found:
            player.run(real, 2)
        assert sum(event.flops for event in found.events()) == pytest.approx(2 * expected, rel=0.05)


MEASURE = """
import sys, threading, time, torch
from latent.dit import DiT, DiTConfig
from pipelines.cost import memory, without_values
from pipelines.optimizer import optimizers_of
from pipelines.passes import _denoising
from pipelines.task import Training

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

training = Training(steps=1, bf16=False, batch=8)
build = lambda: DiT(DiTConfig(dim=128, layers=4, heads=4, checkpointing=sys.argv[1] == "checkpointing"))
run = _denoising(4, (48, 48), {"text_length": 32, "text_width": 128, "pooled_width": 128})
with torch.device("meta"):
    network = build()
with without_values(network):
    expected = memory(network, run, training, 8)
network, ended = build(), []
optimizers = optimizers_of(network, training)
peak = before = resident()

def watch():
    global peak
    while not ended:
        peak = max(peak, resident())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
run(network, 8).backward()
for optimizer in optimizers:
    optimizer.step()
ended.append(True)
thread.join()
print((peak - before) / (expected.total - expected.weights))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "checkpointing"])
def test_a_real_step_takes_the_memory_that_was_counted(how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PALIMPSEST_ATTENTION": "sdpa", "PYTHONPATH": str(ROOT)}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system at once
    done = subprocess.run([sys.executable, "-c", MEASURE, how], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1, abs=0.2)


def test_memory_is_weights_moments_averages_and_what_grows_with_the_items():
    def of(items, **changes):
        network = on_meta(lambda: nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 10)))
        with without_values(network):
            return memory(network, lambda net, n: net(torch.randn(n, 100)).sum(), replace(TRAINING, **changes), items)

    size, one, two = 4 * (100 * 50 + 50 + 50 * 10 + 10), of(1000), of(2000, ema=0.9)
    assert one.weights == size and 2 * size <= one.optimizer <= 2 * size + 64 and one.average == 0
    assert two.average == size and 1.9 < two.activations / one.activations < 2.1
    assert of(1000, accumulate=2).gradients == size  # those of the first part stand beside the second's activations


def test_a_plan_names_the_stages_that_train_and_what_each_takes():
    recipe = load_recipe(ROOT / "recipes" / "smoke.toml", ("stage.vae.training.steps=1000",))
    ticks = []
    text = plan(recipe, Machines(gpus=1, gpu="rtx4090", price=0.5), [Amount(samples=1000, bytes=10**8, shards=5)],
                lambda done, total: ticks.append(done))  # fmt: skip
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()}
    trained = [name for name, stage in recipe.stage.items() if getattr(stage, "training", None) is not None]
    assert set(trained) <= set(rows) and "encode" in rows and len(ticks) == len(recipe.stage)
    batch = recipe.stage["vae"].training.batch
    assert f"{1000 * batch:,}" in rows["vae"] and "100.0 kB in 5 shards" in text and "0.5 dollars" in text


def test_time_is_operations_over_what_the_gpus_reach_or_the_exchange_of_gradients():
    recipe = load_recipe(ROOT / "recipes" / "smoke.toml", ())
    one = outlook(recipe, "latent", Machines(gpus=1, gpu="h100", utilisation=0.5))
    training = recipe.stage["latent"].training
    peak = GPUS["h100"].bf16 if training.bf16 else GPUS["h100"].fp32
    assert one.seconds == pytest.approx(training.batch * one.operations / (0.5 * peak))
    assert one.sending == 0 and one.held == one.memory.total + 1.5e9
    many = outlook(recipe, "latent", Machines(gpus=16, gpu="h100", utilisation=0.5))
    assert many.sending == pytest.approx(2 * 15 / 16 * 4 * one.parameters / 50e9) == many.seconds  # it is tiny
    assert many.operations == one.operations and many.memory.activations < one.memory.activations
    (said,) = warnings_of(many)
    assert said.startswith("latent waits for its gradients")


def test_what_does_not_fit_is_said_with_the_parts_that_would():
    sets = ("data.size=64", "stage.vae.training.batch=65536")
    recipe = load_recipe(ROOT / "recipes" / "smoke.toml", sets)
    found = outlook(recipe, "vae", Machines(gpus=1, gpu="rtx4090"))
    assert found.held > GPUS["rtx4090"].memory
    (advice,) = warnings_of(found)
    assert advice.startswith("vae WILL NOT FIT")
    parts = int(advice.split("accumulate = ")[1].split(",")[0])
    fixed = load_recipe(ROOT / "recipes" / "smoke.toml", (*sets, f"stage.vae.training.accumulate={parts}"))
    assert outlook(fixed, "vae", Machines(gpus=1, gpu="rtx4090")).held <= 0.92 * GPUS["rtx4090"].memory


def test_a_sharded_state_is_divided_and_advised_where_it_makes_a_training_fit(monkeypatch):
    sets = ("stage.latent.model.dim=256", "stage.latent.training.batch=4")
    recipe = load_recipe(ROOT / "recipes" / "smoke.toml", sets)
    spread = load_recipe(ROOT / "recipes" / "smoke.toml", (*sets, "stage.latent.training.shard=full"))
    whole, each = (outlook(one, "latent", Machines(gpus=4)) for one in (recipe, spread))
    for name in ("weights", "optimizer", "average"):
        assert getattr(each.memory, name) == getattr(whole.memory, name) // 4
    assert each.memory.gradients == each.parameters and each.memory.gathered > 0  # 4 bytes, on 4 devices
    assert each.memory.activations < 2 * each.parameters  # without sharding all weights in bf16 lie among them
    assert whole.held - each.held > 5 * each.parameters
    room = replace(GPUS["h200"], memory=(whole.held + each.held) / 2 / 0.92)
    monkeypatch.setitem(GPUS, "h200", room)
    (advice, *_) = warnings_of(outlook(recipe, "latent", Machines(gpus=4)))
    assert advice.startswith("latent WILL NOT FIT") and 'stage.latent.training.shard = "full"' in advice
    assert outlook(spread, "latent", Machines(gpus=4)).held <= 0.92 * room.memory
    hybrid = (*sets, "stage.latent.training.shard=hybrid", "stage.latent.training.shard_over=2")
    assert outlook(load_recipe(ROOT / "recipes" / "smoke.toml", hybrid), "latent", Machines(gpus=4)).parts == 2


def test_batches_that_the_gpus_do_not_divide_are_refused_with_one_that_they_do():
    assert at_once(replace(TRAINING, batch=96, accumulate=2), 8) == 6
    with pytest.raises(ValueError, match="batch is 96, which 64 GPUs in 2 parts do not divide: try 128"):
        at_once(replace(TRAINING, batch=96, accumulate=2), 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus": 0}, "--gpus is 0, expected 1 or more"),
        ({"gpus": 8, "gpu": "h300"}, "--gpu is 'h300', expected one of a100-40"),
        ({"gpus": 8, "utilisation": 35}, "--utilisation is 35, expected a share"),
        ({"gpus": 8, "price": -1.0}, "--price is -1.0, expected 0 or more"),
    ],
)
def test_machines_that_cannot_be_are_refused(options, words):
    with pytest.raises(PalimpsestError, match=words):
        Machines(**options)


def test_the_command_plans_a_recipe(capsys):
    words = ["plan", str(ROOT / "recipes" / "wikitext2.toml"), "--gpus", "2", "--gpu", "l40s"]
    application().cli(args=words)
    shown = capsys.readouterr().out
    assert shown.startswith("wikitext2 on 2 x l40s (48.00 GB, 362 TFLOP/s") and "All trainings" in shown


def test_a_recipe_whose_sizes_only_the_data_tells_is_refused():
    recipe = load_recipe(ROOT / "recipes" / "shakespeare.toml", ())
    with pytest.raises(PalimpsestError, match="trains nothing whose size it tells by itself"):
        plan(recipe, Machines(gpus=1), [])


def test_what_was_counted_leaves_nothing_behind():
    """Masks that networks keep between passes are of the mode that they are used in."""
    recipe = load_recipe(ROOT / "recipes" / "smoke.toml", ())
    counts = {counted(player.network, player.run) for _ in range(2) for player in players_of(recipe, "ar")}
    assert len(counts) == 1 and type(causal_blocks(4, 1)) is torch.Tensor
    (player,) = players_of(recipe, "ar")
    assert type(player.run(player.network.to_empty(device="cpu"), 1)) is torch.Tensor
