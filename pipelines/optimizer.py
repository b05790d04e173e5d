"""The optimisers that `training.optimizer` names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz  # torch is pinned

from pipelines.rows import local, own_rows, whole
from pipelines.task import Task, Training
from pipelines.training_files import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MOMENTUM = 0.95


def players_optimizers(task: Task, training: Training) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a task's network and, by settings of its own, of its rival."""
    optimizers = optimizers_of(task.network, training)
    if task.rival is not None:
        own = task.rival_training(training)
        optimizers += optimizers_of(task.rival, own, factor=own.learning_rate / training.learning_rate)
    return optimizers


def optimizers_of(network: nn.Module, training: Training, factor: float = 1.0) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a network's parameters, each of which is stepped once a step.

    factor: of the learning rates that `set_rate` gives them.

    adamw moves all of them. muon moves the matrices of linear maps by their orthogonalised momentum (Muon,
    https://kellerjordan.github.io/posts/muon), as far as AdamW would (arXiv:2502.16982, sec. 2.2), so that one learning
    rate serves both; embeddings, norms, biases and convolutions stay with AdamW.
    """
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = matrices_of(network, training)
    moved = {id(matrix) for matrix in matrices}
    adamw = torch.optim.AdamW(
        [parameter for parameter in learned if id(parameter) not in moved],
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=True,
    )
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if matrices:
        optimizers.append(_muon(matrices, training))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["factor"] = factor
    return optimizers


def matrices_of(network: nn.Module, training: Training) -> list[nn.Parameter]:
    """Return the parameters that muon moves; none where all are AdamW's.

    Raises ValueError where muon is asked for and would move none.
    """
    if training.optimizer == "adamw":
        return []
    linear = {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) in linear]
    if not learned:
        raise ValueError("training.optimizer is 'muon', which moves linear maps, but none learns here: leave it out")
    return learned


class ShardedMuon(torch.optim.Muon):
    """Muon of sharded matrices: each is gathered in bf16 to be orthogonalised, and every process moves its rows."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, which is that of `torch.optim.Muon` on whole matrices."""
        del closure
        for group in self.param_groups:
            matrices, gradients, buffers = list[Tensor](), list[Tensor](), list[Tensor]()
            self._init_group(group, matrices, gradients, buffers)
            for matrix, gradient, buffer in zip(matrices, gradients, buffers, strict=True):
                buffer.lerp_(gradient, 1 - group["momentum"])
                update = whole(gradient.lerp(buffer, group["momentum"]).bfloat16())
                turned = _zeropower_via_newtonschulz(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], matrix.shape)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                local(matrix).add_(own_rows(turned, cast("DTensor", matrix)), alpha=-rate)


def _muon(matrices: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    kind = ShardedMuon if is_sharded(matrices[0]) else torch.optim.Muon
    return kind(
        matrices,
        lr=training.learning_rate,
        momentum=MOMENTUM,
        weight_decay=training.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give all parameters a learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)  # checkpoints of older versions have none
