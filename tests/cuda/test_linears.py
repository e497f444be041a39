"""Linear kernels of the GPU under the emulator, by the cases of every other target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import WeightFormat
from morendo.targets.cuda.kernels.pipeline import SYNCHRONOUS, Pipeline
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


@pytest.mark.parametrize(
    ("fmt", "tokens"),
    [
        ("q4g32c", 3),
        ("q4g32c", 16),
        *((f, 17) for f in ("q4g32c", "q4g64", "q5g32c", "q6g32", "q8g32")),
    ],
)
def test_matrix_units_are_exact(fmt, tokens):
    spec = LinearSpec(71, 416, WeightFormat.parse(fmt), max_tokens=17)
    run_case(spec, ISA, tokens, exact=True, seed=tokens)


@pytest.mark.parametrize("fmt", ["q8g128", "q4g128c"])
def test_matrix_units_take_wide_groups(fmt):
    """Of which shared memory holds fewer turns, or fewer tokens."""
    spec = LinearSpec(33, 300, WeightFormat.parse(fmt), max_tokens=33)
    run_case(spec, ISA, 33, exact=True, seed=4)


def test_a_chunk_of_512_tokens_is_right():
    spec = LinearSpec(40, 96, WeightFormat.parse("q4g32c"), max_tokens=512, residual=True)
    for tokens in (512, 450):
        run_case(spec, ISA, tokens, exact=False, seed=tokens)


@pytest.mark.parametrize("damage", [None, damage_outliers])
def test_outliers_of_many_tokens_are_exact(damage):
    spec = LinearSpec(71, 416, WeightFormat("q4", 32), 40, outliers=True)
    run_case(spec, ISA, 39, exact=True, seed=3, damage=damage)


@pytest.mark.parametrize("pipeline", [SYNCHRONOUS, Pipeline(2, 1), Pipeline(4, 1)], ids=str)
@pytest.mark.parametrize("columns", [32, 160])
def test_every_pipeline_gives_the_same(pipeline, columns):
    """With fewer turns than it is deep, and with more."""
    isa = replace(ISA, pipeline=pipeline)
    spec = LinearSpec(17, columns, WeightFormat("q4", 32), max_tokens=9)
    function = build_quantized_linear(spec, isa)
    assert dict(function.attrs["morendo.pipeline"]) == pipeline.attribute
    run_case(spec, isa, 9, exact=True, seed=columns)


def test_codes_are_unpacked_ahead_where_there_are_few_blocks():
    spec = LinearSpec(17, 160, WeightFormat("q4", 32), max_tokens=9)
    for few, kept in ((1, 2), (0, 1)):
        function = build_quantized_linear(spec, replace(ISA, few_blocks=few))
        assert function.attrs["morendo.pipeline"]["dequantize"] == kept
    assert '"morendo.pipeline": {"dequantize": 1, "fetch": 4, "multiply": 1}' in function.script()


@pytest.mark.parametrize(
    ("gate", "tokens"),
    [("silu", 2), ("gelu", 2), ("gelu_tanh", 2), ("relu", 2), ("", 2), ("silu", 13), ("", 13)],
)
def test_epilogues(gate, tokens):
    spec = LinearSpec(
        2 * 45, 200, WeightFormat("q4", 64), tokens,
        bias=True, residual=True, gate=gate, outliers=True,
    )  # fmt: skip
    run_case(spec, ISA, tokens, exact=False, seed=2)
