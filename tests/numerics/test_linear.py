"""Float linear kernels and vector math against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec, kernel_builder, tensor_argument
from morendo.codegen.cpu.vectors.vector import load, store
from morendo.codegen.cpu.vectors.vector_math import ACTIVATIONS, activation, fast_exp
from morendo.ir import reference
from morendo.ir.formats import WeightFormat
from tests.numerics.kernel_runner import compile_function, emulated_isas, frozen, native_isas
from tests.numerics.linear_cases import (
    REFERENCE_ACTIVATIONS,
    compile_kernel,
    finish,
    random_epilogue,
    run_poisoned,
)

ISAS = pytest.mark.parametrize(
    "isa", [*native_isas(), *emulated_isas()[:1]], ids=lambda isa: isa.name
)


def run_case(spec: LinearSpec, isa, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    weight = rng.normal(size=(spec.tiles * 16, spec.in_features)).astype(np.float32)
    x = rng.normal(size=(spec.max_tokens, spec.in_features)).astype(np.float32)
    packed = reference.pack(weight, spec.format)
    exact = reference.unpack(packed, spec.format, *weight.shape).astype(np.float64)
    epilogue = random_epilogue(rng, spec)
    y = run_poisoned(compile_kernel(spec, isa), spec, [x, packed["data"], *epilogue], tokens)
    expected = finish(spec, x @ exact.T, *epilogue)[:tokens]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5 * np.abs(expected).max())


@ISAS
@pytest.mark.parametrize("fmt", ["f32", "f16"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 8), (71, 123)])
@pytest.mark.parametrize(("max_tokens", "tokens"), [(1, 1), (2, 2), (24, 9), (31, 31)])
def test_product(isa, fmt, rows, columns, max_tokens, tokens):
    run_case(LinearSpec(rows, columns, WeightFormat(fmt), max_tokens), isa, tokens)


@ISAS
@pytest.mark.parametrize("max_tokens", [1, 11])
@pytest.mark.parametrize("gate", ["", "silu"])
def test_epilogues(isa, max_tokens, gate):
    fmt = WeightFormat("f16")
    spec = LinearSpec(2 * 37, 50, fmt, max_tokens, bias=True, residual=True, gate=gate)
    run_case(spec, isa, max_tokens)


def apply(function, isa, x: np.ndarray) -> np.ndarray:
    """A vector function on a float32 array whose size the lanes divide."""
    with kernel_builder("apply") as builder:
        a = tensor_argument("a", x.shape, "float32")
        b = tensor_argument("b", x.shape, "float32")
        with T.serial(0, x.size // isa.lanes) as i:
            value = function(T.bind(load(a, (i * isa.lanes,), isa.lanes)), isa.lanes)
            store(b, (i * isa.lanes,), value, isa.lanes)
    out = np.full_like(x, np.nan)
    compile_function(builder.get(), isa)(frozen(x), out)
    return out


@ISAS
def test_exp_is_accurate_and_clamped(isa):
    x = np.linspace(-87.3, 88.3, 1 << 16, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(apply(fast_exp, isa, x) / exact - 1)) < 2.5e-7
    extremes = np.array([-np.inf, -1e4, -100, -88, 0, 89, 1e4, np.inf] * 2, np.float32)
    y = apply(fast_exp, isa, extremes).reshape(2, 8)[0]
    assert np.all(y[:4] < 1.3e-38) and y[4] == 1 and np.all(np.isfinite(y)) and np.all(y[5:] > 2e38)


@ISAS
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation(isa, name):
    x = np.concatenate([np.linspace(-30, 30, 4000), np.linspace(-1, 1, 96)]).astype(np.float32)
    y = apply(lambda value, lanes: activation(name, value, lanes, isa.exp), isa, x)
    expected = REFERENCE_ACTIVATIONS[name](x.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=3e-7)
