"""How much the estimates of a text model's bound vary, by estimator: the table of docs/discrete.md.

    python scripts/estimators.py runs/shakespeare mdlm

Each round takes the same held-out windows under other masks: what varies is the estimator alone. Printed is the
standard deviation of a batch's mean in nats per token, and what one pass of an estimator is worth in passes of the
first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from discrete.corrupt import draw_count, mask_exact_count, mask_tokens
from discrete.loss import asked_cross_entropy, exact_count_weight, sample_times
from discrete.objective import Masked
from discrete.schedule import Cosine, Linear, Polynomial, Schedule
from discrete.text_model import TextTransformer
from pipelines.hardware import device_of, step_generator
from pipelines.progress import meter
from pipelines.runs import reopen_run
from pipelines.text.corpus import Corpus
from pipelines.text.sampler import TextSampler

Estimate = Callable[[TextTransformer, Tensor, torch.Generator], Tensor]
"""(network, x (B, L), generator) -> nats (B,)."""


def by_times(kind: str, schedule: Schedule) -> Estimate:
    """A time for each text, and a coin for each token."""

    def estimate(network: TextTransformer, x: Tensor, generator: torch.Generator) -> Tensor:
        t = sample_times(kind, len(x), generator).to(x.device)  # type: ignore[arg-type]
        x_t = mask_tokens(schedule, x, t, mask_id=network.mask_id, generator=generator)
        weight = torch.where(x_t == network.mask_id, schedule.weight(t)[:, None], 0)
        return asked_cross_entropy(network(x_t, t.float(), asked=weight > 0), x, weight)

    return estimate


def by_counts(even: bool) -> Estimate:
    """An exact number of masks for each text."""

    def estimate(network: TextTransformer, x: Tensor, generator: torch.Generator) -> Tensor:
        count = draw_count(torch.full((len(x),), x.shape[1], device=x.device), generator, even=even)
        x_t = mask_exact_count(x, count, mask_id=network.mask_id, generator=generator)
        masked = x_t == network.mask_id
        weight = masked * exact_count_weight(masked)[:, None]
        return asked_cross_entropy(network(x_t, count / x.shape[1], asked=masked), x, weight)

    return estimate


def in_strata(draws: int) -> Estimate:
    """Several draws of each text, one from each stratum of the counts; they cost as many passes."""
    return lambda network, x, generator: Masked().nats(network, x, draws, generator)


def both_ways(network: TextTransformer, x: Tensor, generator: torch.Generator) -> Tensor:
    """Two maskings of each text that share its tokens between them, as in training."""
    return Masked(copies=2).loss(network, x, generator)[None] * x.shape[1]


ESTIMATORS: dict[str, tuple[int, Estimate]] = {
    "independent times, linear": (1, by_times("independent", Linear())),
    "independent times, cosine": (1, by_times("independent", Cosine())),
    "independent times, 1 - t^2": (1, by_times("independent", Polynomial(power=2))),
    "stratified times, linear": (1, by_times("stratified", Linear())),
    "exact count": (1, by_counts(False)),
    "exact count, spread over the batch": (1, by_counts(True)),
    "exact count, spread, two that share the tokens": (2, both_ways),
    "exact count, 4 strata of each text": (4, in_strata(4)),
    "exact count, 16 strata of each text": (16, in_strata(16)),
}


@torch.no_grad()
def rows(sampler: TextSampler, x: Tensor, rounds: int) -> Iterator[tuple[str, int, float, float]]:
    """Name, passes, mean and standard deviation over rounds of a batch's mean, in nats per token."""
    for name, (passes, estimate) in ESTIMATORS.items():
        means = []
        with meter(name, rounds) as shown:
            for i in range(rounds):
                means.append(float(estimate(sampler.network, x, step_generator(0, 0, i)).double().mean()) / x.shape[1])
                shown.advance(1)
        found = torch.tensor(means, dtype=torch.float64)
        yield name, passes, found.mean().item(), found.std().item()


def main(run: Annotated[Path, tyro.conf.Positional], model: Annotated[str, tyro.conf.Positional],
         batch: int = 64, rounds: int = 40) -> None:  # fmt: skip
    """Print the table.

    Args:
        run: folder of a finished run on text.
        model: a masked text model of it.
        batch: windows of the held-out text, the same in all rounds.
        rounds: of each estimator.
    """
    opened = reopen_run(run)
    sampler, corpus = TextSampler.load(opened, model), Corpus.load(opened, model)
    ids, size = corpus.splits["test"].ids, batch * sampler.length
    if len(ids) < size:
        raise SystemExit(
            f"the held-out text has {len(ids)} tokens, {batch} windows need {size}: give a smaller --batch"
        )
    x = ids[:size].long().view(batch, sampler.length).to(device_of(sampler.network))
    base = None
    print(
        "| estimator | passes a text | mean | standard deviation | worth of one pass |\n| --- | --- | --- | --- | --- |"
    )
    for name, passes, mean, deviation in rows(sampler, x, rounds):
        base = base or deviation
        print(f"| {name} | {passes} | {mean:.4f} | {deviation:.4f} | {(base / deviation) ** 2 / passes:.1f} |")


if __name__ == "__main__":
    tyro.cli(main)
