"""The static memory plan and the layout of weights."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest

from morendo.codegen.memory import Storage, plan_arena
from morendo.codegen.packed_matrix import Matrix
from morendo.codegen.weight_file import WeightFile
from morendo.frontend.weights import WeightStore
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.plan import ALIGNMENT_BYTES
from morendo.ir.reference import pack
from morendo.ir.weight_overlay import WeightOverlay

F32 = WeightFormat("f32")


def test_buffers_that_live_at_once_do_not_overlap() -> None:
    rng = random.Random()
    buffers = []
    for _ in range(200):
        first = rng.randrange(100)
        last = first + rng.randrange(10)
        buffers.append(Storage("arena", rng.randrange(1, 5000), first=first, last=last))
    size = plan_arena(buffers)
    assert size <= sum(b.nbytes + ALIGNMENT_BYTES for b in buffers) / 4
    for i, a in enumerate(buffers):
        assert a.offset % ALIGNMENT_BYTES == 0
        assert a.offset + a.nbytes <= size
        for b in buffers[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset


def write(layout: WeightFile, weights: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    layout.write(file, WeightOverlay(WeightStore.of(weights)), lambda: None)
    return file.getvalue()


def test_a_matrix_used_twice_is_stored_once() -> None:
    layout = WeightFile()
    table = Matrix(("embed",), (48,), 32, F32)
    assert layout.matrix(table) is layout.matrix(table)
    assert layout.nbytes == 48 * 32 * 4
    assert layout.vector(["norm"], [32]) is layout.vector(["norm"], [32])


@pytest.mark.parametrize("rows", [(32, 16, 16), (20, 5, 5)])
def test_stacked_rows_follow_each_other(rows: tuple[int, ...]) -> None:
    rng = np.random.default_rng()
    store = {f"w{i}": rng.standard_normal((n, 33), np.float32) for i, n in enumerate(rows)}
    layout = WeightFile()
    (place,) = layout.matrix(Matrix(("w0", "w1", "w2"), rows, 33, F32))
    want = pack(np.concatenate(list(store.values())), F32)["data"]
    got = np.frombuffer(write(layout, store), np.float32, want.size, place.offset)
    assert np.array_equal(got, want.reshape(-1))


@pytest.mark.parametrize("rows", [32, 21])
def test_interleaved_tiles_alternate(rows: int) -> None:
    rng = np.random.default_rng()
    gate, up = (rng.standard_normal((rows, 8), np.float32) for _ in range(2))
    matrix = Matrix(("gate", "up"), (rows, rows), 8, F32, interleaved=True)
    whole = matrix.load(WeightStore.of({"gate": gate, "up": up}))
    tiles = whole.reshape(-1, 2, 16, 8)
    assert np.array_equal(tiles[:, 0].reshape(-1, 8)[:rows], gate)
    assert np.array_equal(tiles[:, 1].reshape(-1, 8)[:rows], up)


def test_transposed_weights_are_turned() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    matrix = Matrix(("w",), (4,), 3, F32, transposed=True)
    assert np.array_equal(matrix.load(WeightStore.of({"w": weight})), weight.T)


def test_missing_parts_of_a_vector_are_zeros() -> None:
    layout = WeightFile()
    layout.vector(["q", "", "v"], [2, 3, 1])
    data = write(layout, dict(q=np.ones(2, np.float32), v=np.full(1, 7, np.float32)))
    assert np.frombuffer(data, np.float32, 6).tolist() == [1, 1, 0, 0, 0, 7]


def test_wrong_shapes_are_named() -> None:
    matrix = Matrix(("up_proj",), (4,), 3, F32)
    with pytest.raises(CompileError, match=r"wrong shape \(got \(3, 4\), need \(4, 3\)\) at up_pr"):
        matrix.load(WeightStore.of({"up_proj": np.zeros((3, 4), np.float32)}))
    layout = WeightFile()
    layout.vector(["norm"], [5])
    with pytest.raises(CompileError, match=r"wrong size \(got 4, need 5\) at norm"):
        write(layout, dict(norm=np.zeros(4, np.float32)))
