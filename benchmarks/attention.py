"""Speed of attention and the small kernels against what the machine can do.

    python benchmarks/attention.py [--threads 2] [--cache float16] [--only prefill,decode,small]

The shapes are SmolLM2-135M's: 9 query heads and 3 kv heads of 64, 30 layers, width 576. Prefill is
compared with fused multiply-adds alone (operations of masked keys are not counted). Every layer has
its own cache, so that nothing stays in a cache of the processor that would not stay there in use.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from this_machine import Machine

HEADS, KV_HEADS, HEAD_DIM, LAYERS, WIDTH, FFN = 9, 3, 64, 30, 576, 1536
CONTEXT, CHUNK = 2048, 256


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache", default="float32,float16")
    parser.add_argument("--only", default="prefill,decode,small")
    parser.add_argument("--target", default="native")
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


@dataclass(frozen=True)
class Duration:
    """Seconds of one call; the best is what a machine without other work shows."""

    median: float
    best: float

    def text(self, scale: float, unit: str, digits: int = 1) -> str:
        return f"{self.median * scale:.{digits}f} {unit} (best {self.best * scale:.{digits}f})"


def measure(call: Callable[[], object], rounds: int, calls: int = 1) -> Duration:
    """Duration of a call over some rounds of `calls` calls, after a round of warming up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return Duration(statistics.median(times[1:]), min(times[1:]))


class Bench:
    """Compiles for one target and keeps the tensors."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.machine = options, Machine.of(options.target)
        self.isa = self.machine.isa
        self.rng = np.random.default_rng(0)

    def compile(self, function) -> Callable:
        return self.machine.compile(str(function.attrs["global_symbol"]), function)

    def tensor(self, *shape: int, dtype: str = "float32"):
        import tvm

        if dtype.startswith("float"):
            return tvm.runtime.tensor(self.rng.standard_normal(shape, np.float32).astype(dtype))
        if dtype == "uint8":  # codes
            return tvm.runtime.tensor(self.rng.integers(0, 256, shape, dtype=np.uint8))
        return tvm.runtime.tensor(np.zeros(shape, dtype))

    def cache(self, cache) -> list:
        """The arrays of one layer's cache."""
        return [self.tensor(*array.shape, dtype=array.dtype) for array in cache.arrays]

    def attention(self, max_tokens: int, cache) -> Callable:
        from morendo.codegen.cpu.kernels.attention import Scores, cached_attention
        from morendo.codegen.cpu.vectors.vector_blocks import Rows

        function = cached_attention(
            self.isa, max_tokens=max_tokens, heads=HEADS, cache=cache, scores=Scores(0.125),
            q_rows=Rows((HEADS + 2 * KV_HEADS) * HEAD_DIM),
        )  # fmt: skip
        return self.compile(function)

    def multiply_add_rate(self) -> float:
        """float32 operations per second of all threads when nothing is loaded."""
        from tvm.tirx.script.builder import ir as T

        from morendo.codegen.cpu.vectors.vector import Registers, load, splat_float, store
        from morendo.codegen.cpu.vectors.vector_blocks import kernel

        tasks, rounds, chains, lanes = 16, 1 << 13, 12, self.isa.lanes
        with kernel("peak") as k:
            x, out = k.buffer("x", (lanes,)), k.buffer("out", (tasks, chains, lanes))
            with T.parallel(0, tasks) as task:
                sums = Registers(chains, "float32", lanes)
                for i in range(chains):
                    sums[i] = splat_float(float(i), lanes)
                with T.serial(0, rounds):
                    for i in range(chains):
                        sums[i] = sums[i] * load(x, [0], lanes) + load(x, [0], lanes)
                for i in range(chains):
                    store(out, [task, i, 0], sums[i], lanes)
        run = self.compile(k.function)
        x, out = self.tensor(lanes), self.tensor(tasks, chains, lanes)
        best = measure(lambda: run(x, out), self.options.rounds).best
        return tasks * rounds * chains * lanes * 2 / best


def prefill(bench: Bench, dtype: str) -> None:
    """A prompt of 512 tokens in chunks of 256 through the attention of all layers."""
    from morendo.codegen.cpu.kernels.kv_cache import KVCache

    cache, prompt = KVCache(KV_HEADS, HEAD_DIM, CONTEXT, dtype), 512
    run, caches = bench.attention(CHUNK, cache), [bench.cache(cache) for _ in range(LAYERS)]
    q = bench.tensor(CHUNK, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    out = bench.tensor(CHUNK, HEADS * HEAD_DIM)

    def all_layers() -> None:
        for position in range(0, prompt, CHUNK):
            for arrays in caches:
                run(q, *arrays, out, CHUNK, position)

    duration = measure(all_layers, bench.options.rounds)
    operations = 4 * HEAD_DIM * HEADS * LAYERS * (prompt * (prompt + 1) // 2)
    peak = bench.multiply_add_rate()
    rate = operations / duration.best
    print(
        f"prefill {prompt} tokens, cache {dtype}: {duration.text(1e3, 'ms')},"
        f" {rate / 1e9:.0f} GFLOP/s of {peak / 1e9:.0f} ({rate / peak:.0%})"
    )


def decode(bench: Bench, dtype: str) -> None:
    """One token at several positions through the attention of all layers."""
    from morendo.codegen.cpu.kernels.kv_cache import KVCache

    cache = KVCache(KV_HEADS, HEAD_DIM, CONTEXT, dtype)
    run, caches = bench.attention(1, cache), [bench.cache(cache) for _ in range(LAYERS)]
    q, out = bench.tensor(1, (HEADS + 2 * KV_HEADS) * HEAD_DIM), bench.tensor(1, HEADS * HEAD_DIM)
    for position in (0, 15, 63, 127, 255, 511, 1023, 2047):

        def all_layers(position: int = position) -> None:
            for arrays in caches:
                run(q, *arrays, out, 1, position)

        duration = measure(all_layers, bench.options.rounds, calls=3)
        nbytes = cache.key_bytes * (position + 1) * LAYERS
        print(
            f"decode at {position}, cache {dtype}: {duration.text(1e6 / LAYERS, 'us')} a layer,"
            f" {nbytes / duration.best / 1e9:.1f} GB/s"
        )


def small(bench: Bench) -> None:
    """The kernels around the linears, for one token and for a chunk."""
    from morendo.codegen.cpu.kernels import elementwise, norms
    from morendo.codegen.cpu.kernels.kv_cache import KVCache
    from morendo.codegen.cpu.kernels.quantize_activation import quantize_activation
    from morendo.codegen.cpu.kernels.rope import Rotation, rope_append_kv

    cache = KVCache(KV_HEADS, HEAD_DIM, CONTEXT, "float32")
    stacked = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    for tokens in (1, CHUNK):
        common: dict[str, Any] = {"max_tokens": tokens, "features": WIDTH}
        x, weight, out = bench.tensor(tokens, WIDTH), bench.tensor(WIDTH), bench.tensor(tokens, FFN)
        quantized = [
            bench.tensor(tokens, FFN, dtype="int8"),
            bench.tensor(tokens, FFN // 32),
            bench.tensor(tokens, FFN // 32, dtype="int32"),
        ]
        groups = [
            bench.tensor(tokens, WIDTH, dtype="int8"),
            bench.tensor(tokens, WIDTH // 32),
            bench.tensor(tokens, WIDTH // 32, dtype="int32"),
        ]
        normed, wide = bench.tensor(tokens, WIDTH), bench.tensor(tokens, FFN)
        row, frequencies = bench.tensor(tokens, stacked), bench.tensor(HEAD_DIM // 2)
        kernels = [
            (norms.rms_norm(bench.isa, eps=1e-5, **common), (x, weight, normed, tokens)),
            (
                norms.rms_norm_quantize(bench.isa, group_size=32, eps=1e-5, **common),
                (x, weight, *groups, tokens),
            ),
            (
                quantize_activation(bench.isa, max_tokens=tokens, features=FFN, group_size=32),
                (wide, *quantized, tokens),
            ),
            (
                elementwise.gated(
                    bench.isa, max_tokens=tokens, features=FFN, activation_name="silu"
                ),
                (wide, wide, out, tokens),
            ),
            (
                rope_append_kv(
                    bench.isa, max_tokens=tokens, heads=HEADS, cache=cache,
                    rotation=Rotation(HEAD_DIM, HEAD_DIM),
                ),
                (row, frequencies, *bench.cache(cache), tokens, 100),
            ),
        ]  # fmt: skip
        for function, arguments in kernels:
            run = bench.compile(function)
            call = functools.partial(run, *arguments)
            duration = measure(call, bench.options.rounds, calls=100)
            print(f"{function.attrs['global_symbol']}: {duration.text(1e6, 'us', 2)}")


def main() -> None:
    options = parse_options()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    bench = Bench(options)
    for part, run in (("prefill", prefill), ("decode", decode)):
        if part in options.only:
            for dtype in options.cache.split(","):
                run(bench, dtype)
    if "small" in options.only:
        small(bench)


if __name__ == "__main__":
    main()
