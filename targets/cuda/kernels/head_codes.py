"""Codes of one head by a warp, exactly those of `ir/reference_attention.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.ir.formats import ceil_div
from morendo.ir.reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM, STEPS
from morendo.ir.reference_attention import MIDDLE
from morendo.targets.cuda.blocks import (
    WARP,
    across_warp,
    barrier,
    call,
    local,
    shared,
    strided,
    when,
)
from morendo.targets.cuda.intrinsics import SET_FLOAT

Element = Callable[[Any], Any]
"""The float32 element of a head at an index, which is asked for inside of the head only."""

_NIBBLE = 4


def steps_for(span: Any, steps: int) -> Any:
    """How many of so many steps across the span one is; 0 where the span is next to nothing."""
    usable = span >= T.float32(SMALLEST_MAXIMUM)
    return T.bind(tirx.Select(usable, T.float32(steps) / span, T.float32(0.0)))


def round_head(element: Element, dim: int, lane: Any, keep: Callable[[Any, Any], None]) -> Any:
    """Round a head as `quantized_heads` does; gives the scale.

    Args:
        keep: takes d and the code int32, 0 behind the end of the head.
    """
    count = ceil_div(dim, WARP)
    values, largest = local(count, T.float32(0.0)), local(1, T.float32(0.0))
    for i in range(count):
        d = T.bind(lane + i * WARP)
        with when(d < dim):
            T.buffer_store(values, element(d), [i])
        T.buffer_store(largest, T.max(largest[0], T.abs(values[i])), [0])
    span = across_warp(largest[0], T.max)
    inverse = steps_for(span, CODE_LIMIT)
    for i in range(count):
        d = T.bind(lane + i * WARP)
        keep(d, T.bind(T.cast(T.nearbyint(values[i] * inverse), "int32")))
    return T.bind(span / T.float32(CODE_LIMIT))


def center_head(
    element: Element, dim: int, stored: int, lane: Any, keep: Callable[[Any, Any], None]
) -> tuple[Any, Any]:
    """Round a head as `centered_heads` does; gives the scale and the middle.

    Args:
        stored: bytes of the codes: those of d and d + stored lie in one, `MIDDLE` added.
        keep: takes the number of a byte and its two codes, int32.
    """
    ends = local(2, T.bind(element(T.int32(0))))
    for i in range(ceil_div(dim, WARP)):
        d = T.bind(lane + i * WARP)
        with when(d < dim):
            value = T.bind(element(d))
            T.buffer_store(ends, T.min(ends[0], value), [0])
            T.buffer_store(ends, T.max(ends[1], value), [1])
    low, high = across_warp(ends[0], T.min), across_warp(ends[1], T.max)
    spread = T.bind(high - low)
    inverse = steps_for(spread, STEPS)

    def code(d: Any) -> Any:
        steps = local(1, T.int32(MIDDLE), "int32")
        with when(d < dim):
            rounded = T.cast(T.nearbyint((element(d) - low) * inverse), "int32")
            T.buffer_store(steps, T.min(rounded, T.int32(STEPS)), [0])
        return steps[0]

    for i in range(ceil_div(stored, WARP)):
        byte = T.bind(lane + i * WARP)
        with when(byte < stored):
            keep(byte, T.bind(code(byte) | (code(byte + stored) << _NIBBLE)))
    scale = T.bind(spread / T.float32(STEPS))
    return scale, T.bind(low + T.float32(MIDDLE) * scale)


def turned_head(element: Element, dim: int, thread: Any, threads: int) -> Element:
    """A head times the Hadamard matrix, as `hadamard` has it, by all threads of the block."""
    turned, half = shared((dim,)), 1

    def put(d: Any, value: Any) -> None:
        call(SET_FLOAT, T.address_of(turned[d]), value)  # TVM would want barriers within a step

    strided(thread, threads, dim, lambda d: put(d, element(d)))
    barrier()
    while half < dim:

        def step(pair: Any, half: int = half) -> None:
            first = T.bind(pair // half * (2 * half) + pair % half)
            a, b = local(1, turned[first]), local(1, turned[first + half])
            put(first, a[0] + b[0])
            put(first + half, a[0] - b[0])

        strided(thread, threads, dim // 2, step)
        barrier()
        half *= 2
    return lambda d: turned[d]
