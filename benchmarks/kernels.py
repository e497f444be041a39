"""Speed of the linear kernels against what the machine can do.

    python benchmarks/kernels.py [--threads 2] [--formats q4g32,q8g32] [--tokens 1,256]

One token is compared with plain reading of memory: `streamed` goes through copies of the matrix
that together do not fit the last-level cache, `cached` repeats one. More tokens are compared with
the dot instruction alone. Kernel and limit run in turns, so that a busy machine slows both down;
one thread is timed by its CPU time, which leaves out waiting for the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from this_machine import Machine

MODEL_SHAPES = "2048x5632,2048x2048,11264x2048,32000x2048,576x1536,576x576,960x576,49152x576"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    threads: int
    formats: list[str]
    tokens: list[int]
    shapes: list[tuple[int, int]]
    target: str
    seconds: float
    quantile: float
    streamed_megabytes: int


def parse_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--formats", default="q4g32,q8g32,f16")
    parser.add_argument("--tokens", default="1,256")
    parser.add_argument("--shapes", default=MODEL_SHAPES, help="output x input features, ...")
    parser.add_argument(
        "--target", default="native", help="of `morendo targets`, one that runs here"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="time per measurement")
    parser.add_argument("--quantile", type=float, default=0.5, help="less on a busy machine")
    parser.add_argument("--streamed-megabytes", type=int, default=160)
    a = parser.parse_args()
    sizes = [shape.split("x") for shape in a.shapes.split(",")]
    shapes = [(int(rows), int(columns)) for rows, columns in sizes]
    tokens = [int(t) for t in a.tokens.split(",")]
    return Options(
        threads=a.threads,
        formats=re.split(",(?=[fq])", a.formats),  # q4g32p9,4 is one
        tokens=tokens,
        shapes=shapes,
        target=a.target,
        seconds=a.seconds,
        quantile=a.quantile,
        streamed_megabytes=a.streamed_megabytes,
    )


@dataclass(frozen=True)
class Limit:
    """Something that the machine cannot do faster: short calls to go round, and the bytes or
    operations of one.
    """

    calls: list[Callable[[], None]]
    amount: float


def times_in_turns(
    calls: list[Callable[[], None]], limit: Limit, options: Options
) -> tuple[float, float]:
    """Seconds of a call and rate of the limit at the chosen quantile, for at least 3 rounds."""
    times, limits, begin = [], [], time.perf_counter()
    while len(limits) < 3 * len(limit.calls) or time.perf_counter() - begin < options.seconds:
        times += [seconds_of(call, options) for call in calls]
        limits += [seconds_of(call, options) for call in limit.calls]
    seconds = np.quantile(times[len(calls) :], options.quantile)
    return seconds, limit.amount / np.quantile(limits[len(limit.calls) :], options.quantile)


def seconds_of(call: Callable[[], None], options: Options) -> float:
    """Duration of one call: the only thread's CPU time, or the time on the clock."""
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def memory_limit(machine: Machine) -> Limit:
    """All threads read memory in order; in bytes."""
    import tvm
    from tvm.tirx.script.builder import ir as T

    from morendo.codegen.cpu.kernels.linear_spec import (
        kernel_builder,
        scalar_argument,
        tensor_argument,
    )
    from morendo.codegen.cpu.vectors.vector import Registers, load, splat, store

    lanes = machine.isa.lanes
    slices, parts, vectors = 32, 32, (1 << 15) // lanes  # 4 MB a slice
    with kernel_builder("read") as builder:
        a = tensor_argument("a", (slices, parts, vectors * lanes), "int32")
        b = tensor_argument("b", (parts, lanes), "int32")
        index = scalar_argument("index")
        with T.parallel(0, parts) as part:
            sums = Registers(4, "int32", lanes)
            for i in range(4):
                sums[i] = splat(T.int32(0), lanes)
            with T.serial(0, vectors // 4) as step:
                for i in range(4):
                    sums[i] = sums[i] + load(a, (index, part, (step * 4 + i) * lanes), lanes)
            store(b, (part, 0), sums[0] + sums[1] + sums[2] + sums[3], lanes)
    read = machine.compile("read", builder.get())
    data = tvm.runtime.tensor(np.ones((slices, parts, vectors * lanes), np.int32))
    out = tvm.runtime.tensor(np.zeros((parts, lanes), np.int32))
    calls = [lambda i=i: read(data, out, i) for i in range(slices)]
    return Limit(calls, data.numpy().nbytes / slices)


def dot_limit(machine: Machine) -> Limit:
    """All threads run the dot instruction; in operations (multiplications and additions)."""
    import tvm
    from tvm.tirx.script.builder import ir as T

    from morendo.codegen.cpu.kernels.linear_spec import kernel_builder, tensor_argument
    from morendo.codegen.cpu.vectors.vector import Registers, load, splat, store, vector_type

    isa, tasks, rounds, chains, lanes = machine.isa, 16, 1 << 12, 12, machine.isa.lanes
    with kernel_builder("peak") as builder:
        a = tensor_argument("a", (lanes,), "int32")
        b = tensor_argument("b", (tasks, chains, lanes), "int32")
        with T.parallel(0, tasks) as task:
            sums = Registers(chains, "int32", lanes)
            for i in range(chains):
                sums[i] = splat(T.int32(i), lanes)
            x = T.bind(load(a, (0,), lanes))
            with T.serial(0, rounds):
                for i in range(chains):  # codes that change, so that nothing leaves the loop
                    codes = T.reinterpret(vector_type("uint32", lanes), sums[i])
                    sums[i] = isa.dot(sums[i], codes, x)
            for i in range(chains):
                store(b, (task, i, 0), sums[i], lanes)
    peak = machine.compile("peak", builder.get())
    inputs = tvm.runtime.tensor(np.full(lanes, 0x01010101, np.int32))
    out = tvm.runtime.tensor(np.zeros((tasks, chains, lanes), np.int32))
    return Limit([lambda: peak(inputs, out)], tasks * rounds * chains * lanes * 8)


def random_array(rng: np.random.Generator, dtype: str, shape) -> np.ndarray:
    """Any bytes for integers, small values for floats."""
    if dtype.startswith("float"):
        return rng.random(shape, np.float32).astype(dtype)
    return rng.integers(0, 100, shape, np.uint8).astype(dtype)


def kernel_calls(
    spec, fmt, machine: Machine, copies: int
) -> tuple[list[Callable[[], None]], float]:
    """One call of the kernel per copy of weights in the format, and the seconds to compile it."""
    import tvm

    from morendo.codegen.cpu.kernels.linear import build_linear
    from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear

    rng = np.random.default_rng(0)
    build = build_quantized_linear if spec.format.quantized else build_linear
    start = time.perf_counter()
    kernel = machine.compile(spec.kernel_name(machine.isa), build(spec, machine.isa))
    compile_seconds = time.perf_counter() - start
    tokens, groups = spec.max_tokens, spec.groups if spec.format.quantized else 1
    shapes = [("float32", (tokens, spec.in_features))]
    if spec.format.quantized:
        columns = groups * spec.format.group_size
        shapes = [("int8", (tokens, columns))]
        shapes += [(dtype, (tokens, groups)) for dtype in ("float32", "int32")]
    x = [tvm.runtime.tensor(random_array(rng, *pair)) for pair in shapes]
    out = tvm.runtime.tensor(np.zeros((tokens, spec.output_features), np.float32))
    stored = fmt.arrays(spec.out_features, spec.in_features)
    weights = [random_array(rng, a.dtype, a.shape) for a in stored]
    level = 2 * list(fmt.plane_groups(spec.in_features)) if fmt.nested else []
    if fmt.slots:
        weights[-2] %= 16  # the rows of a tile
        weights[-1][:] = 0  # every entry is in a group that is read at 2 bits
        level.append(fmt.slots)
    sets = [[tvm.runtime.tensor(w) for w in weights] for _ in range(copies)]
    calls = [lambda w=w: kernel(*x, *w, out, tokens, *level) for w in sets]
    return calls, compile_seconds


def measure(options: Options, machine: Machine, memory: Limit, dot: Limit) -> Iterator[tuple]:
    """Rows of the table."""
    from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
    from morendo.ir.formats import WeightFormat

    for name, (rows, columns), tokens in itertools.product(
        options.formats, options.shapes, options.tokens
    ):
        fmt = WeightFormat.parse(name)
        spec = LinearSpec(rows, columns, fmt.without_counts, tokens, outliers=fmt.slots > 0)
        nbytes, operations = fmt.nbytes(rows, columns), 2 * rows * columns * tokens
        streamed = -(-options.streamed_megabytes * 1_000_000 // nbytes)
        for copies in (1, streamed) if tokens == 1 else (1,):
            calls, compiled = kernel_calls(spec, fmt, machine, copies)
            limit = memory if tokens == 1 else dot
            if tokens == 1 and copies == 1:
                calls *= 32  # most of them find the matrix in the cache, which the limit empties
            seconds, limit_rate = times_in_turns(calls, limit, options)
            rate = (nbytes if tokens == 1 else operations) / seconds
            place = "cached" if copies == 1 and nbytes < 24e6 else "streamed"
            yield (
                fmt.name, f"{rows}x{columns}", tokens, place, seconds * 1e6,
                nbytes / seconds / 1e9, operations / seconds / 1e9, limit_rate / 1e9,
                100 * rate / limit_rate, compiled,
            )  # fmt: skip


def main() -> None:
    options = parse_options()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)  # read when TVM's pool starts
    machine = Machine.of(options.target)
    print(f"{machine.isa.name}, {options.threads} threads; limit: GB/s for one token, else GOP/s")
    head = (
        "format",
        "shape",
        "tokens",
        "weights",
        "us",
        "GB/s",
        "GOP/s",
        "limit",
        "%",
        "compile s",
    )
    print("{:<10} {:>11} {:>6} {:>9} {:>9} {:>6} {:>6} {:>6} {:>4} {:>9}".format(*head))
    line = "{:<10} {:>11} {:>6} {:>9} {:>9.1f} {:>6.1f} {:>6.0f} {:>6.1f} {:>4.0f} {:>9.2f}"
    for row in measure(options, machine, memory_limit(machine), dot_limit(machine)):
        print(line.format(*row), flush=True)


if __name__ == "__main__":
    main()
