"""All kernels of the GPU but the linear ones under the emulator, by the cases of every target."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.cpu.kernels.rope import Rotation
from morendo.codegen.cpu.vectors.vector_blocks import Rows
from morendo.ir.formats import WeightFormat
from morendo.targets.cuda.kernels.cache import append_kv, rope, rope_append_kv
from morendo.targets.cuda.kernels.candidates import (
    WIDTH,
    candidates_of_lists,
    candidates_of_logits,
    list_counts,
)
from morendo.targets.cuda.kernels.likeliest import PARTS, likeliest, likeliest_parts
from morendo.targets.cuda.target import GPU
from tests.cuda.emulated import EmulatedKernel, needs_compiler
from tests.numerics import test_attention as attention
from tests.numerics import test_four_bit_activations as four_bits
from tests.numerics import test_linear as linear
from tests.numerics import test_small_kernels as shared
from tests.numerics import test_token_pruning as pruning
from tests.numerics.kernel_runner import frozen

pytestmark = needs_compiler
ISA = GPU("cuda", "sm_80")
_LAST = 2**31 - 1


def test_norms_are_close_to_float64():
    shared.test_rms_norm_is_close_to_float64(ISA, 17, 15, 3, 64)
    shared.test_rms_norm_is_close_to_float64(ISA, 1, 1, 1, 577)
    shared.test_rms_norm_of_a_slice_leaves_the_rest_alone(ISA)
    shared.test_layer_norm_is_close_to_float64(ISA, 3, 300, 2)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("group", "features"), [(32, 576), (64, 200), (128, 65)])
def test_quantized_activations_equal_the_reference_bit_by_bit(ordered, group, features):
    check = shared.test_quantized_activations_equal_the_reference_bit_by_bit
    check(ISA, ordered, group, 3, features)


@pytest.mark.parametrize("factored", [False, True])
def test_activations_of_4_bits_equal_the_reference_bit_by_bit(factored):
    check = four_bits.test_activations_of_4_bits_equal_the_reference_bit_by_bit
    check(ISA, factored, factored, 3, 200, 64)


@pytest.mark.parametrize("ordered", [False, True])
def test_fused_norm_and_quantization_agree_with_the_norm(ordered):
    shared.test_fused_norm_and_quantization_agree_with_the_norm(ISA, ordered, 5, 200, 64)


@pytest.mark.parametrize(
    ("rotation", "max_tokens", "tokens", "position"),
    [
        (Rotation(64, 64), 5, 4, 131000),
        (Rotation(80, 20), 1, 1, 100),
        (Rotation(64, 32, scaling=1.25, interleaved=True), 3, 3, 4097),
    ],
)
def test_rope_is_close_to_float64_up_to_128k(rotation, max_tokens, tokens, position):
    check = shared.test_rope_is_close_to_float64_up_to_128k
    check(ISA, rotation, max_tokens, tokens, position)


def test_keys_and_values_are_written_where_they_belong():
    shared.test_append_kv_writes_only_the_new_positions(ISA, "float16", 16, 15, 30)
    shared.test_rope_append_kv_is_rope_then_append(ISA, 5, 5, 15)


@pytest.mark.parametrize(("bits", "dim"), [(8, 24), (8, 64), (8, 6), (4, 6), (4, 64), (4, 80)])
def test_a_cache_of_codes_has_the_references(bits, dim):
    check = shared.test_append_kv_makes_the_references_codes
    check(ISA, bits, dim, 16, 15, 30)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_rotated_keys_get_the_references_codes(dtype):
    """As from rope and then append_kv."""
    cache, rotation = KVCache(2, 16, 128, dtype), Rotation(16, 16)
    row, inv_freq = shared.random(1, 3, 120), shared.frequencies(8)
    stored = [[np.zeros(a.shape, a.dtype) for a in cache.arrays] for _ in range(2)]
    turned = [frozen(row).copy(), np.zeros((3, 32), np.float32)]
    rows = {"heads": 3, "rotation": rotation, "max_tokens": 3}
    fused = EmulatedKernel(rope_append_kv(ISA, cache=cache, rows=Rows(120, 4), **rows))
    fused(turned[0], inv_freq, *stored[0], 2, 60)
    rows["heads"] = 2
    turn = EmulatedKernel(rope(ISA, x_rows=Rows(120, 52), out_rows=Rows(32), **rows))
    turn(frozen(row), inv_freq, turned[1], 2, 60)
    append = append_kv(ISA, max_tokens=3, cache=cache, k_rows=Rows(32), v_rows=Rows(120, 84))
    EmulatedKernel(append)(turned[1], frozen(row), *stored[1], 2, 60)
    for got, want in zip(*stored, strict=True):
        np.testing.assert_array_equal(got, want)
    assert stored[0][0].any() and stored[0][3].any()


def test_the_least_important_tokens_are_dropped():
    check = pruning.test_kernel_keeps_the_rows_of_the_reference
    check(ISA, 257, 70, 3, [(257, 0, 345), (255, 256, 5000), (2, 7, 5000), (1, 0, 5000)])


@pytest.mark.parametrize("dtype", ["float16", pytest.param("int8", marks=pytest.mark.slow), "int4"])
def test_importance_is_the_references(dtype):
    softcap = 3.0 if dtype == "float16" else 0.0
    pruning.test_importance_is_the_attention_to_the_first_key(ISA, dtype, Scores(0.2, 0, softcap))
    pruning.test_importance_is_the_attention_that_is_received(ISA, dtype, Scores(0.2, 0, softcap))


def test_pruned_tokens_keep_their_positions():
    pruning.test_listed_positions_are_where_rope_turns_to(ISA)
    pruning.test_slots_of_a_pruned_cache_are_not_positions(ISA)


@pytest.mark.parametrize("name", ["f16", "q8g32", "q4g64", "q6g32", "q4g32c"])
def test_embedding_gives_the_dequantized_rows(name):
    shared.test_embedding_gives_the_dequantized_rows(ISA, name, 50, 100)


@pytest.mark.parametrize("name", shared.ACTIVATIONS)
def test_activations_are_close_to_float64(name):
    shared.test_gated_is_close_to_float64(ISA, name, 3, 2, 300)
    shared.test_activation_is_close_to_float64(ISA, name)


def test_the_likeliest_token_is_the_first_of_the_largest_logits():
    parts = EmulatedKernel(likeliest_parts(ISA, vocabulary=20001))
    last, rng = EmulatedKernel(likeliest(ISA)), np.random.default_rng(0)

    def found(*changes: tuple[int, float], scale: float = 1.0) -> int:
        logits = rng.standard_normal((1, 20001)).astype(np.float32) * np.float32(scale)
        for token, value in changes:
            logits[0, token] = value
        keys, ids = np.zeros(PARTS, np.int64), np.full(1, 77, np.int32)
        parts(frozen(logits), keys)
        last(frozen(keys), ids)
        return int(ids[0])

    assert found((20000, 9.0)) == 20000
    assert found((0, 9.0), (19000, 9.0)) == 0
    assert found((8191, 9.0), (8192, 9.0), (300, 8.0)) == 8191
    assert found((5, 0.0), (6, -0.0), (4, -1e-30), scale=-0.0) == 0
    assert found((20000, -0.0), *((i, -1.0) for i in range(20000))) == 20000
    assert found((7, -np.inf), (8, 9.0)) == 8
    assert found((11, np.nan), (8, 9.0)) == -1
    assert found((11, -np.nan)) == -1
    assert found((11, np.inf), (12, np.inf)) == -1
    assert found(*((i, -np.inf) for i in range(20001))) == -1


@pytest.mark.parametrize("vocabulary", [70, 2048, 2049, 20001])
def test_the_likeliest_tokens_are_in_order_and_all_are_weighed(vocabulary):
    """Over one launch, two and three; ties by id, infinities, both zeros."""
    rng, sharpness = np.random.default_rng(vocabulary), np.float32(1.3)
    counts = list_counts(vocabulary)
    kernels = [candidates_of_logits(ISA, vocabulary=vocabulary)]
    kernels += [candidates_of_lists(ISA, lists=count) for count in counts[:-1]]
    logits = (rng.standard_normal((1, vocabulary)) * 4).astype(np.float32).round(1)
    logits[0, [3, 50, -1]] = -np.inf, -0.0, 30.0
    for wanted in (sharpness, np.float32(0)):
        found: np.ndarray = logits
        for kernel, count in zip(kernels, counts, strict=True):
            given, found = found, np.full((count, WIDTH), 77, np.int64)
            EmulatedKernel(kernel)(frozen(given), found, int(wanted.view(np.int32)))
        if not wanted:
            assert (found == 77).all()
            continue
        order = np.argsort(-logits[0], kind="stable")[: WIDTH - 1]
        keys, total = found[0, :-1][: len(order)], found[0, -1:].view(np.float64)
        np.testing.assert_array_equal(_LAST - (keys & _LAST), order)
        ranks = (keys >> 32).astype(np.int32)
        bits = np.where(ranks < 0, -ranks | np.int32(-_LAST - 1), ranks)
        np.testing.assert_array_equal(bits.view(np.float32), logits[0, order])
        weights = np.exp((logits[0].astype(np.float64) - 30.0) * sharpness)
        np.testing.assert_allclose(total, weights.sum(), rtol=2e-6)


HALF, LONG = KVCache(2, 64, 256, "float16"), KVCache(1, 80, 304)
PLAIN = attention.Case(HALF, 4, 1, [(1, 0), (1, 127), (1, 128), (1, 255)])
LONGER = KVCache(1, 24, 1040, "float16")
SHARED = [  # by five blocks, of which as many have keys as it takes
    attention.Case(LONGER, 2, 1, [(1, 0), (1, 255), (1, 256), (1, 600), (1, 1039)]),
    attention.Case(
        LONGER, 2, 1, [(1, 1039), (1, 270)], Scores(0.2, window=290, softcap=20.0, alibi=True)
    ),
]
ATTENTION = [
    PLAIN,
    attention.Case(HALF, 4, 17, [(17, 0), (16, 120), (1, 17)]),
    attention.Case(LONG, 3, 3, [(3, 290)], Scores(0.1, window=100, softcap=20.0)),
    attention.Case(LONG, 3, 2, [(2, 300)], Scores(0.1, alibi=True)),
    dataclasses.replace(PLAIN, cache=KVCache(1, 192, 64), heads=2, points=[(1, 63)]),
    *SHARED,
]


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_is_close_to_float64(case):
    attention.test_cached_attention_is_close_to_float64(ISA, case)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_last_query_alone_attends(dtype):
    attention.test_the_last_query_alone_attends(ISA, dtype)


@pytest.mark.parametrize("fmt", ["f32", "f16"])
def test_float_linears_are_close_to_float64(fmt):
    linear.run_case(LinearSpec(71, 123, WeightFormat(fmt), 3), ISA, 2)
    spec = LinearSpec(74, 50, WeightFormat(fmt), 1, bias=True, residual=True, gate="silu")
    linear.run_case(spec, ISA, 1)


CODES = KVCache(3, 64, 256, "int8")
INTEGERS = [
    attention.Case(CODES, 9, 1, [(1, 0), (1, 63), (1, 64), (1, 255)]),
    attention.Case(CODES, 9, 17, [(17, 0), (16, 120)]),
    attention.Case(KVCache(1, 80, 1040, "int8"), 2, 1, [(1, 1039)]),
    attention.Case(KVCache(1, 6, 176, "int8"), 2, 9, [(9, 77)]),
    attention.Case(
        KVCache(2, 32, 400, "int8"),
        4,
        2,
        [(2, 383)],
        Scores(0.2, window=70, softcap=20.0, alibi=True),
    ),
    attention.Case(CODES, 9, 2, [(2, 100)], spread=0.0),
    attention.Case(KVCache(3, 64, 256, "int4"), 9, 17, [(17, 0), (16, 120)]),
    attention.Case(KVCache(1, 80, 1040, "int4"), 2, 1, [(1, 63), (1, 1039)]),
    attention.Case(
        KVCache(2, 6, 176, "int4"),
        4,
        9,
        [(9, 77)],
        Scores(0.2, window=70, softcap=20.0, alibi=True),
    ),
]


@pytest.mark.parametrize("case", INTEGERS, ids=str)
def test_attention_over_codes_is_the_references(case):
    attention.test_attention_over_codes_is_the_references(ISA, case)
