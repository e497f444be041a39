"""Kernels for NVIDIA GPUs: predicted from their machine code, and timed where there is a GPU.

    python benchmarks/cuda.py [--shapes 4096x4096,4096x11008] [--formats q4g32c] [--tokens 1,512]

A table of predictions for the GPUs of `targets/cuda/gpus.json`, each for a pipeline of asynchronous
copies and for one that waits; then decode steps of whole models. With a GPU also what it takes,
against torch's float16 where torch sees the GPU: copies of a matrix are read in turn, so that no
cache holds them, and --artifact DIR [--torch MODEL] is a whole model. Needs
`pip install morendo[cuda]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu import Driver, parameters, random_arguments
from gpu_models import measured_model, model_predictions
from tvm import tirx

from morendo.codegen.build_cache import BuildCache
from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import WeightFormat
from morendo.targets.cuda.cost import Rates, Work, known_gpus, predict
from morendo.targets.cuda.device_code import machine_code, split_kernel
from morendo.targets.cuda.disassembly import disassemble, find_disassembler, loops
from morendo.targets.cuda.kernels.attention import attention_parts, memory_waits
from morendo.targets.cuda.kernels.half_linear import build_half_linear
from morendo.targets.cuda.kernels.pipeline import SYNCHRONOUS
from morendo.targets.cuda.kernels.quantized_linear import build_quantized_linear
from morendo.targets.cuda.nvrtc import OWN
from morendo.targets.cuda.report import UNPACKING, DeviceCode, Machine, device_code
from morendo.targets.cuda.target import GPU, CUDATarget, descriptions, make
from morendo.terminal import table


@dataclass(frozen=True)
class Case:
    """A matrix, and how many tokens it is multiplied with."""

    spec: LinearSpec
    bits: int
    activations: int = 8

    @property
    def builder(self) -> Callable[[LinearSpec, GPU], tirx.PrimFunc]:
        """Of its kernel."""
        return build_half_linear if self.activations == 16 else build_quantized_linear

    @property
    def products(self) -> int:
        return self.spec.out_features * self.spec.in_features * self.spec.max_tokens

    @property
    def moved_bytes(self) -> float:
        """Weights at this many bits with their scales, activations and results."""
        spec, fmt = self.spec, self.spec.format
        scales = 1 if fmt.compact or not fmt.nested else 2
        weights = spec.out_features * spec.groups * (fmt.group_size * self.bits / 8 + scales)
        x = spec.max_tokens * spec.groups * (fmt.group_size * self.activations // 8 + 8)
        return weights + x + 4 * spec.max_tokens * spec.out_features


def target_for(arch: str) -> CUDATarget:
    """The target that makes the most of a GPU of an architecture."""
    own = f"cuda:{arch}{OWN}"
    return make(own if own in descriptions() else "cuda")


def compiled(target: CUDATarget, case: Case, isa: GPU) -> DeviceCode:
    """The kernel of a case, for all architectures."""
    function, cache = case.builder(case.spec, isa), BuildCache()
    halves = split_kernel(function, isa.arch, target.host.llvm, cache)
    images = {a: machine_code(halves.source, a, cache) for a in target.architectures}
    return device_code(function, images)


def at_bits(code: DeviceCode, arch: str, fmt: WeightFormat, bits: int) -> DeviceCode:
    """The kernel with its hot loop as it runs at so many bits."""
    machine, tool, which = code.machines[arch], find_disassembler(), fmt.bits - bits
    assert tool is not None
    found = loops(disassemble(tool, machine.image.cubin))
    loop = found[which] if len(found) > 1 else found[0].taking(which, UNPACKING)
    return replace(code, machines={arch: Machine(machine.image, machine.code, loop)})


def with_pipeline_and_without(target: CUDATarget, case: Case) -> list[DeviceCode]:
    """The kernel of a case, and the same with copies that are waited for, if it has any."""
    kernels = [compiled(target, case, target.isa)]
    if "async copy" in kernels[0].loop:
        kernels.append(compiled(target, case, replace(target.isa, pipeline=SYNCHRONOUS)))
    return kernels


def predictions(cases: Sequence[Case], gpus: Sequence[Rates]) -> Iterator[tuple[str, ...]]:
    """A row for each case and GPU."""
    targets = [(gpu, target_for(gpu.arch)) for gpu in gpus]
    named = {target.name: target for _, target in targets}
    for case in cases:
        fmt, spec = case.spec.format, case.spec
        kernels = {name: with_pipeline_and_without(named[name], case) for name in named}
        for gpu, target in targets:
            work = []
            for code in kernels[target.name]:
                arch = code.arch_for(gpu)
                assert arch is not None
                code = at_bits(code, arch, fmt, case.bits)
                work.append(code.work(arch, case.products, case.moved_bytes))
            found = [predict(one, gpu) for one in work]
            first, loop = found[0], work[0].loop
            assert loop is not None
            rate = 2 * case.products / first.microseconds / gpu.fp16_tflops / 1e6
            dense = max(
                2 * spec.out_features * spec.in_features / (gpu.memory_gb_s * 900),
                2 * case.products / (gpu.fp16_tflops * 1e6),
            )
            yield (
                f"{spec.out_features}x{spec.in_features} {fmt.name}", str(case.bits),
                str(spec.max_tokens), gpu.name, f"{len(loop.body) / loop.products:.3f}",
                f"{first.microseconds:.1f}", first.bound, f"{first.bandwidth_part:.0%}",
                f"{rate:.0%}", f"{dense / first.microseconds:.1f}x",
                f"{found[1].microseconds:.1f}" if len(found) > 1 else "-",
            )  # fmt: skip


def attention_predictions(
    isa: GPU, lengths: Sequence[int], gpus: Sequence[Rates]
) -> Iterator[tuple[str, ...]]:
    """A row for each number of keys that a token sees: with a block for each head, and with as many
    as share its keys.
    """
    heads, size = 32, 64
    for length in lengths:
        cache = KVCache(4, size, length, "float16")
        row = []
        for gpu in gpus:
            for parts in (1, attention_parts(isa, heads, cache)):
                waits = memory_waits(cache, length, parts)
                moved, launches = cache.key_bytes * length, 1 + (parts > 1)
                work = Work(
                    moved, 0, None, heads * parts, 256, 96, 9000, waits=waits, launches=launches
                )
                found = predict(work, gpu)
                row.append(f"{found.microseconds:.1f} {found.bound}")
        yield (str(length), *row)


LAUNCHES, STREAMED_BYTES = 40, 256 << 20


def measured(driver: Driver, target: CUDATarget, case: Case) -> float:
    """Microseconds of a launch, of many in a graph."""
    spec, isa, fmt = case.spec, target.isa, case.spec.format
    function, cache = case.builder(spec, isa), BuildCache()
    halves = split_kernel(function, isa.arch, target.host.llvm, cache)
    arch = driver.arch + OWN if isa.warpgroups else driver.arch
    image = machine_code(halves.source, arch, cache)
    name = halves.launches[0].name
    values = {"tokens": spec.max_tokens, "slots": 0}
    for bit in range(3, fmt.bits + 1):
        values |= {f"n{bit}": spec.groups * (bit <= case.bits), f"p{bit}": spec.groups}
    names = parameters(halves.source, name)
    copies = max(1, min(LAUNCHES, int(STREAMED_BYTES // case.moved_bytes)))
    sets = [random_arguments(driver, function, names, values) for _ in range(copies)]
    about = device_code(function, {arch: image})
    kernel = driver.kernel(image.cubin, name)
    return driver.microseconds(kernel, about.grid, about.threads, sets, LAUNCHES)


def torch_microseconds(case: Case) -> float | None:
    """The same product by torch in float16; None where torch sees no GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    spec, half = case.spec, {"dtype": torch.float16, "device": "cuda"}
    copies = max(1, STREAMED_BYTES // (2 * spec.out_features * spec.in_features))
    weights = [torch.randn(spec.in_features, spec.out_features, **half) for _ in range(copies)]
    x = torch.randn(spec.max_tokens, spec.in_features, **half)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph: Any = torch.cuda.CUDAGraph()
    torch.mm(x, weights[0])
    with torch.cuda.graph(graph):
        for i in range(LAUNCHES):
            torch.mm(x, weights[i % copies])
    graph.replay()
    first.record()
    graph.replay()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) * 1e3 / LAUNCHES


def measurements(
    driver: Driver, target: CUDATarget, cases: Sequence[Case]
) -> list[tuple[str, ...]]:
    """A row for each case: measured, torch's, and how many times as fast."""
    rows = []
    for case in cases:
        own, other = measured(driver, target, case), torch_microseconds(case)
        rows.append((
            f"{case.spec.out_features}x{case.spec.in_features} {case.spec.format.name}",
            str(case.bits), str(case.spec.max_tokens), f"{own:.1f}",
            f"{other:.1f}" if other else "-", f"{other / own:.2f}x" if other else "-",
        ))  # fmt: skip
    return rows


COLUMNS = (
    "matrix", "bits", "tokens", "GPU", "instructions", "us", "bound by", "of bandwidth",
    "of fp16 rate", "fp16", "waiting us",
)  # fmt: skip
NOTES = """
Predicted, not measured; targets/cuda/cost.py lists what that assumes. instructions: of a lane for a
product; of fp16 rate: of the published rate of matrix units; fp16: as many times as fast as reading
float16 weights at nine tenths of the memory's rate, or multiplying them at the whole published
one; waiting: with copies that are waited for, in place of a pipeline."""


def _shape(text: str) -> tuple[int, int]:
    rows, cross, columns = text.partition("x")
    if not (cross and rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"a shape is OUTPUTSxINPUTS (got {text})")
    return int(rows), int(columns)


def _shapes(text: str) -> list[tuple[int, int]]:
    return [_shape(each) for each in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not all(each.isdigit() and int(each) for each in text.split(",")):
        raise argparse.ArgumentTypeError(f"need numbers from 1 on, with commas (got {text})")
    return [int(each) for each in text.split(",")]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shapes", type=_shapes, default="4096x4096,4096x11008", help="outputs x inputs, ..."
    )
    parser.add_argument("--formats", default="q4g32c")
    parser.add_argument("--bits", type=_numbers, default="4,3,2")
    parser.add_argument("--tokens", type=_numbers, default="1,4,16,512")
    parser.add_argument("--activations", type=int, choices=(8, 16), default=8)
    parser.add_argument("--artifact", type=Path, help="a whole model to measure")
    parser.add_argument("--torch", default="", metavar="MODEL", help="the same model for torch")
    parser.add_argument("--contexts", default="512,4096,32768", help="keys that a token sees")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    cases = []
    for rows, columns in options.shapes:
        for fmt in map(WeightFormat.parse, options.formats.split(",")):
            for tokens in options.tokens:
                spec = LinearSpec(rows, columns, fmt, tokens)
                every = options.bits if fmt.nested else [fmt.bits]
                every = [bits for bits in every if 2 <= bits <= fmt.bits]
                cases += [Case(spec, bits, options.activations) for bits in every]
    if not cases:
        raise SystemExit(f"none of these formats has such bits (got {options.bits})")
    target = make("cuda")
    target.prepared()
    if find_disassembler() is None:
        raise SystemExit("NVIDIA's disassembler is not installed; pip install morendo[cuda]")
    rows_ = list(predictions(cases, list(known_gpus().values())))
    print(table(rows_, COLUMNS))
    print(NOTES)
    gpus = list(known_gpus().values())
    names = [f"{gpu.name}{shared} us" for gpu in gpus for shared in (", a block", ", shared")]
    lengths = map(int, options.contexts.split(","))
    print("\nAttention of a token, 32 heads of 64 over 4 of keys and values in float16:\n")
    print(table(list(attention_predictions(target.isa, list(lengths), gpus)), ("keys", *names)))
    print("\nDecode steps of whole models at position 512, tokens/s (times float16 from memory):\n")

    codes: dict[LinearSpec, DeviceCode] = {}

    def work(spec: LinearSpec, bits: int, gpu: Rates) -> Work:
        case = Case(spec, min(bits, spec.format.bits), options.activations)
        if spec not in codes:
            codes[spec] = compiled(target, case, target.isa)
        code = at_bits(codes[spec], gpu.arch, spec.format, case.bits)
        return code.work(gpu.arch, case.products, case.moved_bytes)

    rows_ = list(model_predictions(target.isa, gpus, work, (4, 3, 2), 512))
    print(table(rows_, ("model", "bits", *(gpu.name for gpu in gpus))))
    try:
        driver = Driver()
    except OSError as error:
        print(f"\nNothing is measured: there is no NVIDIA GPU here ({error}).")
        return
    names = ("matrix", "bits", "tokens", "us", "torch float16 us", "times as fast")
    print(f"\nMeasured on the GPU of this machine ({driver.arch}):\n")
    print(table(measurements(driver, target_for(driver.arch), cases), names))
    if options.artifact:
        names = ("artifact", "tokens/s", "torch float16", "times as fast")
        print("\n" + table([measured_model(options.artifact, options.torch)], names))


if __name__ == "__main__":
    main()
