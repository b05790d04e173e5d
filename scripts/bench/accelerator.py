"""Standard sizes on a GPU, in bf16 with compiled blocks: images per second, use of the peak, memory, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from backbone.attention import attention, available
from latent.sizes import TRANSFORMER_SIZES
from pipelines.hardware import can_compile
from scripts.bench.rivals import Batch, Rival, batch_of, step_of, transformers
from scripts.bench.timing import alternate, always, median, ratio, shown
from scripts.markdown import table

PEAKS: Mapping[str, float] = {
    # dense bf16, FLOP per second, as the makers state it; part of the device's name
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
BATCHES: Mapping[str, int] = {"B": 256, "XL": 64}
ROUNDS = 15


def accelerator_tables(device: torch.device) -> str:
    """Both tables, or a sentence where there is no GPU."""
    if device.type != "cuda":
        return "DiT-B/2 and DiT-XL/2 need a GPU: not measured here; run again with --device cuda.\n"
    return f"Training on a GPU, bf16\n\n{sizes_table(device)}\n\nAttention\n\n{attention_table(device)}\n"


def sizes_table(device: torch.device) -> str:
    """Images per second, model FLOP utilisation and peak memory of B/2 and XL/2 at 32 x 32 x 4."""
    rows = []
    for size, count in BATCHES.items():
        shape = TRANSFORMER_SIZES[size]
        pair = transformers(shape["dim"], shape["layers"], shape["heads"], 32, device)
        batch = batch_of(count, 32, device)
        flops = {side: flops_of(rival, batch) for side, rival in pair.items()}
        memory, steps = {}, {}
        for side, rival in pair.items():
            steps[side] = step_of(rival, batch, device, bf16=True, compiled=can_compile())
            memory[side] = peak_memory(rival, steps[side], device)
        took = alternate({side: always(step) for side, step in steps.items()}, ROUNDS, device)
        for side, seconds in took.items():
            rate, used = 1 / median(seconds).value, flops[side] / median(seconds).value
            against = shown(ratio(seconds, took["theirs"]))
            cells = [f"{pair[side].parameters:,}", f"{count * rate:.0f}", utilisation(used, device)]
            rows.append([f"DiT-{size}/2, batch {count}", side, *cells, f"{memory[side] / 2**30:.1f}", against])
    columns = ["network", "whose", "parameters", "images/s", "MFU", "peak GiB", "time / diffusers"]
    return table(columns, rows)


def flops_of(rival: Rival, batch: Batch) -> int:
    """Floating point operations of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter, torch.autocast(batch.x_t.device.type, torch.bfloat16):
        F.mse_loss(rival.forward(batch), batch.target).backward()
    rival.network.zero_grad()
    return counter.get_total_flops()


def utilisation(flops_per_second: float, device: torch.device) -> str:
    """Share of the device's peak, or the rate itself where the peak is not in the table."""
    name = torch.cuda.get_device_name(device)
    peaks = [peak for part, peak in PEAKS.items() if part in name]
    return f"{100 * flops_per_second / peaks[0]:.1f}%" if peaks else f"{flops_per_second / 1e12:.1f} TFLOP/s"


def peak_memory(rival: Rival, step: Callable[[], None], device: torch.device) -> int:
    """Bytes that training this network holds at most, whatever else lies on the device. Its first steps are to come."""
    tensors = [*rival.network.parameters(), *rival.network.buffers()]
    others = torch.cuda.memory_allocated(device) - sum(tensor.nbytes for tensor in tensors)
    for _ in range(3):  # compiles, and lets AdamW make its state
        step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - others


def attention_table(device: torch.device, shape: tuple[int, ...] = (8, 16, 1024, 72)) -> str:
    """Every backend that runs here, in bf16 against float64, and its time; DiT-XL/2 at 64 x 64 x 4 has that shape."""
    g = torch.Generator(device).manual_seed(0)
    q, k, v = torch.randn(3, *shape, device=device, generator=g).bfloat16()
    exact = attention(q.double(), k.double(), v.double(), backend="matmul")
    backends = available()
    found = {name: attention(q, k, v, backend=name) for name in backends}
    took = alternate({n: lambda n=n: lambda: attention(q, k, v, backend=n) for n in backends}, 50, device)
    errors = {name: (out.double() - exact).abs().max().item() for name, out in found.items()}
    rows = [[name, f"{errors[name]:.1e}", shown(median(took[name]), 3, 1e3)] for name in backends]
    return table(["backend", "largest error", "forward, ms"], rows)
