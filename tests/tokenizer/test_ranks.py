"""Two processes (gloo) on halves of a batch do what one does on the whole; all checks share one start of processes."""

import socket
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbone.folded import FoldedConfig
from tokenizer.loss import elbo_loss, reconstruction_loss, vae_loss, vqvae_loss
from tokenizer.posterior import Gaussian
from tokenizer.quantize import LFQ, LFQConfig, QuantizerConfig, ResidualConfig, SimVQConfig, VQConfig
from tokenizer.ranks import alone
from tokenizer.vqvae import VQVAE, VQVAEConfig

DIM = 4
QUANTIZERS: dict[str, QuantizerConfig] = {
    "ema": VQConfig(codes=16, dim=DIM, decay=0.8),
    "gradient": VQConfig(codes=16, dim=DIM, learn="gradient"),
    "turned": VQConfig(codes=16, dim=DIM, learn="gradient", distance="cosine", estimator="rotation"),
    "residual": ResidualConfig(depth=2, level=VQConfig(codes=8, dim=DIM, decay=0.8)),
    "residual_gradient": ResidualConfig(depth=2, level=VQConfig(codes=8, dim=DIM, learn="gradient")),
    "sim": SimVQConfig(codes=16, dim=DIM),
}
ENTROPIES = {
    "lfq": LFQConfig(bits=6, temperature=2.0, entropy_weight=1.0),
    "groups": LFQConfig(bits=6, temperature=2.0, entropy_weight=1.0, group=2, spherical=True),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share(items: Tensor, rank: int, world: int) -> Tensor:
    return items.chunk(world)[rank]


def trained(config: QuantizerConfig, rank: int, world: int) -> dict[str, Tensor]:
    """Unquantised steps, the start of the codes, steps of two passes, a death and a revival: the state at the end."""
    torch.manual_seed(0)
    network = FoldedConfig(channels=16, encoder_blocks=0, decoder_blocks=0)
    model = VQVAE(VQVAEConfig(network=network, quantizer=config))
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    for step in range(8):
        x = share(torch.rand(8, 3, 16, 16, generator=generator(step)) * 2 - 1, rank, world)
        if step == 2:
            model.quantizer.initialise(model.vectors(x), generator(100))
        if step == 6:
            for name, buffer in model.quantizer.named_buffers():
                if name.endswith("cluster_size"):
                    buffer[:3] = 0
            moved = model.quantizer.revive(model.vectors(x), generator(101))
            assert all(rows.tolist() == [0, 1, 2] for _, rows in moved) and bool(moved) == (config.kind != "sim")
        for half in x.chunk(2):
            x_hat, found = wrapped(half, quantise=step >= 2)
            if found is None:
                loss = reconstruction_loss(x_hat, half, "l2")
            else:
                loss = vqvae_loss(x_hat, half, found.own, found.commitment, kind="l2", beta=0.25).total
            (loss / 2).backward()
        optimiser.step()
        optimiser.zero_grad()
        model.quantizer.settle()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def gradient(loss: Callable[[Tensor], Tensor], width: int, rank: int, world: int) -> dict[str, Tensor]:
    """The gradient, averaged over the ranks, of a map in front of a loss of vectors (n, width)."""
    torch.manual_seed(1)
    layer = nn.Linear(6, width)
    loss(layer(share(torch.randn(12, 6, generator=generator(5)), rank, world))).backward()
    found = {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    if world > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= world
    return found


def entropy_of(config: LFQConfig) -> Callable[[Tensor], Tensor]:
    return lambda vectors: LFQ(config).train()(vectors[:, :, None, None]).own


def free_bits_of(kind: str) -> Callable[[Tensor], Tensor]:
    def loss(features: Tensor) -> Tensor:
        posterior, x = Gaussian.of(features[:, :, None, None]), torch.zeros(len(features), 3, 4, 4)
        if kind == "bound":
            return elbo_loss(x, x, posterior, torch.zeros(()), free=FREE).total
        return vae_loss(x, x, posterior, kind="l1", weight=1.0, free=FREE).total

    return loss


FREE = 0.175  # nats: between those of the halves for some channel, so that a mean within a rank clamps wrongly
CHECKS: dict[str, Callable[[int, int], dict[str, Tensor]]] = {
    **{name: lambda r, w, c=config: trained(c, r, w) for name, config in QUANTIZERS.items()},
    **{name: lambda r, w, c=config: gradient(entropy_of(c), 6, r, w) for name, config in ENTROPIES.items()},
    **{f"free_{kind}": lambda r, w, k=kind: gradient(free_bits_of(k), 8, r, w) for kind in ("bound", "weighted")},
}


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    if rank == 0:  # while the other one waits
        with alone():
            gradient(entropy_of(ENTROPIES["lfq"]), 6, 0, 1)
    dist.barrier()
    torch.save({name: check(rank, 2) for name, check in CHECKS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks_reach_what_one_process_reaches(ranks, name: str):
    expected = CHECKS[name](0, 1)
    assert expected
    for key, value in expected.items():
        assert torch.equal(ranks[0][name][key], ranks[1][name][key]), key
        torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*ENTROPIES, "free_bound", "free_weighted"])
def test_the_mean_of_the_halves_losses_is_another(name: str):
    """Otherwise the equality above would say nothing."""
    halves = [CHECKS[name](0, 1)]
    torch.manual_seed(1)
    loss, width = (entropy_of(ENTROPIES[name]), 6) if name in ENTROPIES else (free_bits_of(name[5:]), 8)
    layer = nn.Linear(6, width)
    for half in torch.randn(12, 6, generator=generator(5)).chunk(2):
        (loss(layer(half)) / 2).backward()
    assert (layer.weight.grad - halves[0]["weight"]).norm() > 0.03 * halves[0]["weight"].norm()
