"""What accelerators can do, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One accelerator. operations: a second, of dense bf16 and of fp32; memory in bytes; links in bytes a second.

    links: to the other GPUs of its node, one way (NVLink, or PCIe 4.0 x16 where there is none). price: dollars an hour,
    a rough rent of 2026, meant to be replaced by your own.
    """

    bf16: float
    fp32: float
    memory: float
    links: float
    price: float


GPUS = {
    "a100-40": Gpu(bf16=312e12, fp32=19.5e12, memory=40e9, links=300e9, price=1.3),
    "a100-80": Gpu(bf16=312e12, fp32=19.5e12, memory=80e9, links=300e9, price=1.8),
    "h100": Gpu(bf16=989e12, fp32=67e12, memory=80e9, links=450e9, price=3.0),
    "h200": Gpu(bf16=989e12, fp32=67e12, memory=141e9, links=450e9, price=3.5),
    "b200": Gpu(bf16=2250e12, fp32=75e12, memory=180e9, links=900e9, price=5.5),
    "l40s": Gpu(bf16=362e12, fp32=91.6e12, memory=48e9, links=32e9, price=1.0),
    "rtx4090": Gpu(bf16=165e12, fp32=82.6e12, memory=24e9, links=32e9, price=0.5),
}
