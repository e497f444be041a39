"""Outliers in packed matrices: layout, meaning at every level, stacking, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from morendo.codegen.packed_matrix import Matrix
from morendo.frontend.weights import WeightStore
from morendo.ir import reference
from morendo.ir.code_store import CodeStore
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.outliers import Outliers
from morendo.ir.reference import Quantized
from morendo.ir.weight_overlay import WeightOverlay

FORMAT = WeightFormat.parse("q4g32p2,1o6")
K = 100  # 4 groups


def random_codes(rows: int, seed: int = 0, per_tile: int = 6) -> Quantized:
    """Rounded random weights with `per_tile` entries in every tile of 16 rows."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, K)).astype(np.float32)
    tiles = -(-rows // 16)
    row = np.repeat(np.arange(tiles) * 16, per_tile)
    row = np.minimum(row + rng.integers(0, 16, len(row)), rows - 1).astype(np.int32)
    channel = rng.permutation(K)[np.arange(len(row)) % K].astype(np.int32)
    value = rng.uniform(1, 2, len(row)).astype(np.float16)
    return replace(reference.quantize(weight, FORMAT), outliers=Outliers(row, channel, value))


def entries(outliers: Outliers) -> set[tuple[int, int, float]]:
    return set(zip(*(field.tolist() for field in vars(outliers).values()), strict=True))


@pytest.mark.parametrize("rows", [16, 40])
def test_one_entry_at_its_documented_place(rows: int) -> None:
    q = random_codes(rows)
    arrays = reference.pack_quantized(q, FORMAT)
    described = {a.name: (a.shape, a.dtype) for a in FORMAT.arrays(rows, K)}
    assert {k: (v.shape, str(v.dtype)) for k, v in arrays.items()} == described
    for tile, channels in enumerate(arrays["outlier_channel"]):
        assert np.array_equal(channels, np.sort(channels))
        for group in range(4):
            first = arrays["outlier_start"][tile, group]
            assert (channels[:first] < group * 32).all()
            assert (channels[first:] >= group * 32).all()
    again = reference.unpack_quantized(arrays, FORMAT, rows)
    assert again.outliers is not None and q.outliers is not None
    assert entries(again.outliers) == entries(q.outliers)


@pytest.mark.parametrize("level", [(2, 1), (1, 0), (0, 0), None])
def test_outliers_count_where_two_bits_are_read(level: tuple[int, int] | None) -> None:
    q = random_codes(40)
    with_them = reference.dequantize(q, FORMAT, K, level)
    without = reference.dequantize(replace(q, outliers=None), FORMAT, K, level)
    want = np.zeros_like(without)
    assert q.outliers is not None
    for row, channel, value in zip(*vars(q.outliers).values(), strict=True):
        if channel // 32 >= (2 if level is None else level[0]):
            want[row, channel] += value
    np.testing.assert_allclose(with_them, without + want, rtol=1e-6)
    assert want.any()


def test_unused_slots_are_zero_and_last() -> None:
    q = random_codes(16, per_tile=2)
    arrays = reference.pack_quantized(q, FORMAT)
    assert (arrays["outlier_value"][:, :2] > 0).all()
    assert not arrays["outlier_value"][:, 2:].any()
    none = reference.pack_quantized(replace(q, outliers=None), FORMAT)
    assert not none["outlier_value"].any() and not none["outlier_start"].any()


def test_bytes_read_leave_outliers_out_when_nothing_is_read_at_two_bits() -> None:
    fmt = WeightFormat.parse("q4g32o6")
    dense, sparse = WeightFormat("q4", 32), 2 * (6 * 5 + 4 * 2)
    assert fmt.nbytes(32, K) == dense.nbytes(32, K) + sparse
    assert fmt.bytes_read(32, K, (4, 2)) == dense.bytes_read(32, K, (4, 2))
    assert fmt.bytes_read(32, K, (3, 2)) == dense.bytes_read(32, K, (3, 2)) + sparse


def test_a_code_store_keeps_them(tmp_path: Path) -> None:
    store, q = CodeStore(tmp_path), random_codes(40)
    store.put("w", FORMAT, q)
    store.put("v", FORMAT, replace(q, outliers=None))
    kept, plain = store.get("w", FORMAT), store.get("v", FORMAT)
    assert kept is not None and kept.outliers is not None and q.outliers is not None
    assert plain is not None and plain.outliers is None
    assert entries(kept.outliers) == entries(q.outliers)
    assert all(np.array_equal(a, b) for a, b in zip(kept.dense, q.dense, strict=True))


@pytest.mark.parametrize(
    ("interleaved", "rows"), [(False, (32, 16, 40)), (False, (16, 5)), (True, (40, 40))]
)
def test_stacked_parts_keep_their_outliers(tmp_path: Path, interleaved: bool, rows) -> None:
    store, parts = CodeStore(tmp_path), []
    for i, count in enumerate(rows):
        parts.append(random_codes(count, i))
        store.put(f"w{i}", FORMAT, parts[-1])
    names = tuple(f"w{i}" for i in range(len(rows)))
    matrix = Matrix(names, rows, K, FORMAT, interleaved=interleaved, calibrated=True)
    whole = reference.unpack(
        matrix.pack(WeightOverlay(WeightStore.of({}), store)), FORMAT, matrix.packed_rows, K
    )
    for part, got in zip(parts, matrix.split(whole), strict=True):
        np.testing.assert_array_equal(got, reference.dequantize(part, FORMAT, K))


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"got 7 in rows 16 to 31, need at most 6"):
        q = random_codes(40)
        assert q.outliers is not None
        row, channel, value = vars(q.outliers).values()
        one = Outliers(row[6:7], channel[6:7] + np.int32(1), value[:1])
        reference.pack_quantized(replace(q, outliers=Outliers.joined([q.outliers, one])), FORMAT)
    store = CodeStore(tmp_path)  # two parts that meet in one tile
    for name in "ab":
        store.put(name, FORMAT, random_codes(8))
    with pytest.raises(CompileError, match=r"got 12 in rows 0 to 15.*stacked need whole tiles"):
        Matrix(("a", "b"), (8, 8), K, FORMAT, calibrated=True).pack(
            WeightOverlay(WeightStore.of({}), store)
        )


def test_a_matrix_that_is_too_wide_is_refused() -> None:
    WeightFormat.parse("q4g32o1").arrays(16, 1 << 16)
    with pytest.raises(
        InputError, match=r"too wide \(got 65537 input channels, need at most 65536"
    ):
        WeightFormat.parse("q4g32o1").arrays(16, (1 << 16) + 1)
