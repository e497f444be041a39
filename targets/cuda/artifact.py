"""From kernels to an artifact: host halves and device images, linked with the C runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from morendo.codegen.build_cache import BuildCache
from morendo.codegen.dump_program import dump_assembly
from morendo.codegen.link import link_executable, link_model
from morendo.codegen.model_tables import ModelTables
from morendo.codegen.scratch import scratch_folder, write_scratch
from morendo.codegen.target import Track
from morendo.ir.plan import EXECUTABLE, LIBRARY

from .device_code import Halves, complete_source, machine_code, split_kernel
from .nvrtc import OWN, Image
from .report import device_codes

if TYPE_CHECKING:
    from tvm import tirx

    from morendo.codegen.lowering import Program
    from morendo.codegen.text_facts import TextFacts
    from morendo.ir.dump import Dump
    from morendo.ir.plan import Plan

    from .target import CUDATarget

Images = dict[str, Image]
"""What a kernel became, by architecture."""


def build_artifact(
    target: CUDATarget,
    program: Program,
    plan: Plan,
    text: TextFacts,
    directory: Path,
    track: Track,
    dump: Dump | None,
) -> None:
    """Write the library and the executable of an artifact; arguments as of `Target.build`.

    Raises:
        CompileError: when a kernel cannot be compiled, naming it.
    """
    with scratch_folder() as scratch:
        begin = time.perf_counter()
        with track("generate machine code", len(program.kernels)) as advance:
            halves, images = compile_kernels(target, program.kernels, advance)
        if dump:
            codes = device_codes(program.kernels, images)
            dump_assembly(dump, code_texts(halves, images), codes, time.perf_counter() - begin)
        objects = []
        for name, half in halves.items():
            objects.append(scratch / f"{name}.o")
            write_scratch(objects[-1], half.host)
        device = write_tables(list(halves.values()), list(images.values()), scratch)
        tables, toolchain = ModelTables(plan.kernels, plan.to_json(), text), target.host.toolchain
        with track("link", 2) as advance:
            link_model(objects, tables, directory / LIBRARY, toolchain, sources=[device])
            advance()
            link_executable([*objects, device], tables, directory / EXECUTABLE, toolchain)
            advance()


def compile_kernels(
    target: CUDATarget, kernels: Mapping[str, tirx.PrimFunc], advance
) -> tuple[dict[str, Halves], dict[str, Images]]:
    """Both halves of all kernels, and the machine code of the device halves."""
    cache = BuildCache()
    halves, images = {}, {}
    for name, function in kernels.items():
        named = function.with_attr("global_symbol", name)
        half = split_kernel(named, target.isa.arch, target.host.llvm, cache)
        halves[name] = half
        images[name] = {
            arch: machine_code(half.source, arch, cache) for arch in target.architectures
        }
        advance()
    return halves, images


def write_tables(halves: Sequence[Halves], images: Sequence[Images], folder: Path) -> Path:
    """Write a C file with the tables that `device.c` declares, and the images beside it.

    A module is a kernel; it has machine code for each architecture and PTX of the first one, where
    later GPUs can have it.
    """
    functions, rows, data = [], [], []
    for module, (half, made) in enumerate(zip(halves, images, strict=True)):
        for one in half.launches:
            row = f'"{one.name}", "{one.parameters}", "{one.sizes}", {module}'
            functions.append(f"    {{{row}}},")
        first = next(iter(made))
        entries = [(arch, 0, image.cubin) for arch, image in made.items()]
        if not first.endswith(OWN):
            entries.append((first, 1, made[first].ptx + b"\0"))
        for arch, portable, content in entries:
            symbol = f"device_image_{len(data)}"
            path = folder / f"{symbol}.bin"
            write_scratch(path, content)
            data.append(_embedded(symbol, path))
            rows.append(f"    {{{module}, {_capability(arch)}, {portable}, {symbol}}},")
    lines = [
        "typedef struct { const char *name, *parameters, *sizes; int module; } DeviceFunction;",
        "typedef struct { int module, capability, portable; const unsigned char *data; } "
        "DeviceImage;",
        *data,
        *_table("DeviceFunction", "device_function", functions),
        *_table("DeviceImage", "device_image", rows),
        f"const int device_module_count = {len(halves)};",
    ]
    path = folder / "device_tables.c"
    write_scratch(path, ("\n".join(lines) + "\n").encode())
    return path


def _capability(arch: str) -> int:
    return int(arch.removeprefix("sm_").removesuffix(OWN))


def _embedded(symbol: str, path: Path) -> str:
    """C text that has the bytes of a file under a name."""
    return (
        f'__asm__(".section .rodata\\n.hidden {symbol}\\n.globl {symbol}\\n.balign 64\\n'
        f'{symbol}:\\n.incbin \\"{path.resolve()}\\"\\n.text\\n");\n'
        f"extern const unsigned char {symbol}[];"
    )


def _table(kind: str, name: str, rows: Sequence[str]) -> list[str]:
    return [
        f"const {kind} {name}s[] = {{",
        *rows,
        "    {0},",
        "};",
        f"const int {name}_count = {len(rows)};",
    ]


def code_texts(halves: Mapping[str, Halves], images: Mapping[str, Images]) -> dict[str, str]:
    """CUDA C++ and PTX of each kernel, by the names of files."""
    files = {}
    for name, half in halves.items():
        files[f"{name}.cu"] = complete_source(half.source)
        files[f"{name}.ptx"] = next(iter(images[name].values())).ptx.decode()
    return files
