"""The optimisers that `training.optimizer` names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipelines.task import Task, Training

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


def _muon(matrices: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    return torch.optim.Muon(
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
