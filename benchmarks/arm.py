"""Instructions that an artifact for ARM executes for a token under qemu, and those of its loops.

    python benchmarks/arm.py DIR [DIR ...] [--prompt 128] [--tokens 4] [--level 0]

Counts are exact and say nothing of time. A table has the hot loops of decode's linears: what they
take of a token, instructions for a weight and, where the system has llvm-mca, the cycles for one
that it forecasts with everything in the first cache.
"""

from __future__ import annotations

import argparse
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from bisect import bisect
from collections import Counter
from pathlib import Path

from morendo.codegen.cpu.listing import hot_loop
from morendo.codegen.cpu.target import CPUTarget
from morendo.debug.captured import open_kernels
from morendo.ir.errors import InputError
from morendo.ir.plan import EXECUTABLE, LIBRARY
from morendo.runtime.artifact import read_manifest
from morendo.terminal import table

_KERNEL = "__tvm_ffi_"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", metavar="DIR", nargs="+", type=Path)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prefill")
    parser.add_argument("--tokens", type=int, default=4, help="decode steps")
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--cpus", default="cortex-a55,neoverse-n1", help="as llvm-mca names them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plugin = build_plugin(Path(folder))
        for artifact in options.artifacts:
            report(artifact, plugin, options)


def report(artifact: Path, plugin: Path, options: argparse.Namespace) -> None:
    """Print the figures of one artifact."""
    target = read_manifest(artifact)["target"]
    if target["machine"] != "aarch64":
        raise InputError(f"an artifact for ARM is needed (got one for {target['name']})")
    started = count(artifact, plugin, options, "")
    filled = count(artifact, plugin, options, "p")
    ended = count(artifact, plugin, options, "p" + "d" * options.tokens)
    print(f"\n{artifact}: {target['name']}, level {options.level}, 10^6 instructions a token:")
    print_kernels(f"prefill of {options.prompt}", filled, started, options.prompt)
    print_kernels("decode", ended, filled, options.tokens)
    print_loops(artifact, options)


def build_plugin(folder: Path) -> Path:
    """The plugin for qemu, made for this machine."""
    source, plugin = Path(__file__).with_name("arm_count.c"), folder / "arm_count.so"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC"]
    subprocess.run([*compiler, str(source), "-o", str(plugin)], check=True)
    return plugin


def print_kernels(name: str, after: Counter[str], before: Counter[str], tokens: int) -> None:
    """Where the instructions of a function go."""
    each = {kernel: (after[kernel] - before[kernel]) / tokens / 1e6 for kernel in after}
    print(f"\n{name}: {sum(each.values()):.2f}", flush=True)
    most = sorted(
        ((count, kernel) for kernel, count in each.items() if count >= 0.005), reverse=True
    )
    print(table([(f"{count:.2f}", kernel) for count, kernel in most], ("10^6", "in")))


def count(artifact: Path, plugin: Path, options: argparse.Namespace, calls: str) -> Counter[str]:
    """Instructions of a session by kernel; it is asked for calls: p a prefill, d a decode step."""
    program, log = artifact / EXECUTABLE, plugin.with_suffix(".txt")
    prompt = [7 + 13 * i % 400 for i in range(options.prompt)]
    requests = struct.pack("=2i", ord("L"), options.level)
    for i, call in enumerate(calls):
        ids = prompt if call == "p" else []
        requests += struct.pack(f"=2i{len(ids)}i", ord(call), len(ids) or 7 + i, *ids)
    emulator = ["qemu-aarch64", "-cpu", "max", "-plugin", str(plugin), "-d", "plugin"]
    command = [*emulator, "-D", str(log), str(program), "--serve", str(artifact), "1"]
    subprocess.run(command, input=requests, stdout=subprocess.DEVNULL, check=True)
    names, starts = zip(*kernel_places(artifact), strict=True)
    counts = Counter[str]()
    for line in log.read_text().splitlines():
        address, size, times = line.split()
        counts[names[bisect(starts, int(address, 16)) - 1]] += int(size) * int(times)
    return counts


def kernel_places(artifact: Path) -> list[tuple[str, int]]:
    """Kernels and where they begin in the executable, by address.

    The executable has no symbols. The library has, and both have the same kernels side by side.
    """
    library, program = artifact / LIBRARY, artifact / EXECUTABLE
    listed = subprocess.run(
        ["llvm-nm", "-D", "--defined-only", "-n", str(library)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    symbols = [(name, int(address, 16)) for address, _, name in map(str.split, listed.splitlines())]
    kernels = [(name.removeprefix(_KERNEL), at) for name, at in symbols if name.startswith(_KERNEL)]
    first, last = kernels[0][1], kernels[-1][1]
    end = next(at for _, at in symbols if at > last)
    library_at, code = _code(library)
    program_at, other = _code(program)
    windows = (code[at : at + 256] for at in range(first - library_at, last - library_at, 64))
    found = next(window for window in windows if other.count(window) == 1)
    moved = other.index(found) + program_at - (code.index(found) + library_at)
    rest = "the C runtime"
    return [(rest, 0), *((name, at + moved) for name, at in kernels), (rest, end + moved)]


def _code(file: Path) -> tuple[int, bytes]:
    """The address and the bytes of the part of an ELF file that is executed."""
    data = file.read_bytes()
    (table_at,), (size, parts) = (
        struct.unpack_from("<Q", data, 32),
        struct.unpack_from("<2H", data, 54),
    )
    for i in range(parts):
        kind, flags, at, address, _, length = struct.unpack_from("<2I4Q", data, table_at + i * size)
        if kind == 1 and flags & 1:
            return address, data[at : at + length]
    raise InputError(f"no code (got {file})")


def print_loops(artifact: Path, options: argparse.Namespace) -> None:
    """The hot loops of decode's linears, as their listings have them."""
    opened, listings = open_kernels(artifact, read_manifest(artifact)), dict[str, str]()
    target, kernels = opened.program.target, opened.program.kernels
    assert isinstance(target, CPUTarget)
    assert target.assembly is not None
    weights = Counter[str]()
    for step in opened.plan.functions["decode"]:
        weights[opened.plan.kernels[step.kernel]] += step.weights
    codes = target.kernel_code({name: kernels[name] for name in kernels if weights[name]}, listings)
    cpus, rows = options.cpus.split(",") if shutil.which("llvm-mca") else [], []
    for name, code in codes.items():
        products = max(code.products, 1)
        loop = hot_loop(listings[f"{name}.s"], target.assembly)
        each = len(loop) / products
        cycles = (f"{_cycles(loop, target, cpu) / products:.3f}" for cpu in cpus)
        rows.append((f"{weights[name] * each / 1e6:.2f}", f"{each:.3f}", *cycles, name))
    if not cpus:
        print("llvm-mca is not installed: no cycles of inner loops")
    print(table(rows, ("10^6", "a weight", *(f"cycles {cpu}" for cpu in cpus), "hot loop of")))


def _cycles(loop: list[str], target: CPUTarget, cpu: str) -> float:
    """Cycles of a round, over a hundred of them."""
    assert target.assembly is not None
    features = ",".join(f"+{feature}" for feature in target.features)
    command = ["llvm-mca", f"-mtriple={target.triple}", f"-mcpu={cpu}", f"-mattr={features}"]
    body = "\n".join(line for line in loop if not target.assembly.jump.match(line))
    said = subprocess.run(
        [*command, "-iterations=100"], input=body, capture_output=True, text=True, check=True
    )
    found = re.search(r"Total Cycles:\s+(\d+)", said.stdout)
    assert found is not None
    return int(found[1]) / 100


if __name__ == "__main__":
    main()
