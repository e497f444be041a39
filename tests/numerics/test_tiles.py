"""Products by tile registers against numpy, where the machine has them: exact integers, tails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import WeightFormat
from tests.numerics.kernel_runner import tile_isas
from tests.numerics.test_quantized_linear import run_case

ISAS = pytest.mark.parametrize("isa", tile_isas(), ids=lambda isa: isa.name)


@ISAS
@pytest.mark.parametrize("fmt", ["q4g32", "q4g64", "q4g128c", "q6g32", "q8g32"])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 37])
def test_many_tokens_are_exact(isa, fmt, tokens):
    spec = LinearSpec(71, 416, WeightFormat.parse(fmt), max_tokens=37)
    run_case(spec, isa, tokens, exact=True, seed=tokens)


@ISAS
@pytest.mark.parametrize(("columns", "tokens"), [(20, 3), (64, 2)])
def test_few_groups_and_few_tokens_are_exact(isa, columns, tokens):
    spec = LinearSpec(16, columns, WeightFormat("q4", 32), max_tokens=3)
    run_case(spec, isa, tokens, exact=True, seed=columns)


@ISAS
def test_wide_tiles_of_rows_are_exact(isa):
    """A row tile of two vectors, so that a block has fewer tokens than lines of a tile register."""
    fmt = replace(WeightFormat("q4", 32), row_tile=32)
    run_case(LinearSpec(71, 160, fmt, max_tokens=37), isa, 35, exact=True, seed=3)


@ISAS
@pytest.mark.parametrize("gate", ["", "silu"])
def test_outliers_with_epilogues(isa, gate):
    spec = LinearSpec(
        2 * 45, 200, WeightFormat("q4", 32), 37,
        bias=True, residual=True, gate=gate, outliers=True,
    )  # fmt: skip
    run_case(spec, isa, 35, exact=False, seed=7)
