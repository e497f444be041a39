"""Kernels on an NVIDIA GPU by its driver, from Python: what benchmarks/cuda.py times them with."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from tvm import tirx

_SIGNATURE = r'extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?{name}\((.*?)\) \{{'
_MAJOR, _MINOR = 75, 76


class Driver:
    """The first GPU.

    Raises:
        OSError: without a driver, or without a GPU.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 1)
        self._device, self._stream = device, stream

    def _call(self, name: str, *arguments: Any) -> None:
        error = getattr(self._library, name)(*arguments)
        if error:
            raise OSError(f"{name} failed (CUDA error {error})")

    @property
    def arch(self) -> str:
        """Such as "sm_80"."""
        found = (ctypes.c_int(), ctypes.c_int())
        for value, which in zip(found, (_MAJOR, _MINOR), strict=True):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return "sm_" + "".join(str(value.value) for value in found)

    def memory(self, array: np.ndarray) -> ctypes.c_void_p:
        """A copy of an array on the GPU, which is never given back."""
        at = ctypes.c_void_p()
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemAlloc_v2", ctypes.byref(at), size)
        source = array.ctypes.data_as(ctypes.c_void_p)
        self._call("cuMemcpyHtoDAsync_v2", at, source, size, self._stream)
        self._call("cuStreamSynchronize", self._stream)
        return at

    def kernel(self, image: bytes, name: str) -> ctypes.c_void_p:
        """A function of an image."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), image)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def microseconds(
        self, function: ctypes.c_void_p, grid: tuple[int, int], threads: int,
        arguments: list[list[Any]], launches: int,
    ) -> float:  # fmt: skip
        """The mean of so many launches in one graph, which take sets of arguments in turn."""
        sets = []
        for cells in arguments:
            pointers = [ctypes.cast(ctypes.byref(cell), ctypes.c_void_p) for cell in cells]
            sets.append((ctypes.c_void_p * len(pointers))(*pointers))
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, 2)
        for i in range(launches):
            sizes = (*grid, 1, threads, 1, 1, 0)
            self._call("cuLaunchKernel", function, *sizes, self._stream, sets[i % len(sets)], None)
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphLaunch", ready, self._stream)  # warms up
        events = (ctypes.c_void_p(), ctypes.c_void_p())
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        self._call("cuEventRecord", events[0], self._stream)
        self._call("cuGraphLaunch", ready, self._stream)
        self._call("cuEventRecord", events[1], self._stream)
        self._call("cuEventSynchronize", events[1])
        passed = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(passed), *events)
        return passed.value * 1e3 / launches


def parameters(source: str, name: str) -> list[str]:
    """The names of a device function's parameters, in its order."""
    found = re.search(_SIGNATURE.format(name=re.escape(name)), source)
    assert found is not None
    return [part.split()[-1].removesuffix("_ptr") for part in found[1].split(", ")]


def random_arguments(
    driver: Driver, function: tirx.PrimFunc, names: list[str], values: Mapping[str, int]
) -> list[Any]:
    """What a kernel takes: arrays of random bytes, and of ones for floats.

    Args:
        values: of numbers, whether they are passed or lie in memory; also of extents.
    """
    rng, made = np.random.default_rng(0), {}
    for param in function.params:
        name = str(param.name)
        extents = getattr(param, "shape", None)
        if extents is None:
            made[name] = ctypes.c_int(values[name])
            continue
        shape = [values[str(e.name)] if hasattr(e, "name") else int(e) for e in extents]
        dtype = np.dtype(str(param.dtype))
        if name in values:
            array = np.full(shape, values[name], dtype)
        elif dtype.kind == "f":
            array = np.ones(shape, dtype)
        else:
            bytes_ = rng.integers(0, 100, (int(np.prod(shape)) * dtype.itemsize,), dtype=np.uint8)
            array = bytes_.view(dtype).reshape(shape)
        made[name] = driver.memory(np.ascontiguousarray(array))
    return [made[name] for name in names]
