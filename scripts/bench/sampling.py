"""What a sampler costs beside its network, against the schedulers of diffusers.

    python scripts/bench/sampling.py            11 minutes on one CPU core
    python scripts/bench/sampling.py --quick    seconds, to see that everything runs

Two tables. The first times both loops around a network that returns a constant at once, so that what it shows is the
overhead itself. The second times them around real networks and subtracts the bare calls: it shows that the first table
tells the truth, and how little is left of it beside a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import tyro

from latent.condition import Condition
from latent.dit import DiT, DiTConfig
from scripts.bench.peers import PEERS, Peer, Work, bare, ours, theirs
from scripts.bench.timing import Bounds, Contestant, alternate, difference, machine, median, ratio, shown
from scripts.markdown import table

MICRO = 1e6


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and what it samples: batch x 4 x side x side, twice the batch in the network, for guidance."""

    config: DiTConfig
    side: int
    batch: int
    peers: Sequence[str] = tuple(PEERS)

    def work(self, steps: int, device: torch.device) -> Work:
        """Noise, conditions and the network in evaluation mode; global random state stays as it was."""
        config = self.config
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = DiT(config).to(device).eval().requires_grad_(False)
            noise = torch.randn(self.batch, config.channels, self.side, self.side, device=device)
            tokens = torch.randn(self.batch, config.text_length, config.text_width, device=device)
        cond = Condition(tokens, tokens[..., 0] < 9, torch.zeros(self.batch, config.pooled_width, device=device))
        generator = torch.Generator(device).manual_seed(0)
        null = network.null_condition(self.batch)
        return Work(network=network, cond=cond, null=null, noise=noise, steps=steps, generator=generator)


SETTINGS: Mapping[str, Setting] = {
    "DiT 128 wide, 8 x 8 x 4, batch 50": Setting(config=DiTConfig(dim=128, layers=6), side=8, batch=50),
    "DiT 256 wide, 8 x 8 x 4, batch 50": Setting(
        config=DiTConfig(dim=256, layers=6), side=8, batch=50, peers=("Euler, flow", "UniPC")
    ),
    "DiT-S/2, 32 x 32 x 4, batch 2": Setting(
        config=DiTConfig(size="S", cond_dim=384), side=32, batch=2, peers=("Euler, flow", "UniPC")
    ),
}
QUICK: Mapping[str, Setting] = {
    "tiny": Setting(config=DiTConfig(dim=32, layers=1, heads=2, refiner_layers=0), side=4, batch=2)
}


def main(quick: bool = False, threads: int = 1, device: str = "cpu", rounds: int = 0) -> None:
    """Print both tables.

    Args:
        quick: a tiny network, few rounds.
        threads: threads of torch.
        device: cpu, or cuda.
        rounds: how often each loop is timed around a real network; 0 is 15, or 2 with --quick.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    place = torch.device(device)
    settings = QUICK if quick else SETTINGS
    rounds = rounds or (2 if quick else 15)
    for name, setting in settings.items():
        print(f"\nOverhead alone: {name}\n\n{free_table(setting, rounds if quick else 8 * rounds, place)}", flush=True)
    for name, setting in settings.items():
        print(f"\nBeside the network: {name}\n\n{network_table(setting, 2 if quick else 4, rounds, place)}", flush=True)
    print(f"\n{machine(place)}")


def free_table(setting: Setting, rounds: int, device: torch.device, steps: int = 20) -> str:
    """Microseconds per call of the network, which here returns what it has at hand."""
    work = setting.work(steps, device)
    output = torch.randn_like(work.seen)
    work = replace(work, network=lambda x_t, t, cond: output)
    rows = []
    for name, peer in PEERS.items():
        took = alternate(loops(peer, work), rounds, device)
        scale = MICRO / peer.calls(steps)
        mine, other = (shown(median(took[side]), 0, scale) for side in ("ours", "theirs"))
        rows.append([name, mine, other, shown(ratio(took["ours"], took["theirs"]))])
    return table(["sampler", "ours, us per call", "diffusers, us per call", "ours / diffusers"], rows)


def network_table(setting: Setting, steps: int, rounds: int, device: torch.device) -> str:
    """Milliseconds of a bare call, and what either loop adds to it, in per cent."""
    work = setting.work(steps, device)
    rows = []
    for name in setting.peers:
        peer = PEERS[name]
        calls = peer.calls(steps)
        took = alternate({"bare": partial(bare, work, calls), **loops(peer, work)}, rounds, device)
        rows.append([name, shown(median(took["bare"]), 2, 1e3 / calls), *added(took, calls)])
    columns = ["ours adds, us", "diffusers adds, us", "ours adds, %", "diffusers adds, %"]
    return table(["sampler", "bare call, ms", *columns, "ours / diffusers, in all"], rows)


def loops(peer: Peer, work: Work) -> dict[str, Contestant]:
    """Both loops as contestants."""
    return {"ours": partial(ours, peer, work), "theirs": partial(theirs, peer, work)}


def added(took: Mapping[str, list[float]], calls: int) -> list[str]:
    """What each loop takes beyond the bare calls, per call and relative to them, and one loop against the other."""
    cells = [shown(difference(took[side], took["bare"]), 0, MICRO / calls) for side in ("ours", "theirs")]
    for side in ("ours", "theirs"):
        value, low, high = ratio(took[side], took["bare"])
        cells.append(shown(Bounds(value - 1, low - 1, high - 1), 1, 100))
    return [*cells, shown(ratio(took["ours"], took["theirs"]), 3)]


if __name__ == "__main__":
    tyro.cli(main)
