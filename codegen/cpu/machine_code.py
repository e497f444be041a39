"""Kernels to object files, with LLVM."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import tvm
import tvm_ffi
from tvm import tirx

from morendo.codegen.build_cache import BuildCache, cache_key
from morendo.codegen.scratch import write_scratch
from morendo.ir.errors import CompileError

from .listing import readable


def compile_kernels(
    kernels: Mapping[str, tirx.PrimFunc],
    llvm: tvm.target.Target,
    directory: Path,
    advance: Callable[[], None] = lambda: None,
    listings: dict[str, str] | None = None,
) -> list[Path]:
    """Generate machine code on all CPUs, one object file a kernel.

    Args:
        kernels: functions by their names.
        llvm: the target of TVM's code generator.
        directory: where the object files go.
        advance: called after each kernel, for progress.
        listings: is filled with the assembly of each kernel by its name.

    Raises:
        CompileError: when the code generator refuses a kernel, naming it, or the disk is full.
    """
    cache, paths = BuildCache(), []
    modules = {
        name: tvm.IRModule({name: function.with_attr("global_symbol", name)})
        for name, function in kernels.items()
    }
    make = partial(_made, cache=cache, llvm=llvm, listed=listings is not None)
    with _workers() as workers:
        for name, (code, listing) in zip(
            modules, workers.map(make, modules, modules.values()), strict=True
        ):
            path = directory / f"{name}.o"
            write_scratch(path, code)
            paths.append(path)
            if listings is not None:
                listings[name] = listing
            advance()
    return paths


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """A thread for each CPU: TVM gives up Python's lock while it works. After an error or Ctrl-C,
    what has not begun is dropped.
    """
    workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "machine code")
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)


def _made(
    name: str, module: tvm.IRModule, *, cache: BuildCache, llvm: tvm.target.Target, listed: bool
) -> tuple[bytes, str]:
    """The object file of a kernel, and its assembly if it is to be listed."""
    try:
        return _kept_code(cache, module, llvm, listed)
    except Exception as error:  # TVM raises many types across its C interface
        words = [line for line in str(error).splitlines() if line.strip()]
        raise CompileError(
            f"code generation failed ({words[-1] if words else type(error).__name__})",
            where=f"kernel {name}",
            hint="this is a defect of morendo; rerun with --debug and report it",
        ) from error


def _key(module: tvm.IRModule, llvm: tvm.target.Target) -> str:
    """Names the object file of a kernel: its code, the machine, and who translates it.

    The structural hash sees what the text may leave out, the text what the hash may confuse.
    """
    versions = [version(name) for name in ("apache-tvm", "apache-tvm-ffi")]
    return cache_key(
        *versions, str(llvm), str(tvm_ffi.structural_hash(module)), module.script(show_meta=True)
    )


def _kept_code(
    cache: BuildCache, module: tvm.IRModule, llvm: tvm.target.Target, listed: bool
) -> tuple[bytes, str]:
    """The object file of a kernel and, if it is to be listed, its assembly, kept beside it."""
    key = _key(module, llvm)
    listing_key = cache_key(key, "listing")
    code = cache.load(key)
    listing = cache.load(listing_key) if listed else b""
    if code is None or listing is None:
        built = tvm.tirx.build(module, target=llvm)
        if code is None:
            code = _object_code(built)
            cache.store(key, code)
        if listing is None:
            listing = zlib.compress(readable(built.inspect_source("s")).encode(), 1)
            cache.store(listing_key, listing)
    return code, zlib.decompress(listing).decode() if listing else ""


def _object_code(built: tvm.runtime.Module) -> bytes:
    """The object file of a kernel. LLVM ends the process when a disk is full, so that it writes to
    memory, and what it wrote is written elsewhere by us.
    """
    memory = os.memfd_create("kernel")
    try:
        built.write_to_file(f"/proc/self/fd/{memory}", "o")
        return os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)
