"""What the loop does for codebooks: rows moved by hand, statistics of a step, and steps that are taken back."""

import math

import pytest
import torch
from torch import Tensor

from backbone.folded import FoldedConfig
from pipelines.hardware import seeded, step_generator
from pipelines.loop import Interrupted, Loop
from pipelines.task import Task, Training
from tokenizer.loss import vqvae_loss
from tokenizer.quantize import QuantizerConfig, ResidualConfig, ResidualVQ, VQConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

START, REVIVAL, STEPS = 3, 7, 10
CONFIGS: list[QuantizerConfig] = [
    VQConfig(codes=8, dim=4),
    VQConfig(codes=8, dim=4, learn="gradient"),
    ResidualConfig(depth=2, level=VQConfig(codes=8, dim=4, learn="gradient")),
]
each = pytest.mark.parametrize("config", CONFIGS, ids=["ema", "gradient", "residual"])
learned = pytest.mark.parametrize("config", CONFIGS[1:], ids=["gradient", "residual"])
TRAINING = Training(steps=STEPS, batch=4, learning_rate=1e-2, ema=0.9, bf16=False, compile=False)


class Codes(Task):
    """A VQ-VAE whose codes start at one step; at another, the first three of each codebook die and are revived."""

    def __init__(self, config: QuantizerConfig, stop_at: int | None = None, bad_at: int | None = None) -> None:
        network = FoldedConfig(channels=16, encoder_blocks=0, decoder_blocks=0)
        self.network = seeded(0, lambda: VQVAE(VQVAEConfig(network=network, quantizer=config)))
        self.stop_at, self.bad_at, self.quantise = stop_at, bad_at, False
        self.loop: Loop | None = None
        self.seen: dict[int, list[tuple[Tensor, Tensor, list[Tensor]]]] = {}
        self.pending: list[float] = []

    def books(self, network) -> list:
        quantizer = network.quantizer
        return list(quantizer.levels) if isinstance(quantizer, ResidualVQ) else [quantizer]

    def images(self, step):
        return torch.rand(4, 3, 16, 16, generator=step_generator(7, 0, step)) * 2 - 1

    def batches(self, cursor, rank, world):
        while True:
            yield {"image": self.images(cursor), "cursor": cursor}, cursor + 1
            cursor += 1

    def before(self, step, first, steps, generator, read):
        self.quantise = step >= START
        if step == START:
            return self.network.quantizer.initialise(self.network.vectors(self.images(99)), generator)
        if step == REVIVAL:
            for book in self.books(self.network):
                book.cluster_size[:3] = 0
            return self.network.quantizer.revive(self.network.vectors(self.images(99)), generator)
        return ()

    def loss(self, network, batch, generator):
        step = batch["cursor"]
        self.loop.stop = self.loop.stop or step == self.stop_at
        self.seen[step] = self.look()
        x = batch["image"]
        x_hat, found = network(x, quantise=self.quantise)
        if found is None:
            return (x_hat - x).square().mean(), {}
        loss = vqvae_loss(x_hat, x, found.own, found.commitment, kind="l2", beta=0.25).total
        return (loss * math.nan if step == self.bad_at else loss), {}

    def after(self, step):
        if self.quantise:
            self.pending.append(sum(float(book.pending[:, 0].sum()) for book in self.books(self.network)))
            self.network.quantizer.settle()

    def look(self) -> list[tuple[Tensor, Tensor, list[Tensor]]]:
        """Each codebook, its average, and the optimiser's moments of it."""
        (optimizer,), average = self.loop.state.optimizers, self.loop.state.average
        found = []
        for book, other in zip(self.books(self.network), self.books(average), strict=True):
            state = optimizer.state.get(book.codebook, {})
            moments = [state[name].clone() for name in ("exp_avg", "exp_avg_sq") if state]
            found.append((book.codebook.detach().clone(), other.codebook.detach().clone(), moments))
        return found


def run(task, folder):
    task.loop = Loop(task, TRAINING, folder, seed=3, name="codes")
    return task.loop.run()


@learned
def test_rows_moved_by_hand_are_moved_in_the_average_and_have_no_moments(tmp_path, config):
    task = Codes(config)
    run(task, tmp_path)
    for codebook, average, moments in task.seen[START]:
        assert torch.equal(codebook, average) and all(not moment.any() for moment in moments)
    for codebook, average, moments in task.seen[REVIVAL]:
        apart = (codebook != average).any(1)
        assert apart.tolist() == [False] * 3 + [True] * 5
        assert [moment.any(1).tolist() for moment in moments] == [[False] * 3 + [True] * 5] * 2


@each
def test_each_step_settles_once_and_before_buffers_are_copied_to_the_average(tmp_path, config):
    task = Codes(config)
    run(task, tmp_path)
    assert task.pending == [64.0 * len(task.books(task.network))] * (STEPS - START)  # 16 vectors of each picture
    for codebook, average, _ in task.look():
        assert torch.equal(codebook, average) == (config == CONFIGS[0])  # a parameter's average lags behind


@each
def test_a_skipped_step_leaves_nothing_pending(tmp_path, config):
    task, states = Codes(config, bad_at=5), {}
    take = task.before

    def before(step, *rest):
        states[step] = {name: value.clone() for name, value in task.network.quantizer.state_dict().items()}
        assert all(not book.pending.any() for book in task.books(task.network))
        return take(step, *rest)

    task.before = before
    assert run(task, tmp_path)["skipped_steps"] == 1
    assert all(torch.equal(value, states[6][name]) for name, value in states[5].items())
    assert any(not torch.equal(value, states[5][name]) for name, value in states[4].items())


@each
@pytest.mark.parametrize("stop_at", [START - 1, REVIVAL - 1, REVIVAL])
def test_a_run_interrupted_around_a_start_or_a_revival_equals_the_uninterrupted_one(tmp_path, config, stop_at):
    run(Codes(config), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(Codes(config, stop_at=stop_at), tmp_path / "parts")
    run(Codes(config), tmp_path / "parts")
    for name in ("model.safetensors", "ema.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
