"""What pruning tokens adds to kernels, against the reference: importance, the choice, positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from morendo.codegen.cpu.kernels.attention import cached_attention
from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.kernels.received_attention import received_attention
from morendo.codegen.cpu.kernels.rope import Rotation, rope, rope_append_kv
from morendo.codegen.cpu.kernels.token_pruning import prune_tokens
from morendo.codegen.cpu.vectors.vector_blocks import Rows
from morendo.ir import reference_ops
from morendo.ir.pruning import MOST_DROPPED, kept, kept_rows, stage_counts
from tests.numerics.kernel_runner import (
    build,
    compile_function,
    frozen,
    poisoned,
    runnable_widths,
)
from tests.numerics.test_attention import filled, filled_with_codes
from tests.numerics.test_small_kernels import cache_views, frequencies, random, rotated

ISAS = pytest.mark.parametrize("isa", runnable_widths(), ids=lambda isa: isa.name)


def test_the_first_and_the_last_token_always_have_room() -> None:
    for dropped in (0, 1, 345, 1633, 4999, MOST_DROPPED):
        for tokens in range(1, 50):
            left = kept(tokens, dropped)
            assert left == tokens - (tokens - 1) * dropped // 10_000
            assert min(tokens, 2) <= left <= tokens
    assert stage_counts(1000, (345, 345, 345)) == (1000, 966, 933, 901)


def test_the_least_important_are_dropped() -> None:
    importance = np.array([[1, 0.1, 0.5, 0.2, 0.5, 0.1], [1, 0, 0, 0.5, 0, 0]], np.float32).T
    positions = np.arange(6)
    assert kept_rows(importance, positions, 2000).tolist() == [0, 2, 3, 4, 5]
    assert kept_rows(importance, positions, 4000).tolist() == [0, 2, 3, 5]  # of equals the first
    assert kept_rows(importance, positions + 6, 4000).tolist() == [0, 2, 3, 5]
    importance[0] = 0
    assert kept_rows(importance, positions, 4000).tolist() == [0, 2, 3, 5]
    assert kept_rows(importance, positions + 6, 4000).tolist() == [2, 3, 4, 5]
    importance[1, 1] = np.nan
    assert kept_rows(importance, positions, 4000).tolist() == [0, 1, 3, 5]


@ISAS
@pytest.mark.parametrize(
    ("max_tokens", "features", "heads", "calls"),
    [
        (256, 576, 9, [(256, 0, 345), (255, 256, 5000), (3, 0, 5000), (2, 7, 5000), (1, 0, 5000)]),
        (17, 31, 1, [(17, 0, 1633), (16, 1000, 2500), (5, 3, 0)]),
    ],
)
def test_kernel_keeps_the_rows_of_the_reference(isa, max_tokens, features, heads, calls):
    function = build(prune_tokens, isa, max_tokens=max_tokens, features=features, heads=heads)
    kernel = compile_function(function, isa)
    x = random(1, max_tokens, features)
    for tokens, start, dropped in calls:
        rng = np.random.default_rng(tokens)
        importance = rng.random((max_tokens, heads)).astype(np.float32)
        importance[::3] = np.round(importance[::3], 1)  # some are equally important
        importance[1 % tokens :: 5, 0] = np.nan
        importance[tokens:] = np.inf  # nobody may look at them
        positions = np.full((1, max_tokens), -1, np.int64)
        positions[0, :tokens] = start + np.sort(rng.choice(3 * tokens, tokens, replace=False))
        positions[0, 0] = start
        out, places = poisoned((max_tokens, features)), poisoned((1, max_tokens), np.int64)
        left = kept(tokens, dropped)
        kernel(x, frozen(positions), frozen(importance), out, places, tokens, left)
        rows = kept_rows(importance[:tokens], positions[0, :tokens], dropped)
        assert len(rows) == left
        np.testing.assert_array_equal(out[:left], x[rows])
        np.testing.assert_array_equal(places[0, :left], positions[0, rows])
        assert np.isnan(out[left:]).all()
        assert (places[0, left:] == 99).all()


@ISAS
@pytest.mark.parametrize(
    ("dtype", "scores"), [("float16", Scores(0.2, softcap=3.0)), ("int8", Scores(0.2))]
)
def test_importance_is_the_attention_to_the_first_key(isa, dtype, scores):
    problem = Problem(isa, KVCache(2, 32, 400, dtype), scores, 33)
    kernel = problem.compiled(cached_attention, importance="first")
    for tokens, position in POINTS:
        q, stored, given, values = problem.at(tokens, position)
        out, shares = poisoned((33, 4 * 32)), poisoned((33, 4))
        kernel(q, *stored, out, shares, tokens, position)
        want = reference_ops.importance(*given, **problem.options)[0]
        np.testing.assert_allclose(shares[:tokens], want, rtol=2e-5, atol=1e-7)
        queries, keys = given
        attended = reference_ops.attention(queries, keys, values, **problem.options)[0]
        close = 0.06 if problem.cache.integers else 1e-5
        np.testing.assert_allclose(out[:tokens].reshape(attended.shape), attended, atol=close)
        assert np.isnan(shares[tokens:]).all()
        assert np.isnan(out[tokens:]).all()


@pytest.mark.parametrize("isa", runnable_widths()[:2], ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("dtype", "scores"), [("float32", Scores(0.2, softcap=3.0)), ("int4", Scores(0.2))]
)
def test_importance_is_the_attention_that_is_received(isa, dtype, scores):
    problem = Problem(isa, KVCache(2, 32, 400, dtype), scores, 33)
    attend = problem.compiled(cached_attention, importance="received")
    count = problem.compiled(received_attention)
    for tokens, position in POINTS:
        q, stored, given, _ = problem.at(tokens, position)
        out, *kept, shares = (poisoned((33, n)) for n in (4 * 32, 4, 4, 4))
        attend(q, *stored, out, *kept, tokens, position)
        count(q, *stored, *map(frozen, kept), shares, tokens, position)
        want = reference_ops.importance(*given, **problem.options, measure="received")[0]
        np.testing.assert_allclose(shares[:tokens], want, rtol=2e-5, atol=1e-7)
        assert np.isnan(shares[tokens:]).all()
        assert all(np.isnan(each[tokens:]).all() for each in kept)


POINTS = [(33, 0), (1, 0), (32, 367), (5, 64), (33, 60)]
"""(tokens, position): some chunks of keys begin before the call, or end behind it."""


@dataclass(frozen=True)
class Problem:
    """Four heads of 32, and a first key that some attend to."""

    isa: Any
    cache: KVCache
    scores: Scores
    most: int

    @property
    def options(self) -> dict[str, Any]:
        """Of the reference."""
        bits = int(self.cache.dtype[-1]) if self.cache.integers else 32
        return {"scale": self.scores.scale, "softcap": self.scores.softcap, "cache_bits": bits}

    def compiled(self, builder: Any, **options: Any) -> Any:
        shape = {"max_tokens": self.most, "heads": 4, "cache": self.cache, "scores": self.scores}
        return compile_function(build(builder, self.isa, **shape, **options), self.isa)

    def at(self, tokens: int, position: int) -> tuple[NDArray, tuple[NDArray, ...], Any, NDArray]:
        """(q, the cache, q and keys and then values as the reference takes them)."""
        rng = np.random.default_rng(tokens)
        q = rng.standard_normal((self.most, 4, 32)).astype(np.float32)
        keys, values = rng.standard_normal((2, position + tokens, 2, 32)).astype(np.float32)
        keys[0] *= 2
        stored = filled_in(self.isa, self.cache, keys, values)
        if not self.cache.integers:
            keys, values = (a.astype(self.cache.dtype).astype(np.float32) for a in (keys, values))
        return (
            frozen(q.reshape(self.most, -1)),
            stored,
            (q[None, :tokens], keys[None]),
            values[None],
        )


def filled_in(isa, cache: KVCache, keys: NDArray, values: NDArray) -> tuple[NDArray, ...]:
    """`filled`, with the offset that a vector unit adds to codes of 8 bits."""
    if cache.integers:
        return filled_with_codes(cache, keys, values, isa.signed_offset)
    return filled(cache, keys, values)


POSITIONS = np.array([[0, 1, 5, 6, 40, 41, 4095]])


@ISAS
def test_listed_positions_are_where_rope_turns_to(isa):
    rotation = Rotation(32, 16, interleaved=True)
    x, inv_freq = random(1, 7, 3, 32), frequencies(8)
    function = build(rope, isa, max_tokens=7, heads=3, rotation=rotation, listed=True)
    out = poisoned((7, 96))
    compile_function(function, isa)(
        frozen(x.reshape(7, -1)), inv_freq, out, 6, frozen(POSITIONS.astype(np.int64))
    )
    want = rotated(x, inv_freq, POSITIONS[0], rotation)
    np.testing.assert_allclose(out.reshape(x.shape)[:6], want[:6], rtol=0, atol=2e-6)
    assert np.isnan(out[6:]).all()


@ISAS
def test_slots_of_a_pruned_cache_are_not_positions(isa):
    cache, rotation = KVCache(2, 16, 48), Rotation(16, 16)
    qkv, inv_freq = random(1, 7, 7, 16), frequencies(8)
    function = build(
        rope_append_kv, isa, max_tokens=7, heads=3, cache=cache, rotation=rotation,
        rows=Rows(112), listed=True,
    )  # fmt: skip
    keys, values = (poisoned(array.shape) for array in cache.arrays)
    got = qkv.reshape(7, -1).copy()
    compile_function(function, isa)(
        got, inv_freq, frozen(POSITIONS.astype(np.int64)), keys, values, 6, 9
    )
    want = rotated(qkv[:, :5], inv_freq, POSITIONS[0], rotation)
    np.testing.assert_allclose(got.reshape(7, 7, 16)[:6, :3], want[:6, :3], rtol=0, atol=2e-6)
    stored_keys, stored_values = cache_views(cache, keys, values)
    np.testing.assert_allclose(stored_keys[9:15], want[:6, 3:], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(stored_values[9:15], qkv[:6, 5:])
    for view in (stored_keys, stored_values):
        assert np.isnan(np.delete(view, np.s_[9:15], axis=0)).all()
