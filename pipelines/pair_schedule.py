"""Which side of a pair a masked model should reveal first: powers of the schedules of text and image, learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from discrete.learned import LearnedPowers
from discrete.model import MaskedTransformer
from discrete.predict import denoiser
from discrete.schedule import Polynomial, Spans
from eval.interval import mean_interval
from pipelines.hardware import device_of, step_generator
from pipelines.progress import meter
from pipelines.sweep_rows import plain_interval

RATE = 0.02  # of Adam, on the logarithms of the powers
ROUNDS = 8  # maskings of each held-out pair behind the bound


def learn_powers(
    network: MaskedTransformer, batches: list[Tensor], held_out: Tensor, *, seed: int, name: str
) -> dict[str, Any]:
    """Learn the powers on batches of pairs (B, L), the network standing still: facts for the manifest.

    powers: of text and image; joint_bound: nats of a held-out pair with equal powers and with the learned ones.
    """
    layout, device = network.layout, device_of(network)
    learned = LearnedPowers((layout.text_length, layout.image_length)).to(device)
    optimizer = torch.optim.Adam(learned.parameters(), lr=RATE)

    @torch.no_grad()
    def logits(x_t: Tensor, _: Tensor) -> Tensor:
        return network.logits(x_t, (x_t == layout.mask_id).float().mean(1))

    denoise = denoiser(logits, mask_id=layout.mask_id)

    def bound() -> Tensor:
        with torch.no_grad():
            rows = [
                learned.bound(denoise, held_out.to(device), mask_id=layout.mask_id, generator=step_generator(0, 0, i))
                for i in range(ROUNDS)
            ]
        return torch.stack(rows).mean(0).cpu()

    before = bound()
    with meter(f"{name} schedule", len(batches)) as shown:
        for i, x in enumerate(batches):
            generator = step_generator(seed, 1, i)
            loss = learned.bound(denoise, x.to(device), mask_id=layout.mask_id, generator=generator).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shown.advance(1, f"bound {float(loss.detach()):.2f} nats")
    found = {"equal": before, "learned": bound()}
    intervals = {which: plain_interval(mean_interval(values.numpy())) for which, values in found.items()}
    return {"powers": learned.powers().tolist(), "joint_bound": intervals}


def spans(powers: list[float], text_length: int, image_length: int) -> Spans:
    """The schedule of pairs that a manifest's powers stand for."""
    parts = tuple(Polynomial(power=power) for power in powers)
    return Spans(parts=parts, lengths=(text_length, image_length))
