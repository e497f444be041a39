"""Whole models on NVIDIA GPUs: predicted decode steps, and measured ones where there is a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch_peer import TorchPeer

from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import WeightFormat
from morendo.runtime.sampling import Sampler, SamplingSettings
from morendo.runtime.session import Session
from morendo.targets.cuda.cost import Rates, Work, predict
from morendo.targets.cuda.kernels.attention import attention_parts, memory_waits
from morendo.targets.cuda.target import GPU

DECODED = 128
_SMALL_WAITS = 2  # of a norm, a rotation, a rounding: for its row, and for what it is reduced to


@dataclass(frozen=True)
class Model:
    """The shape of a llama."""

    name: str
    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def linears(self, fmt: WeightFormat, head: WeightFormat) -> Iterator[tuple[LinearSpec, int]]:
        """(a linear of one token, how often a step has it)."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        yield LinearSpec(width, self.hidden, fmt, 1), self.layers
        yield LinearSpec(self.hidden, self.hidden, fmt, 1, residual=True), self.layers
        yield LinearSpec(2 * self.ffn, self.hidden, fmt, 1, gate="silu"), self.layers
        yield LinearSpec(self.hidden, self.ffn, fmt, 1, residual=True), self.layers
        yield LinearSpec(self.vocabulary, self.hidden, head, 1), 1


MODELS = (
    Model("SmolLM2-135M", 576, 30, 1536, 9, 3, 49152),
    Model("1.1 B", 2048, 22, 5632, 32, 4, 32000),
)


def model_predictions(
    isa: GPU,
    gpus: Sequence[Rates],
    work: Callable[[LinearSpec, int, Rates], Work],
    bits: Sequence[int],
    position: int,
) -> Iterator[tuple[str, ...]]:
    """A row for each model and number of bits: tokens a second on each GPU, and how many times
    those that reading all weights in float16 at nine tenths of the memory's rate leaves.

    Args:
        work: a launch of a linear that reads so many bits.
        position: how many tokens attention sees; its cache is float16.
    """
    for model in MODELS:
        cache = KVCache(model.kv_heads, model.head_dim, position, "float16")
        parts = attention_parts(isa, model.heads, cache)
        waits = memory_waits(cache, position, parts)
        for each in bits:
            linears = list(model.linears(WeightFormat.parse("q4g32c"), WeightFormat.parse("q8g32")))
            weights = sum(spec.out_features * spec.in_features * n for spec, n in linears)
            row = []
            for gpu in gpus:
                moved, launches = cache.key_bytes * position, 1 + (parts > 1)
                attention = Work(
                    moved, 0, None, model.heads * parts, 256, 96, 9000,
                    waits=waits, launches=launches,
                )  # fmt: skip
                small = Work(0, 0, None, 1, 256, 32, 1024, waits=_SMALL_WAITS)
                spent = sum(
                    predict(work(spec, each, gpu), gpu).microseconds * n for spec, n in linears
                )
                # Two norms, two roundings and a rotation in a layer; the table, the last norm and
                # the likeliest token.
                spent += (5 * model.layers + 4) * predict(small, gpu).microseconds
                spent += model.layers * predict(attention, gpu).microseconds
                dense = 2 * weights / (gpu.memory_gb_s * 900)
                row.append(f"{1e6 / spent:.0f} ({dense / spent:.1f}x)")
            yield model.name, str(each), *row


def measured_model(artifact: Path, torch_model: str) -> tuple[str, ...]:
    """Tokens a second of an artifact, drawn greedily, and of torch in float16 on the GPU."""
    with Session(artifact) as session:
        executor, greedy = session.executor, Sampler(SamplingSettings())
        ids, own = np.random.default_rng(0).integers(session.vocabulary, size=16), 0.0
        for _ in range(2):  # the first warms up
            executor.set_position(0)
            token = greedy(executor.prefill(ids))
            count = min(DECODED, session.context - len(ids))
            start = time.perf_counter()
            for _ in range(count):
                token = executor.decode_next(token, greedy)
            own = count / (time.perf_counter() - start)
    if not torch_model:
        return artifact.name, f"{own:.0f}", "-", "-"
    peer = TorchPeer(torch_model, "float16", 1, "cuda")
    other = [DECODED / peer.seconds("decode", DECODED) for _ in range(2)][-1]
    peer.close()
    return artifact.name, f"{own:.0f}", f"{other:.0f}", f"{own / other:.2f}x"
