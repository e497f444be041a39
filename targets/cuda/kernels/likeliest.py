"""The likeliest token, found where the logits are: its id is all that the host has to read.

Blocks take parts of the vocabulary, then a warp takes what they found. A logit and its token become
one number whose largest is wanted, so that no order of reductions changes the result.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector_blocks import kernel_name
from morendo.targets.cuda.blocks import (
    WARP,
    across_block,
    across_warp,
    kernel,
    launch,
    local,
    strided,
    when,
)

PARTS = WARP
_THREADS = 256
LARGEST = (1 << 31) - 1
_INFINITY = 0x7F800000  # the bits of a float32
HIGH = 1 << 32


def key_of(logit: Any, token: Any) -> Any:
    """An int64 that is larger for larger logits, then for smaller ids: int32 in both halves. What
    is not a number is the largest.
    """
    bits = T.bind(T.reinterpret("int32", logit))
    size = T.bind(bits & T.int32(LARGEST))
    rank = tirx.Select(bits < 0, -size, size)  # -0 is 0
    rank = tirx.Select(size > T.int32(_INFINITY), T.int32(LARGEST), rank)
    return T.cast(rank, "int64") * T.int64(HIGH) + T.cast(T.int32(LARGEST) - token, "int64")


def likeliest_parts(isa: Any, *, vocabulary: int) -> tirx.PrimFunc:
    """The largest key of each part of the vocabulary.

    Parameters of the kernel: logits f32[1, V], keys i64[PARTS].
    """
    with kernel(kernel_name("likeliest_parts", v=vocabulary)) as k:
        logits = k.buffer("logits", (1, vocabulary))
        keys = k.buffer("keys", (PARTS,), "int64")
        with launch([PARTS], _THREADS) as (part, thread):
            best = local(1, T.int64(-LARGEST * HIGH), "int64")

            def take(token: Any) -> None:
                key = key_of(T.bind(logits[0, token]), token)
                T.buffer_store(best, T.max(best[0], key), [0])

            strided(part * _THREADS + thread, PARTS * _THREADS, vocabulary, take)
            largest = across_block(best[0], thread, _THREADS, T.max)
            with when(thread == 0):
                T.buffer_store(keys, largest, [part])
    return k.function


def likeliest(isa: Any) -> tirx.PrimFunc:
    """The token of the largest key; -1 where a logit is not a number, or the largest is infinite.

    Parameters of the kernel: keys i64[PARTS], ids i32[1].
    """
    with kernel("likeliest") as k:
        keys = k.buffer("keys", (PARTS,), "int64")
        ids = k.buffer("ids", (1,), "int32")
        with launch([1], WARP) as (_, lane):
            best = across_warp(keys[lane], T.max)
            with when(lane == 0):
                rank = T.bind(T.cast(best >> T.int64(32), "int32"))
                token = T.int32(LARGEST) - T.cast(best & T.int64(LARGEST), "int32")
                finite = tirx.all(rank < T.int32(_INFINITY), rank > T.int32(-_INFINITY))
                T.buffer_store(ids, tirx.Select(finite, token, T.int32(-1)), [0])
    return k.function
