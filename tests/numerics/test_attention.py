"""Cached attention against float64, over a cache whose unwritten part is NaN."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from morendo.codegen.cpu.kernels.attention import cached_attention
from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector_blocks import Rows
from morendo.ir import reference_ops
from morendo.ir.reference_attention import MIDDLE, stored_heads, stored_keys
from tests.numerics.kernel_runner import (
    build,
    compile_function,
    frozen,
    native_isas,
    poisoned,
    runnable_widths,
)

WIDTHS = runnable_widths()


def filled(cache: KVCache, keys: NDArray, values: NDArray) -> tuple[NDArray, ...]:
    """The caches that hold keys and values [length, Hkv, D]; the rest is NaN."""
    if cache.integers:
        return filled_with_codes(cache, keys, values)
    length = keys.shape[0]
    by_position = poisoned((cache.context, cache.kv_heads, cache.head_dim))
    by_position[:length] = keys
    tiles = by_position.reshape(-1, 16, cache.kv_heads, cache.head_dim).transpose(2, 0, 3, 1)
    v_cache = poisoned(cache.arrays[1].shape)
    v_cache[:, :length] = values.transpose(1, 0, 2)
    as_stored = [np.ascontiguousarray(a).astype(cache.dtype) for a in (tiles, v_cache)]
    return frozen(as_stored[0]), frozen(as_stored[1])


def filled_with_codes(
    cache: KVCache, keys: NDArray, values: NDArray, offset: int = 0
) -> tuple[NDArray, ...]:
    """The same with codes; where nothing is written codes are random and scales NaN."""
    shapes = [array.shape for array in cache.arrays]
    rng = np.random.default_rng(1)
    codes = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes[:2]]
    scales = [poisoned(shape) for shape in shapes[2:]]
    for at, (key, value) in enumerate(zip(keys, values, strict=True)):
        for part, heads in enumerate((key, value)):
            make = stored_heads if part else stored_keys
            own, scale, middle = make(heads[None, None], int(cache.dtype[-1]))
            scales[part][:, at] = scale[0, 0]
            if cache.parts > 1:
                scales[2 + part][:, at] = middle[0, 0]
                offset = MIDDLE
            stored = np.full((cache.kv_heads, cache.padded_dim), offset, np.uint8)
            stored[:, : cache.head_dim] = (own[0, 0].astype(np.int16) + offset).astype(np.uint8)
            if cache.parts > 1:
                low, high = np.split(stored, 2, axis=1)
                stored = low | (high << 4)
            if part:
                codes[1][:, at // 4, :, at % 4] = stored
            else:
                words = stored.reshape(cache.kv_heads, -1, 4)
                codes[0][:, at // cache.tile, :, at % cache.tile] = words
    return tuple(frozen(array) for array in (*codes, *scales))


def attention(
    q: NDArray, keys: NDArray, values: NDArray, position: int, scores: Scores, slopes: NDArray
) -> NDArray:
    """q [M, H, D] over keys and values [length, Hkv, D] in float64."""
    tokens, heads, _ = q.shape
    group = heads // keys.shape[1]
    k, v = (np.repeat(a.astype(np.float64), group, axis=1) for a in (keys, values))
    logits = np.einsum("mhd,jhd->hmj", q.astype(np.float64), k) * scores.scale
    if scores.softcap:
        logits = scores.softcap * np.tanh(logits / scores.softcap)
    query, key = position + np.arange(tokens)[:, None], np.arange(keys.shape[0])[None]
    if scores.alibi:
        logits = logits + slopes[:, None, None].astype(np.float64) * (key - query)
    seen = key <= query
    if scores.window:
        seen &= key > query - scores.window
    logits = np.where(seen, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hmj,jhd->mhd", weights, v)


@dataclass(frozen=True)
class Case:
    cache: KVCache
    heads: int
    max_tokens: int
    points: list[tuple[int, int]] = field(hash=False)  # (tokens, position)
    scores: Scores = field(default_factory=lambda: Scores(0.125))
    spread: float = 1.0

    def __str__(self) -> str:
        return f"m{self.max_tokens}h{self.heads}-{self.cache.name}-{self.scores.name}"


STARTS = [(1, p) for p in (0, 1, 15, 16, 17, 63, 64, 100, 255)]
CHUNKS = [(t, p) for t in (1, 2, 7, 15, 16, 17) for p in (0, 1, 15, 16, 17, 100)]
SMALL, WIDE = KVCache(3, 64, 256), KVCache(1, 64, 1040)
CASES = [
    Case(SMALL, 9, 1, STARTS),
    Case(SMALL, 9, 17, CHUNKS),
    Case(WIDE, 2, 1, [(1, 1039), (1, 600)]),
    Case(WIDE, 2, 256, [(256, 0), (256, 784), (100, 900)]),
    Case(KVCache(2, 64, 256, "float16"), 4, 1, STARTS),
    Case(KVCache(2, 64, 256, "float16"), 4, 16, [(16, 0), (15, 77)]),
    *(
        Case(KVCache(1, dim, 176), 2, m, [(m, 0), (m, 77), (1, 175)])
        for dim in (8, 16, 24, 80, 96, 128, 256)
        for m in (1, 9)
    ),
    Case(KVCache(1, 16, 96), 19, 1, [(1, 0), (1, 95)]),  # more query heads than fit a tile
    Case(KVCache(20, 16, 96), 20, 1, [(1, 0), (1, 95)]),  # one query head each
    *(
        Case(KVCache(2, 32, 400), 4, m, [(m, p) for p in (0, 3, 37, 64, 100, 383)], scores)
        for m in (1, 16)
        for scores in (
            Scores(0.2, window=1),
            Scores(0.2, window=40),
            Scores(0.2, window=64),
            Scores(0.2, softcap=3.0),
            Scores(0.2, alibi=True),
            Scores(0.2, window=70, softcap=20.0, alibi=True),
        )
    ),
    Case(SMALL, 9, 16, [(16, 100)], spread=30.0),  # scores in the thousands
]


RUNS = [
    (isa, case)
    for isa in WIDTHS
    for case in (CASES if isa in native_isas() else CASES[::4])  # an emulator is slow
]


@pytest.mark.parametrize(
    ("isa", "case"), RUNS, ids=lambda x: x.name if isinstance(x, VectorISA) else str(x)
)
def test_cached_attention_is_close_to_float64(isa, case: Case):
    cache, dim = case.cache, case.cache.head_dim
    rng = np.random.default_rng(0)
    stride, offset = case.heads * dim + 8, 3
    function = build(
        cached_attention, isa, max_tokens=case.max_tokens, heads=case.heads, cache=cache,
        scores=case.scores, q_rows=Rows(stride, offset),
    )  # fmt: skip
    kernel = compile_function(function, isa)
    slopes = frozen(np.geomspace(0.5, 0.01, case.heads).astype(np.float32))
    for tokens, position in case.points:
        length = position + tokens
        q = rng.standard_normal((case.max_tokens, stride)).astype(np.float32) * case.spread
        keys, values = rng.standard_normal((2, length, cache.kv_heads, dim)).astype(cache.dtype)
        out = poisoned((case.max_tokens, case.heads * dim))
        extra = [slopes] if case.scores.alibi else []
        kernel(frozen(q), *filled(cache, keys, values), *extra, out, tokens, position)
        heads = q[:tokens, offset : offset + case.heads * dim].reshape(tokens, case.heads, dim)
        expected = attention(heads, keys, values, position, case.scores, slopes)
        # float32 sums of up to 256 products; a score of s is off by about s * 2^-23.
        tolerance = 1e-5 * max(1.0, case.spread)
        got = out[:tokens].reshape(tokens, case.heads, dim)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=f"at {position}")
        assert np.isnan(out[tokens:]).all()


CODES, LONG_CODES = KVCache(3, 64, 256, "int8"), KVCache(1, 64, 1040, "int8")
FEW, LONG_FEW = KVCache(3, 64, 256, "int4"), KVCache(1, 64, 1040, "int4")
INTEGER_CASES = [
    Case(CODES, 9, 1, STARTS),
    Case(CODES, 9, 17, CHUNKS),
    Case(LONG_CODES, 2, 1, [(1, 1039), (1, 600)]),
    Case(LONG_CODES, 2, 256, [(256, 784), (100, 900)]),
    *(
        Case(KVCache(1, dim, 176, "int8"), 2, m, [(m, 0), (m, 77), (1, 175)])
        for dim in (6, 8, 24, 80, 128)
        for m in (1, 9)
    ),
    Case(KVCache(1, 16, 96, "int8"), 19, 1, [(1, 0), (1, 95)]),
    *(
        Case(KVCache(2, 32, 400, "int8"), 4, m, [(m, p) for p in (0, 3, 64, 383)], scores)
        for m in (1, 16)
        for scores in (
            Scores(0.2, window=40),
            Scores(0.2, softcap=3.0),
            Scores(0.2, window=70, softcap=20.0, alibi=True),
        )
    ),
    Case(CODES, 9, 16, [(16, 100)], spread=30.0),
    Case(CODES, 9, 16, [(16, 100)], spread=0.0),
    Case(FEW, 9, 1, STARTS),
    Case(FEW, 9, 17, CHUNKS),
    Case(LONG_FEW, 2, 1, [(1, 1039), (1, 600)]),
    Case(LONG_FEW, 2, 256, [(256, 784), (100, 900)]),
    *(
        Case(KVCache(1, dim, 176, "int4"), 2, m, [(m, 0), (m, 77), (1, 175)])
        for dim in (6, 24, 80, 128)
        for m in (1, 9)
    ),
    Case(
        KVCache(2, 32, 400, "int4"),
        4,
        16,
        [(16, 3), (16, 383)],
        Scores(0.2, window=70, softcap=20.0, alibi=True),
    ),
    Case(FEW, 9, 16, [(16, 100)], spread=0.0),
]
INTEGER_RUNS = [
    (isa, case)
    for isa in WIDTHS
    for case in (INTEGER_CASES if isa in native_isas() else INTEGER_CASES[::5])
]


@pytest.mark.parametrize(
    ("isa", "case"), INTEGER_RUNS, ids=lambda x: x.name if isinstance(x, VectorISA) else str(x)
)
def test_attention_over_codes_is_the_references(isa, case: Case):
    """All sums are of integers, so what is left is exp's error, and a weight that it moves over
    the middle between two codes: one of 127 of the largest weight.
    """
    cache, dim = case.cache, case.cache.head_dim
    rng = np.random.default_rng(0)
    function = build(
        cached_attention,
        isa,
        max_tokens=case.max_tokens,
        heads=case.heads,
        cache=cache,
        scores=case.scores,
    )
    kernel = compile_function(function, isa)
    slopes = frozen(np.geomspace(0.5, 0.01, case.heads).astype(np.float32))
    extra, alibi = ([slopes], slopes) if case.scores.alibi else ([], None)
    for tokens, position in case.points:
        q = rng.standard_normal((case.max_tokens, case.heads, dim)).astype(np.float32) * case.spread
        length = position + tokens
        keys, values = rng.standard_normal((2, length, cache.kv_heads, dim)).astype(np.float32)
        out = poisoned((case.max_tokens, case.heads * dim))
        stored = filled_with_codes(cache, keys, values, isa.signed_offset)
        rows = frozen(q.reshape(case.max_tokens, -1))
        kernel(rows, *stored, *extra, out, tokens, position)
        expected = reference_ops.attention(
            q[None, :tokens], keys[None], values[None], case.scores.scale, case.scores.window,
            case.scores.softcap, alibi, cache_bits=int(cache.dtype[-1]),
        )[0]  # fmt: skip
        off = np.abs(out[:tokens].reshape(expected.shape) - expected)
        scale = max(1.0, case.spread)
        assert off.max() < 0.06 * scale, f"at {position}"
        assert np.mean(off > 1e-4 * scale) < 0.01, f"at {position}"
        assert np.isnan(out[tokens:]).all()


@pytest.mark.parametrize("isa", WIDTHS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_last_query_alone_attends(isa, dtype):
    """Some contexts are cut into parts, and the rows of the queries before hold what is no number.

    The dots of integers, and what rounds, are those of `test_attention_over_codes`.
    """
    cache, heads, scores = KVCache(2, 24, 1040, dtype), 6, Scores(0.2, window=600, alibi=True)
    rng, stride, offset = np.random.default_rng(0), heads * 24 + 8, 3
    function = build(
        cached_attention, isa, max_tokens=33, heads=heads, cache=cache, scores=scores,
        q_rows=Rows(stride, offset), last=True,
    )  # fmt: skip
    kernel = compile_function(function, isa)
    slopes = frozen(np.geomspace(0.5, 0.01, heads).astype(np.float32))
    for tokens, position in [(33, 0), (1, 0), (1, 64), (31, 1009)]:
        length = position + tokens
        q = poisoned((33, stride))
        q[tokens - 1] = rng.standard_normal(stride)
        keys, values = rng.standard_normal((2, length, 2, 24)).astype(np.float32)
        offset_of_codes = {"offset": isa.signed_offset} if cache.integers else {}
        fill = filled_with_codes if cache.integers else filled
        out = poisoned((1, heads * 24))
        stored = fill(cache, keys, values, **offset_of_codes)
        kernel(frozen(q), *stored, slopes, out, tokens, position)
        query = q[None, tokens - 1 : tokens, offset : offset + heads * 24].reshape(1, 1, heads, 24)
        expected = reference_ops.attention(
            query, keys[None], values[None], 0.2, 600, 0.0, slopes,
            cache_bits=8 if cache.integers else 32,
        )[0, 0]  # fmt: skip
        close = 0.06 if cache.integers else 1e-5
        np.testing.assert_allclose(out.reshape(heads, 24), expected, rtol=0, atol=close)
