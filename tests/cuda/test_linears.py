"""Linear kernels of the GPU under the emulator, by the cases of every other target."""

from __future__ import annotations

import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.targets.cuda.kernels.quantized_linear import build_quantized_linear
from morendo.targets.cuda.target import GPU
from tests.cuda.emulated import needs_compiler
from tests.numerics.test_quantized_linear import damage_outliers, run_case

pytestmark = needs_compiler
ISA = GPU("cuda", "sm_80")


@pytest.mark.parametrize("fmt", ["q4g32", "q4g32c", "q8g32", "q6g32"])
@pytest.mark.parametrize(("rows", "columns"), [(48, 32), (71, 416), (33, 100)])
def test_one_token_is_exact(fmt, rows, columns):
    run_case(LinearSpec(rows, columns, WeightFormat.parse(fmt), 1), ISA, 1, exact=True, seed=rows)


@pytest.mark.parametrize("fmt", ["q4g64", "q4g128c", "q5g64", "q8g128"])
def test_wide_groups_are_exact(fmt):
    run_case(LinearSpec(23, 600, WeightFormat.parse(fmt), 1), ISA, 1, exact=True, seed=5)


@pytest.mark.parametrize("tokens", [1, 4, 5])
@pytest.mark.parametrize("fmt", ["q4g32c", "q8g32"])
def test_several_tokens_are_exact(fmt, tokens):
    spec = LinearSpec(40, 96, WeightFormat.parse(fmt), max_tokens=5)
    run_case(spec, ISA, tokens, exact=True, seed=tokens)


@pytest.mark.parametrize("damage", [None, damage_outliers])
def test_outliers_are_exact(damage):
    spec = LinearSpec(71, 416, WeightFormat("q4", 32), 1, outliers=True)
    run_case(spec, ISA, 1, exact=True, seed=3, damage=damage)


@pytest.mark.parametrize("gate", ["", "silu", "gelu", "gelu_tanh", "relu"])
def test_epilogues(gate):
    spec = LinearSpec(
        2 * 45, 200, WeightFormat("q4", 64), 2,
        bias=True, residual=True, gate=gate, outliers=True,
    )  # fmt: skip
    run_case(spec, ISA, 2, exact=False, seed=2)


def test_tiles_of_another_size_are_refused():
    fmt = WeightFormat("q4", 32, row_tile=32)
    with pytest.raises(CompileError, match=r"does not fit a tile of rows \(got 32, need 16\)"):
        build_quantized_linear(LinearSpec(64, 64, fmt, 1), ISA)
