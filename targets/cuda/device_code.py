"""Kernels in two halves: what the host calls as machine code, and what it launches as CUDA C++.

TVM splits a kernel that has launches in it. The host half checks the arguments and computes the
launch sizes, then calls the runtime by the name of the device half with the parameters of that one
(in order of first use) and the sizes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.build import codegen_build, split_host_device_mods

from morendo.codegen.build_cache import BuildCache, cache_key
from morendo.ir.errors import CompileError

from .intrinsics import prelude
from .nvrtc import Image, compile_source
from .nvrtc import version as compiler_version

# In place of the header of TVM's source, which wants headers of the C++ library.
_TYPES = """\
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef long int64_t; typedef unsigned long uint64_t;
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short
"""
_HALF = "#include <cuda_fp16.h>\n"
_END_OF_HEADER = "#endif"
_LAST_OF_HEADER = "#define ushort"
_SIZES = {
    "blockIdx.x": "x",
    "blockIdx.y": "y",
    "blockIdx.z": "z",
    "threadIdx.x": "X",
    "threadIdx.y": "Y",
    "threadIdx.z": "Z",
    "tirx.use_dyn_shared_memory": "s",
}
RESIDENT_BLOCKS = "morendo.resident_blocks"
"""Attribute of a kernel: how many of its blocks a multiprocessor should have at a time. Without it
the compiler aims at a number of its own, for which it may spill registers.
"""
COPIED_BYTES = "morendo.copied_bytes"
"""Attribute of a kernel: what a block copies to shared memory for a turn of its pipeline."""
_BOUNDS = "__launch_bounds__("
_CODES = {"int32": "i", "int64": "l", "float32": "f"}


@dataclass(frozen=True)
class Launch:
    """A device function as the runtime sees it.

    Attributes:
        name: its symbol.
        parameters: a letter each: p pointer, i int32, l int64, f float32.
        sizes: what the numbers after them are: x y z blocks, X Y Z threads, s bytes of shared
            memory.
    """

    name: str
    parameters: str
    sizes: str


@dataclass(frozen=True)
class Halves:
    """A kernel, split.

    Attributes:
        host: an object file with the symbol __tvm_ffi_NAME.
        source: the CUDA C++ of its device functions, without what stands before all kernels.
        launches: the device functions.
    """

    host: bytes
    source: str
    launches: tuple[Launch, ...]


def split_kernel(
    function: tirx.PrimFunc, arch: str, host: Mapping[str, Any], cache: BuildCache
) -> Halves:
    """Translate a kernel; what was translated before is kept.

    Args:
        function: has a global_symbol.
        arch: the architecture that TVM writes C++ for; one text serves all later ones.
        host: TVM's target of the host half.

    Raises:
        CompileError: when TVM refuses the kernel, naming it.
    """
    name = str(function.attrs["global_symbol"])
    module = tvm.IRModule({name: function})
    versions = [version(package) for package in ("apache-tvm", "apache-tvm-ffi")]
    text = module.script(show_meta=True)
    key = cache_key(*versions, arch, json.dumps(dict(host)), _hash(module), text)
    about, code = cache.load(key), cache.load(cache_key(key, "host"))
    if about is not None and code is not None:
        data = json.loads(about)
        return Halves(code, data["source"], tuple(Launch(**one) for one in data["launches"]))
    try:
        halves = _split(module, arch, host)
    except Exception as error:  # TVM raises many types across its C interface
        words = [line for line in str(error).splitlines() if line.strip()]
        raise CompileError(
            f"code generation failed ({words[-1] if words else type(error).__name__})",
            where=f"kernel {name}",
            hint="this is a defect of morendo; rerun with --debug and report it",
        ) from error
    data = {"source": halves.source, "launches": [asdict(one) for one in halves.launches]}
    cache.store(key, json.dumps(data).encode())
    cache.store(cache_key(key, "host"), halves.host)
    return halves


def _hash(module: tvm.IRModule) -> str:
    return str(tvm_ffi.structural_hash(module))


def _split(module: tvm.IRModule, arch: str, host: Mapping[str, Any]) -> Halves:
    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host=dict(host))
    pipeline, host_passes, device_passes = tirx.get_tir_pipeline("s_tir")
    lowered = pipeline(tirx.transform.BindTarget(target)(module))
    host_module, device_modules = split_host_device_mods(lowered)
    llvm = tvm.target.Target(dict(host))
    code = codegen_build(host_passes()(host_module), llvm)
    sources, launches = [], []
    for device_target, device_module in device_modules.items():
        finished = device_passes()(device_module)
        sources.append(_body(codegen_build(finished, device_target).inspect_source()))
        launches += [_launch(f) for f in device_module.functions.values()]
    source = "".join(sources)
    (function,) = module.functions.values()
    if RESIDENT_BLOCKS in function.attrs:
        resident = int(function.attrs[RESIDENT_BLOCKS])
        source = re.sub(rf"({re.escape(_BOUNDS)}\d+)", rf"\1, {resident}", source)
    return Halves(_object_code(code), source, tuple(launches))


def _object_code(built: Any) -> bytes:
    memory = os.memfd_create("kernel")
    try:
        built.write_to_file(f"/proc/self/fd/{memory}", "o")
        return os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)


def _launch(function: tirx.PrimFunc) -> Launch:
    codes = [
        "p" if isinstance(param.ty, tvm.ir.PointerType) else _CODES[str(param.ty.dtype)]
        for param in function.params
    ]
    sizes = [_SIZES[str(tag)] for tag in function.attrs["tirx.kernel_launch_params"]]
    return Launch(str(function.attrs["global_symbol"]), "".join(codes), "".join(sizes))


def _body(source: str) -> str:
    """TVM's kernels and helpers, without its header."""
    end = source.index(_END_OF_HEADER, source.index(_LAST_OF_HEADER))
    return source[end + len(_END_OF_HEADER) :]


def complete_source(body: str) -> str:
    """What the compiler takes: types, our own device functions, then kernels."""
    return (_HALF if "half" in body else "") + _TYPES + prelude() + body


def machine_code(body: str, arch: str, cache: BuildCache) -> Image:
    """Compile the device half of a kernel; what was compiled before is kept.

    Raises:
        CompileError: when the compiler refuses it.
    """
    source = complete_source(body)
    keys = [cache_key(compiler_version(), arch, what, source) for what in ("cubin", "ptx", "log")]
    kept = [cache.load(key) for key in keys]
    if kept[0] is not None and kept[1] is not None and kept[2] is not None:
        return Image(kept[0], kept[1], kept[2].decode())
    image = compile_source(source, arch)
    for key, data in zip(keys, (image.cubin, image.ptx, image.log.encode()), strict=True):
        cache.store(key, data)
    return image
