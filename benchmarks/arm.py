"""Instructions that an artifact for ARM executes for a token, kernel by kernel, under qemu.

    python benchmarks/arm.py DIR [DIR ...] [--prompt 128] [--tokens 8] [--level 0]

Counts are exact and say nothing of time; they compare kernels of one machine with another. Where
the system has llvm-mca, hot loops of decode kernels have a second table: the cycles that one round
takes on processors of the option --cpus, everything in the first cache.
"""

from __future__ import annotations

import argparse
import bisect
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from morendo.codegen.cpu.listing import hot_loop
from morendo.codegen.cpu.target import CPUTarget
from morendo.debug.captured import open_kernels
from morendo.ir.errors import InputError
from morendo.ir.plan import EXECUTABLE, Plan
from morendo.runtime.artifact import read_manifest, read_plan
from morendo.terminal import table

_SYMBOL_TABLE, _FUNCTION = 2, 2  # as ELF numbers kinds of sections and of symbols


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", metavar="DIR", nargs="+", type=Path)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prefill")
    parser.add_argument("--tokens", type=int, default=4, help="decode steps")
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--kernels", type=int, default=8, help="rows of each table")
    parser.add_argument("--cpus", default="cortex-a55,neoverse-n1", help="as llvm-mca names them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plugin = build_plugin(Path(folder))
        for artifact in options.artifacts:
            report(artifact, plugin, options)


def report(artifact: Path, plugin: Path, options: argparse.Namespace) -> None:
    """Print the tables of one artifact."""
    target = read_manifest(artifact)["target"]
    if target["machine"] != "aarch64":
        raise InputError(f"an artifact for ARM is needed (got one for {target['name']})")
    plan = read_plan(artifact)
    before = count(artifact, plugin, options, 0)
    after = count(artifact, plugin, options, options.tokens)
    decode = Counter({name: (after[name] - before[name]) / options.tokens for name in after})
    kernels = set(plan.kernels)
    prefill = Counter({k: v / options.prompt for k, v in before.items() if k in kernels})
    print(f"\n{artifact}: {target['name']}, level {options.level}, 10^6 instructions a token")
    for phase, found in (("decode", decode), (f"prefill of {options.prompt}", prefill)):
        rows = [_row(phase, name, each, plan) for name, each in found.most_common(options.kernels)]
        total = (f"{phase} of all", f"{found.total() / 1e6:.2f}", "", "")
        print(table([total, *rows], ("phase", "10^6", "a weight", "kernel")))
    if shutil.which("llvm-mca"):
        print_cycles(artifact, decode, options)
    else:
        print("llvm-mca is not installed: no cycles of inner loops")


def _row(phase: str, name: str, instructions: float, plan: Plan) -> tuple[str, ...]:
    """Decode kernels make a product of each weight, others one for each of the tokens."""
    steps = plan.functions[phase.split()[0]]
    called = [step for step in steps if plan.kernels[step.kernel] == name]
    weights = sum(step.weights for step in called)
    each = f"{instructions / weights:.3f}" if weights else ""
    return phase, f"{instructions / 1e6:.3f}", each, name


def build_plugin(folder: Path) -> Path:
    """The plugin for qemu, made for this machine."""
    source, plugin = Path(__file__).with_name("arm_count.c"), folder / "arm_count.so"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC"]
    subprocess.run([*compiler, str(source), "-o", str(plugin)], check=True)
    return plugin


def count(artifact: Path, plugin: Path, options: argparse.Namespace, tokens: int) -> Counter[str]:
    """Instructions by function of one prefill and some decode steps."""
    program, log = artifact / EXECUTABLE, plugin.with_suffix(".txt")
    ids = [7 + 13 * i % 400 for i in range(options.prompt)]
    requests = struct.pack("=2i", ord("L"), options.level)
    requests += struct.pack(f"=2i{len(ids)}i", ord("p"), len(ids), *ids)
    requests += b"".join(struct.pack("=2i", ord("d"), 7 + i) for i in range(tokens))
    emulator = ["qemu-aarch64", "-cpu", "max", "-plugin", str(plugin), "-d", "plugin"]
    served = [str(program), "--serve", str(artifact), "1"]
    subprocess.run(
        [*emulator, "-D", str(log), *served], input=requests, stdout=subprocess.DEVNULL, check=True
    )
    symbols = functions_of(program.read_bytes())
    starts, found = [start for start, _ in symbols], Counter[str]()
    for line in log.read_text().splitlines():
        address, size, times = line.split()
        place = bisect.bisect(starts, int(address, 16)) - 1
        name = symbols[place][1] if place >= 0 else "?"
        found[name.removeprefix("__tvm_ffi_").removesuffix("_compute_")] += int(size) * int(times)
    return found


def functions_of(elf: bytes) -> list[tuple[int, str]]:
    """(address, name) of the functions of a 64-bit program, by address."""
    (sections,), (size, number) = (
        struct.unpack_from("<Q", elf, 40),
        struct.unpack_from("<HH", elf, 58),
    )
    heads = [struct.unpack_from("<IIQQQQII", elf, sections + i * size) for i in range(number)]
    found = []
    for _, kind, _, _, offset, nbytes, link, _ in heads:
        if kind != _SYMBOL_TABLE:
            continue
        names = heads[link][4]
        for place in range(offset, offset + nbytes, 24):
            name, info, _, _, value, _ = struct.unpack_from("<IBBHQQ", elf, place)
            if info & 15 == _FUNCTION:
                end = elf.index(b"\0", names + name)
                found.append((value, elf[names + name : end].decode()))
    return sorted(found)


def print_cycles(artifact: Path, decode: Counter[str], options: argparse.Namespace) -> None:
    """Cycles of a round of the hot loops of decode's kernels, as llvm-mca forecasts them."""
    program = open_kernels(artifact, read_manifest(artifact)).program
    target, listings = program.target, dict[str, str]()
    assert isinstance(target, CPUTarget) and target.assembly is not None
    names = [name for name, _ in decode.most_common(options.kernels) if name in program.kernels]
    target.kernel_code({name: program.kernels[name] for name in names}, listings)
    cpus, rows = options.cpus.split(","), []
    for name in names:
        loop = hot_loop(listings[f"{name}.s"], target.assembly)
        products = target.assembly.products_of(loop)
        if products:
            cycles = (_cycles(loop, target, cpu) for cpu in cpus)
            rows.append((len(loop), products, *(f"{each:.1f}" for each in cycles), name))
    print(table(rows, ("instructions", "products", *cpus, "hot loop of")))


def _cycles(loop: list[str], target: CPUTarget, cpu: str) -> float:
    """Cycles of a round, over a hundred of them."""
    features = ",".join(f"+{feature}" for feature in target.features)
    command = ["llvm-mca", f"-mtriple={target.triple}", f"-mcpu={cpu}", f"-mattr={features}"]
    body = "\n".join(line for line in loop if not re.match(target.assembly.jump, line))
    said = subprocess.run(
        [*command, "-iterations=100"], input=body, capture_output=True, text=True, check=True
    )
    found = re.search(r"Total Cycles:\s+(\d+)", said.stdout)
    assert found is not None
    return int(found[1]) / 100


if __name__ == "__main__":
    main()
