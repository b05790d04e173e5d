"""What models over text cost: training beside BERT, GPT-2 and LLaMA of transformers, sampling, and its exact draws.

    python scripts/bench/discrete.py                      the first three tables, minutes on one CPU core
    python scripts/bench/discrete.py --quick              seconds, to see that everything runs
    python scripts/bench/discrete.py --tables training --peers bert bert-relu2 gpt2 llama
    python scripts/bench/discrete.py --tables generation --device cuda --size.batch 64

training     tokens per second of a step; both sides of a row take turns, so what slows the machine cancels in the ratio
rows         how often `cached` asks the network, against `ancestral`, which asks about every sequence at every step
draws        where the time of a step of `ancestral` goes: network, `subs`, and the draws in float64
generation   tokens per second: one after the other with remembered keys, against masked samplers
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Literal, NamedTuple

if not __package__:
    sys.path.pop(0)  # the folder of this script, where its own name would hide the package it measures

import torch
import transformers
import tyro
from torch import Tensor, nn

from backbone.cure import cure_torchvision
from discrete.autoregressive import continue_text
from discrete.corrupt import draw_count, mask_exact_count
from discrete.objective import Autoregressive, Masked, Objective
from discrete.predict import Denoise, Logits, denoiser, subs
from discrete.sample import Remember, ancestral, confidence
from discrete.schedule import Linear
from discrete.text_model import TextTransformer, TextTransformerConfig
from latent.grid import uniform
from pipelines.hardware import autocast, can_compile, seeded
from pipelines.task import blocks_of
from scripts.bench.rivals import count
from scripts.bench.timing import Contestant, Times, alternate, always, machine, median, ratio, shown
from scripts.markdown import table

cure_torchvision()  # transformers imports it for its networks

Table = Literal["training", "rows", "draws", "generation"]
PeerName = Literal["bert", "bert-relu2", "gpt2", "llama"]
IGNORED = -100  # label of a token that transformers is not to predict


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the networks, and of what they read.

    Args:
        batch: texts.
        length: tokens of a text.
        vocab: tokens besides the mask.
        dim: width.
        layers: blocks.
        heads: of attention.
    """

    batch: int = 16
    length: int = 256
    vocab: int = 4096
    dim: int = 256
    layers: int = 4
    heads: int = 4


QUICK = Size(batch=2, length=16, vocab=32, dim=32, layers=1, heads=2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how.

    Args:
        quick: a tiny network, few steps and rounds, nothing compiled; --size and the numbers of steps are not heeded.
        tables: what to measure.
        peers: what a training step meets; bert-relu2 is BERT with the activation that ours has.
        threads: threads of torch.
        device: cpu, or cuda.
        rounds: how often a training step is timed, at least 2; all of a sampling a fifth as often.
        compiled: also with every block compiled, where that can be done.
        bf16: autocast where the device multiplies bf16, as our loop does; --no-bf16 for float32.
        counted_steps: steps of the sampling whose rows are counted.
        timed_steps: steps of the samplings of table `rows` that are timed as well.
        drawn_steps: steps of the sampling whose parts are timed.
        generated_steps: steps of the masked samplers in table `generation`.
    """

    quick: bool = False
    tables: tuple[Table, ...] = ("training", "rows", "draws")
    peers: tuple[PeerName, ...] = ("bert",)
    threads: int = 1
    device: str = "cpu"
    rounds: int = 15
    compiled: bool = True
    bf16: bool = True
    counted_steps: int = 1000
    timed_steps: int = 256
    drawn_steps: int = 64
    generated_steps: tuple[int, ...] = (4, 16, 64)
    size: Size = field(default_factory=Size)

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise ValueError(f"--rounds is {self.rounds}, expected 2 or more: an interval needs them")

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def slow_rounds(self) -> int:
        """How often what takes long is timed."""
        return max(2, self.rounds // 5)


def settled(options: Options) -> Options:
    """The same, or what stands for it with --quick."""
    steps = {"counted_steps": 20, "timed_steps": 6, "drawn_steps": 4, "generated_steps": (2, 4)}
    return replace(options, size=QUICK, rounds=2, compiled=False, **steps) if options.quick else options


def main(options: Options) -> None:
    """Print the tables."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options = settled(options)
    precision = "bf16 autocast where the device has it" if options.bf16 else "float32"
    print(f"\n{options.size}, {precision}")
    for name in options.tables:
        print(f"\n{TABLES[name](options)}", flush=True)
    print(f"\n{machine(options.place)} transformers {version('transformers')}.")


# Networks and what they learn.


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A network, the loss of its next step, and its repeated parts, to be compiled."""

    network: nn.Module
    loss: Callable[[], Tensor]
    parts: Sequence[nn.Module]


def text_network(size: Size, device: torch.device) -> TextTransformer:
    """Ours, as it is before training."""
    config = TextTransformerConfig(dim=size.dim, layers=size.layers, heads=size.heads)
    return seeded(0, lambda: TextTransformer(config, size.vocab)).to(device)


def texts(size: Size, device: torch.device) -> tuple[Tensor, torch.Generator]:
    """Random tokens (B, L), and the generator of the maskings, the same on every call."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randint(size.vocab, (size.batch, size.length), generator=generator, device=device), generator


def ours(objective: Objective, size: Size, device: torch.device) -> Learner:
    """Our network with an objective of ours."""
    network, (x, generator) = text_network(size, device), texts(size, device)
    return Learner(network=network, loss=lambda: objective.loss(network, x, generator), parts=blocks_of(network))


def bert(size: Size, device: torch.device, activation: str = "gelu") -> Learner:
    """Mean cross-entropy at the masked positions, which are those that `ours` masks in the same step."""
    config = transformers.BertConfig(
        vocab_size=size.vocab + 1, hidden_size=size.dim, num_hidden_layers=size.layers, num_attention_heads=size.heads,
        intermediate_size=4 * size.dim, max_position_embeddings=size.length, hidden_act=activation,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    network, (x, generator) = seeded(0, lambda: transformers.BertForMaskedLM(config)).to(device), texts(size, device)

    def loss() -> Tensor:
        masks = draw_count(torch.full((len(x),), x.shape[1], device=device), generator, even=True)
        x_t = mask_exact_count(x, masks, mask_id=size.vocab, generator=generator)
        return network(input_ids=x_t, labels=torch.where(x_t == size.vocab, x, IGNORED)).loss

    return Learner(network=network, loss=loss, parts=list(network.bert.encoder.layer))


def gpt2(size: Size, device: torch.device) -> Learner:
    """Learned positions, LayerNorm, a feed-forward network of two matrices as ours."""
    config = transformers.GPT2Config(
        vocab_size=size.vocab + 1, n_embd=size.dim, n_layer=size.layers, n_head=size.heads, n_positions=size.length,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    network = seeded(0, lambda: transformers.GPT2LMHeadModel(config)).to(device)
    return _next_token(network, list(network.transformer.h), size, device)


def llama(size: Size, device: torch.device) -> Learner:
    """Rotary positions and RMSNorm as ours; its feed-forward network has three matrices, of two thirds the width."""
    config = transformers.LlamaConfig(
        vocab_size=size.vocab + 1, hidden_size=size.dim, num_hidden_layers=size.layers, num_attention_heads=size.heads,
        intermediate_size=round(8 * size.dim / 3), max_position_embeddings=size.length, tie_word_embeddings=True,
        use_cache=False, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    network = seeded(0, lambda: transformers.LlamaForCausalLM(config)).to(device)
    return _next_token(network, list(network.model.layers), size, device)


def _next_token(network: nn.Module, parts: list[nn.Module], size: Size, device: torch.device) -> Learner:
    """It reads as many tokens as ours; as it shifts them itself, the last one of each text has nothing to predict."""
    x, _ = texts(size, device)

    def loss() -> Tensor:
        read = x.roll(1, 1).index_fill(1, torch.zeros(1, dtype=torch.int64, device=device), size.vocab)
        return network(input_ids=read, labels=read).loss

    return Learner(network=network, loss=loss, parts=parts)


class Peer(NamedTuple):
    """What ours learns, and the network of transformers that learns the same."""

    objective: Objective
    learner: Callable[[Size, torch.device], Learner]


PEERS: Mapping[PeerName, Peer] = {
    "bert": Peer(Masked(), bert),
    "bert-relu2": Peer(Masked(), partial(bert, activation="relu2")),
    "gpt2": Peer(Autoregressive(), gpt2),
    "llama": Peer(Autoregressive(), llama),
}


# Training.


def step_of(learner: Learner, device: torch.device, *, bf16: bool, compiled: bool = False) -> Callable[[], None]:
    """One step of `pipelines.loop.Loop`, without its accelerator, averages and records."""
    parameters = list(learner.network.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    for part in learner.parts if compiled else []:
        part.compile(dynamic=False)

    def step() -> None:
        with autocast(device, bf16):
            loss = learner.loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def training_table(options: Options) -> str:
    """A row for each peer and each pair of modes."""
    rows = [row for name in options.peers for row in training_rows(name, options)]
    columns = ["peer", "ours and theirs", "parameters", "ours, tokens/s", "theirs, tokens/s", "ours / theirs, tokens/s"]
    return f"Training: above 1 ours is faster\n\n{table(columns, rows)}"


def training_rows(name: PeerName, options: Options) -> Iterator[list[str]]:
    """Both eager, ours compiled, both compiled: all in one run."""
    modes = ("eager", "compiled") if options.compiled and can_compile() else ("eager",)
    peer, device, size = PEERS[name], options.place, options.size
    learners = {
        (side, mode): make(size, device)
        for mode in modes
        for side, make in {"ours": partial(ours, peer.objective), "theirs": peer.learner}.items()
    }
    steps = {
        f"{side} {mode}": step_of(learner, device, bf16=options.bf16, compiled=mode == "compiled")
        for (side, mode), learner in learners.items()
    }
    for step in steps.values():
        step()  # compiles; the warm-up of `alternate` finds the state of AdamW
    took = alternate({key: always(step) for key, step in steps.items()}, options.rounds, device)
    sizes = " / ".join(f"{count(learners[side, 'eager'].network):,}" for side in ("ours", "theirs"))
    pairs = [("eager", "eager"), ("compiled", "eager"), ("compiled", "compiled")]
    for mine, other in [pair for pair in pairs if set(pair) <= set(modes)]:
        first, second = took[f"ours {mine}"], took[f"theirs {other}"]
        speeds = [per_second(size, first), per_second(size, second), shown(ratio(second, first))]
        yield [name, f"{mine}, {other}", sizes, *speeds]


def per_second(size: Size, seconds: Sequence[float]) -> str:
    """A table's cell: tokens per second."""
    return shown(median([size.batch * size.length / took for took in seconds]), 0)


# Sampling.


def logits_of(network: TextTransformer, bf16: bool) -> Logits:
    """The network as samplers take it."""

    def logits(x_t: Tensor, t: Tensor) -> Tensor:
        with autocast(x_t.device, bf16):
            return network.logits(x_t, t)

    return logits


def sampling(denoise: Denoise, options: Options, size: Size, steps: int) -> Callable[[], Tensor]:
    """`ancestral` from masks alone on an even grid; the first run is the same for every denoiser of one law."""
    generator = torch.Generator(options.place).manual_seed(0)
    x = torch.full((size.batch, size.length), size.vocab, device=options.place)
    return partial(ancestral, denoise, Linear(), x, uniform(steps), mask_id=size.vocab, generator=generator)


def rows_table(options: Options) -> str:
    """Rows of a small network, on which the rows do not depend: their number is that of the steps that reveal."""
    size = replace(options.size, vocab=min(options.size.vocab, 256), dim=64, layers=2, heads=2)
    denoise = denoiser(logits_of(text_network(size, options.place).eval(), options.bf16), mask_id=size.vocab)
    rows = [rows_row(denoise, size, options, steps) for steps in (options.timed_steps, options.counted_steps)]
    rows[0] += time_cells(denoise, size, options)
    rows[1] += [""] * 3
    counts = ["rows per sequence: ancestral", "cached", "cached, expected", "ancestral / cached"]
    times = ["ancestral, s", "cached, s", "ancestral / cached, time"]
    title = f"Cached sampling, {size.batch} texts of {size.length} tokens, a network {size.dim} wide"
    return f"{title}\n\n{table(['steps', *counts, *times], rows)}"


def rows_row(denoise: Denoise, size: Size, options: Options, steps: int) -> list[str]:
    """Rows per sequence at a number of steps."""
    cached = asked(denoise, size, options, steps) / size.batch
    return [str(steps), str(steps), f"{cached:.1f}", f"{expected(size.length, steps):.1f}", f"{steps / cached:.2f}"]


def asked(denoise: Denoise, size: Size, options: Options, steps: int) -> int:
    """Rows that the network of `cached` is asked about."""
    remembered = Remember(denoise)
    sampling(remembered, options, size, steps)()
    return remembered.rows


def expected(length: int, steps: int) -> float:
    """Mean rows per sequence on the linear schedule: the first call, and one after each step but the last that reveals.

    1 + (N - 1) (1 - (1 - 1 / N)^L)
    """
    return 1 + (steps - 1) * (1 - (1 - 1 / steps) ** length)


def time_cells(denoise: Denoise, size: Size, options: Options) -> list[str]:
    """Seconds of both, and their ratio."""
    contestants: dict[str, Contestant] = {
        "ancestral": lambda: sampling(denoise, options, size, options.timed_steps),
        "cached": lambda: sampling(Remember(denoise), options, size, options.timed_steps),
    }
    took = alternate(contestants, options.slow_rounds, options.place)
    return [*(shown(median(seconds), 3) for seconds in took.values()), shown(ratio(took["ancestral"], took["cached"]))]


def draws_table(options: Options) -> str:
    """Milliseconds of the parts of a step, and their shares."""
    took, steps = times_of_parts(options), options.drawn_steps
    rows = [
        [name, shown(median(seconds), 1, 1e3 / steps), shown(ratio(seconds, took["step"]), 1, 100)]
        for name, seconds in took.items()
    ]
    title = f"A step of `ancestral` of {steps}, {options.size.vocab} tokens"
    return f"{title}\n\n{table(['part', 'ms per step', 'share, %'], rows)}"


def times_of_parts(options: Options) -> Times:
    """Seconds of a sampling and of its parts, which add up to it.

    The draws are a sampling whose denoiser has its answer at hand: uniform numbers, picking and inverting the
    revealed rows, and the loop. `subs` reads the states of one sampling.
    """
    size, steps = options.size, options.drawn_steps
    logits = logits_of(text_network(size, options.place).eval(), options.bf16)
    path: list[Tensor] = []

    def recorded(x_t: Tensor, t: Tensor) -> Tensor:
        path.append(x_t)
        return at_hand

    with torch.no_grad():
        masks = torch.full((size.batch, size.length), size.vocab, device=options.place)
        raw = logits(masks, torch.ones((), device=options.place))
        at_hand = subs(raw, masks, size.vocab)
    sampling(recorded, options, size, steps)()
    contestants: dict[str, Contestant] = {
        "step": lambda: sampling(denoiser(logits, mask_id=size.vocab), options, size, steps),
        "subs": always(lambda: [subs(raw, x_t, size.vocab) for x_t in path]),
        "draws": lambda: sampling(lambda x_t, t: at_hand, options, size, steps),
    }
    took = alternate(contestants, options.slow_rounds, options.place)
    rest = [whole - one - other for whole, one, other in zip(*took.values(), strict=True)]
    return {"step": took["step"], "network": rest, "subs": took["subs"], "draws": took["draws"]}


def generation_table(options: Options) -> str:
    """One token after the other, and samplers that make all in so many calls of the network."""
    size = options.size
    took = alternate(generators_of_text(options), options.slow_rounds, options.place)
    base = next(iter(took.values()))
    rows = [[name, per_second(size, seconds), shown(ratio(base, seconds))] for name, seconds in took.items()]
    columns = ["sampler, calls of the network", "tokens/s", "against one after the other"]
    return f"Generation, {size.batch} texts of {size.length} tokens\n\n{table(columns, rows)}"


def generators_of_text(options: Options) -> Mapping[str, Contestant]:
    """Makers of texts (B, L)."""
    size, device = options.size, options.place
    network = text_network(size, device).eval()
    denoise = denoiser(logits_of(network, options.bf16), mask_id=network.mask_id)
    _, generator = texts(size, device)
    nothing = torch.empty(size.batch, 0, dtype=torch.int64, device=device)
    masks = torch.full((size.batch, size.length), network.mask_id, device=device)

    def one_by_one() -> Tensor:
        with autocast(device, options.bf16):
            return continue_text(network, nothing, size.length, generator=generator)

    contestants: dict[str, Contestant] = {f"one after the other, {size.length}": always(one_by_one)}
    for name, sampler in {"ancestral": ancestral, "confidence": confidence}.items():
        for steps in options.generated_steps:
            settings = {"mask_id": network.mask_id, "generator": generator}
            run = partial(sampler, denoise, Linear(), masks, uniform(steps), **settings)
            contestants[f"{name}, {steps}"] = always(run)
    return contestants


TABLES: Mapping[Table, Callable[[Options], str]] = {
    "training": training_table,
    "rows": rows_table,
    "draws": draws_table,
    "generation": generation_table,
}


if __name__ == "__main__":
    main(tyro.cli(Options))
