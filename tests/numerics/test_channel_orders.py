"""Linears whose channels are stored in another order: evaluation, packing, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from morendo.codegen.packed_matrix import Matrix
from morendo.codegen.weight_file import WeightFile
from morendo.frontend.weights import WeightStore
from morendo.ir import reference
from morendo.ir.dialect import M
from morendo.ir.errors import CompileError
from morendo.ir.evaluate import evaluate
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import check_invariant
from morendo.ir.weight_overlay import WeightOverlay

K, N = 70, 40
FORMAT = WeightFormat("q4", 32)
LINEAR = {"out_features": [N], "in_features": K, "format": "q4g32"}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def weights(rng) -> WeightOverlay:
    weights = WeightOverlay(WeightStore.of({"w": rng.normal(size=(N, K)).astype(np.float32)}))
    weights.put("w.order", rng.permutation(K).astype(np.uint16))
    return weights


def function(build) -> relax.Function:
    """x (1, 3, K) -> what `build` makes of it."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([1, 3, K], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(build(builder, x))
        builder.emit_func_output(out)
    return builder.get()["main"]


def quantized(order: str, taken: str):
    """A quantized linear in `order` that reads activations in the order `taken`."""

    def build(builder: relax.BlockBuilder, x: relax.Var):
        codes = builder.emit(M.quantize_activation(x, group_size=32, order=taken))
        parts = [builder.emit(relax.TupleGetItem(codes, i)) for i in range(3)]
        return builder.emit(M.quantized_linear(*parts, weights=["w"], order=order, **LINEAR))

    return function(build)


def test_an_overlay_adds_names(weights) -> None:
    assert "w" in weights and "w.order" in weights and "x" not in weights
    assert weights.shape("w") == (N, K) and weights.shape("w.order") == (K,)
    assert weights.get("w.order").dtype == np.uint16
    assert weights.get("w").shape == (N, K)


def test_a_linear_rounds_in_stored_order(weights, rng) -> None:
    """The result is that of a matrix rounded with its columns gathered, and of natural inputs."""
    x = rng.normal(size=(1, 3, K)).astype(np.float32)
    order = weights.get("w.order")
    codes = reference.quantize(weights.get("w")[:, order], FORMAT)
    want = x[:, :, order] @ reference.dequantize(codes, FORMAT, K).T
    plain = function(
        lambda b, x: b.emit(M.fused_linear(x, weights=["w"], order="w.order", **LINEAR))
    )
    np.testing.assert_allclose(evaluate(plain, [x], weights), want, rtol=1e-4, atol=1e-4)
    got = evaluate(quantized("w.order", "w.order"), [x], weights)
    np.testing.assert_allclose(got, want, rtol=0, atol=0.03 * np.abs(want).max())


def test_activations_in_another_order_are_refused() -> None:
    check_invariant("activations-quantized", tvm.IRModule({"main": quantized("a", "a")}), "here")
    with pytest.raises(CompileError, match=r"\['w'\] has order 'a', its input 'b'"):
        module = tvm.IRModule({"main": quantized("a", "b")})
        check_invariant("activations-quantized", module, "here")
    floats = function(lambda b, x: b.emit(M.fused_linear(x, weights=["w"], order="a", **LINEAR)))
    with pytest.raises(CompileError, match="has an order, but float activations"):
        check_invariant("activations-quantized", tvm.IRModule({"main": floats}), "here")


def test_packing_gathers_columns_and_splitting_puts_them_back(weights) -> None:
    matrix, order = Matrix(("w",), (N,), K, FORMAT, order="w.order"), weights.get("w.order")
    arrays = matrix.pack(weights)
    whole = reference.unpack(arrays, FORMAT, N, K)
    codes = reference.quantize(weights.get("w")[:, order], FORMAT)
    assert np.array_equal(whole, reference.dequantize(codes, FORMAT, K))
    (again,) = matrix.split(whole, order)
    assert np.array_equal(again[:, order], whole)
    step = reference.group_scale(codes).max()
    assert np.abs(again - weights.get("w")).max() < step


def test_an_order_is_stored_once_and_listed(weights, tmp_path) -> None:
    layout = WeightFile()
    layout.matrix(Matrix(("w",), (N,), K, FORMAT, order="w.order"))
    layout.matrix(Matrix(("w",), (N,), K, FORMAT))
    place = layout.order("w.order", K)
    assert layout.order("w.order", K) is place
    assert [entry["order"] for entry in layout.describe()["matrices"]] == [place.offset, None]
    with (tmp_path / "weights.bin").open("wb") as file:
        layout.write(file, weights, lambda: None)
    stored = np.fromfile(tmp_path / "weights.bin", np.uint16, K, offset=place.offset)
    assert np.array_equal(stored, weights.get("w.order"))
    weights.put("w.order", np.zeros(K, np.uint16))
    with (tmp_path / "weights.bin").open("wb") as file:
        with pytest.raises(CompileError, match=rf"no order of {K} channels at w\.order"):
            layout.write(file, weights, lambda: None)
