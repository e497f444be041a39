"""How long kernels should take on GPUs that nobody measured them on: counts held against rates.

A prediction is there to be refuted. What it assumes:

- A turn of a loop takes a multiprocessor as long as the busiest of its units: the schedulers (an
  instruction a clock each), fma, integer, conversion and matrix units, shared memory and first
  cache (128 bytes a clock). What is not in the hot loop takes no time.
- Blocks that fit a multiprocessor at a time hide each other's waiting. One turn of all of them
  takes no less than a turn of one alone and the latency of memory, divided by the turns that
  copies are ahead; that is all that a pipeline changes.
- The multiprocessor with the most blocks ends last.
- Weights come from memory at nine tenths of the published rate, once; activations from there too.
- Clocks are the published boost clocks, and nothing else runs.
- A kernel without products (attention) takes its bytes or its waiting, whichever is longer: each
  time that a warp waits for memory takes the whole latency, and nothing hides it.
- A kernel in a graph starts `launch_us` after the one before, and first waits for memory once.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disassembly import HGMMA, HMMA, IMMA, Loop

_SCHEDULERS, _CACHE_BYTES, _REGISTERS = 4, 128, 1 << 16
_USABLE_BANDWIDTH = 0.9
_MOST_BLOCKS = 32
_WARP = 32


@dataclass(frozen=True)
class Rates:
    """A GPU as its makers describe it; fields of gpus.json."""

    name: str
    arch: str
    multiprocessors: int
    clock_ghz: float
    memory_gb_s: float
    fp16_tflops: float
    int8_tops: float
    mma_part: float
    per_clock: Mapping[str, int]
    latency_cycles: int
    threads: int
    shared_kib: int
    launch_us: float
    sources: tuple[str, ...]

    def tensor_cycles(self, loop: Loop) -> float:
        """Of the matrix units, for a turn of one warp."""
        clocks = self.multiprocessors * self.clock_ghz * 1e9
        published = {IMMA: self.int8_tops, HMMA: self.fp16_tflops}
        rates = {kind: tera * 1e12 / 2 / clocks * self.mma_part for kind, tera in published.items()}
        rates[HGMMA] = self.fp16_tflops * 1e12 / 2 / clocks
        return sum(products / rates[kind] for kind, products in loop.tensor.items())

    def cycles(self, loop: Loop, copied: float | None = None) -> dict[str, float]:
        """Of a multiprocessor's units, for a turn of one warp.

        Args:
            copied: bytes of a lane that come to shared memory, on average; None: what they are if
                all lanes copy.
        """
        units, rate = loop.units, self.per_clock
        copied = loop.copied_bytes if copied is None else copied
        multiply = units.get("multiply", 0) + units.get("dot", 0)
        return {
            "instructions": len(loop.body) / _SCHEDULERS,
            "fma": (units.get("fp32", 0) + multiply) * _WARP / rate["fma"],
            "multiply": multiply * _WARP / rate["multiply"],
            "integer": units.get("integer", 0) * _WARP / rate["integer"],
            "convert": units.get("convert", 0) * _WARP / rate["convert"],
            "shared": (loop.moved_bytes + copied) * _WARP / _CACHE_BYTES,
            "tensor": self.tensor_cycles(loop),
        }


@dataclass(frozen=True)
class Work:
    """One launch of a kernel.

    Attributes:
        bytes: that it reads and writes in memory.
        products: of weights and activations.
        loop: its hot loop at the level; None for kernels without products.
        blocks, threads: of the launch, and of a block.
        registers, shared_bytes: of a thread, and of a block.
        ahead: turns that copies are ahead, 1 where each turn waits for its own.
        copied_bytes: what a block copies to shared memory for a turn, where that is known.
        waits: of a kernel without products, how often a warp waits for memory, one after the other.
        launches: that it is made of.
    """

    bytes: float
    products: float
    loop: Loop | None
    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    ahead: int = 1
    copied_bytes: int = 0
    waits: int = 0
    launches: int = 1

    def resident(self, gpu: Rates) -> int:
        """Blocks that a multiprocessor has room for."""
        registers = -(-self.registers // 8) * 8 * self.threads
        by_shared = gpu.shared_kib * 1024 // (self.shared_bytes + 1024)  # 1 KiB is the system's
        return max(
            min(_REGISTERS // registers, by_shared, gpu.threads // self.threads, _MOST_BLOCKS), 1
        )


@dataclass(frozen=True)
class Prediction:
    """How long a launch takes.

    Attributes:
        microseconds: all of it.
        bound: "memory", "latency", or the busiest unit.
        bandwidth_part: of the published memory rate.
    """

    microseconds: float
    bound: str
    bandwidth_part: float


def predict(work: Work, gpu: Rates) -> Prediction:
    """What a launch should take on a GPU."""
    clock = gpu.clock_ghz * 1e3  # cycles a microsecond
    memory = work.bytes / (gpu.memory_gb_s * 1e3)
    parts = {"memory": memory / _USABLE_BANDWIDTH}
    if work.waits:
        parts["latency"] = work.waits * gpu.latency_cycles / clock
    if work.loop and work.products:
        busiest, cycles, waits = _compute(work, work.loop, gpu)
        parts["latency" if waits else busiest] = cycles / clock
    bound = max(parts, key=lambda name: parts[name])
    total = work.launches * gpu.launch_us + gpu.latency_cycles / clock + parts[bound]
    return Prediction(total, bound, memory / total)


def _compute(work: Work, loop: Loop, gpu: Rates) -> tuple[str, float, bool]:
    """(busiest unit, cycles of the last multiprocessor, whether it mostly waits)."""
    warps = work.threads // _WARP
    turns = work.products / (loop.products * work.threads * work.blocks)
    known = work.copied_bytes and loop.copied_bytes  # else through registers, as instructions say
    copied = work.copied_bytes / work.threads if known else None
    units = {name: count * warps for name, count in gpu.cycles(loop, copied).items()}
    busiest = max(units, key=lambda name: units[name])
    alone = (units[busiest] + gpu.latency_cycles) / work.ahead
    left, total, waiting = math.ceil(work.blocks / gpu.multiprocessors), 0.0, 0.0
    while left > 0:
        together = min(left, work.resident(gpu))
        busy = together * units[busiest]
        total += turns * max(busy, alone)
        waiting += turns * max(alone - busy, 0.0)
        left -= together
    return busiest, total, waiting > total / 2


@functools.cache
def known_gpus() -> dict[str, Rates]:
    """The GPUs of gpus.json, by name."""
    read: Any = json.loads((Path(__file__).parent / "gpus.json").read_text(encoding="utf-8"))
    found = (Rates(**{**one, "sources": tuple(one["sources"])}) for one in read["gpus"])
    return {one.name: one for one in found}
