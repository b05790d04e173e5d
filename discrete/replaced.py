"""Objectives beside the masked ones: uniform states in continuous time, and D3PM, absorbing or uniform, in steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from discrete import d3pm
from discrete.corrupt import draw_count, mean_over_strata
from discrete.loss import sample_times
from discrete.objective import Objective
from discrete.predict import Denoise
from discrete.schedule import AnySchedule, Linear
from discrete.text_model import TextNetwork
from discrete.uniform import observe, replace_tokens, uniform_nelbo

LARGEST = 2**32  # bytes of the tables of a chain


@dataclass(frozen=True, kw_only=True)
class Uniform(Objective):
    """Uniform-state diffusion in continuous time (UDLM, arXiv:2412.10193); give the network `time = true`."""

    kind: Literal["uniform"] = "uniform"
    schedule: AnySchedule = field(default_factory=Linear)

    def loss(self, network: TextNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
        """One stratified time for each text."""
        t = sample_times("stratified", len(x), generator).to(x.device)
        return self._cost(network, x, t, generator).mean().float() / x.shape[1]

    def nats(self, network: TextNetwork, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """The bound, one time from each stratum of (0, 1]."""

        def cost(u: Tensor) -> Tensor:
            return self._cost(network, x, 1 - u, generator)

        return mean_over_strata(cost, len(x), draws, generator, x.device)

    def denoise(self, network: TextNetwork) -> Denoise:
        """Return what `discrete.uniform.uniform_ancestral` takes."""
        return lambda x_t, t: observe(self.schedule, network(x_t, t.float()), x_t, t, vocab=network.vocab)

    def _cost(self, network: TextNetwork, x: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        x_t = replace_tokens(self.schedule, x, t, vocab=network.vocab, generator=generator)
        log_probs = observe(self.schedule, network(x_t, t.float()), x_t, t, vocab=network.vocab)
        return uniform_nelbo(self.schedule, log_probs, x, x_t, t, vocab=network.vocab)


@dataclass(frozen=True, kw_only=True)
class D3PM(Objective):
    """Diffusion in `steps` discrete steps (arXiv:2107.03006), of small vocabularies: the tables are V x V x steps."""

    kind: Literal["d3pm"] = "d3pm"
    transition: Literal["absorbing", "uniform"] = "absorbing"
    steps: int = 100
    schedule: AnySchedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a chain of {self.steps} steps, expected at least 1, such as 100")

    def chain(self, vocab: int, device: torch.device) -> d3pm.Chain:
        """Return the tables, made once for each device. Raises ValueError where they are too large."""
        size = 8 * (vocab + 1) ** 2 * (2 * self.steps + 1)
        if size > LARGEST:
            raise ValueError(
                f"the tables of {self.steps} steps over {vocab:,} tokens hold {size / 2**30:.1f} GiB, at most "
                f"{LARGEST / 2**30:.0f} are made: take fewer steps or a smaller vocabulary, or the objective 'masked' "
                "or 'uniform', which need no tables"
            )
        return _chain(self, vocab, device)

    def loss(self, network: TextNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
        """One step for each text, spread over all steps."""
        i = draw_count(torch.full((len(x),), self.steps, device=x.device), generator, even=True)
        return self._cost(network, x, i, generator).mean().float() / x.shape[1]

    def nats(self, network: TextNetwork, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """The bound, one step from each stratum of the steps."""

        def cost(u: Tensor) -> Tensor:
            return self._cost(network, x, (u * self.steps).long() + 1, generator)

        return mean_over_strata(cost, len(x), draws, generator, x.device)

    def denoise(self, network: TextNetwork) -> Denoise:
        """Return what `discrete.d3pm.sample_chain` takes: log p(x | x_t) (B, L, vocab)."""
        if self.transition == "absorbing":
            return lambda x_t, t: network(x_t, t.float()).double().log_softmax(-1)
        return lambda x_t, t: observe(self.schedule, network(x_t, t.float()), x_t, t, vocab=network.vocab)

    def _cost(self, network: TextNetwork, x: Tensor, i: Tensor, generator: torch.Generator) -> Tensor:
        chain = self.chain(network.vocab, x.device)
        x_t = chain.corrupt(x, i, generator=generator)
        return d3pm.bound(chain, self.denoise(network)(x_t, i.double() / self.steps), x, x_t, i)


@lru_cache(maxsize=4)
def _chain(objective: D3PM, vocab: int, device: torch.device) -> d3pm.Chain:
    make = d3pm.absorbing if objective.transition == "absorbing" else d3pm.uniform
    return make(objective.schedule, objective.steps, vocab).to(device)
