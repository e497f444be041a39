"""Products by tile registers against numpy, where the machine has them: exact integers, tails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import WeightFormat
from morendo.targets.x86 import target
from morendo.targets.x86.isa import AMX, AVX512_VNNI_GFNI, X86ISA
from morendo.targets.x86.tiles import build_tile_linear
from tests.numerics.kernel_runner import tile_isas
from tests.numerics.test_quantized_linear import run_case

ISAS = pytest.mark.parametrize("isa", tile_isas(), ids=lambda isa: isa.name)


@ISAS
@pytest.mark.parametrize("fmt", ["q4g32", "q4g128c", "q8g64"])
@pytest.mark.parametrize("tokens", [1, 15, 16, 37])
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
def test_outliers_with_epilogues(isa):
    spec = LinearSpec(
        2 * 45, 200, WeightFormat("q4", 32), 37,
        bias=True, residual=True, gate="silu", outliers=True,
    )  # fmt: skip
    run_case(spec, isa, 35, exact=False, seed=7)


FLAGS = "avx2 bmi2 f16c fma movbe avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni gfni"
TILES = {"amx_tile", "amx_int8"}


def host(patch: pytest.MonkeyPatch, allowed: bool) -> target.X86Target:
    """The target of a machine that has tiles, whose system may keep them from this process."""
    patch.setattr(target, "cpu_flags", lambda: {*FLAGS.split(), *TILES})
    patch.setattr(target, "tiles_allowed", lambda: allowed)
    patch.setattr("platform.machine", lambda: "x86_64")
    return target.make("x86")


@pytest.mark.parametrize(("allowed", "isa"), [(True, AMX), (False, AVX512_VNNI_GFNI)])
def test_tiles_are_used_where_the_system_allows_them(
    allowed: bool, isa: X86ISA, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = host(monkeypatch, allowed)
    assert machine.isa is isa
    assert (set(machine.device.cpu_flags) >= TILES) == allowed


@pytest.mark.parametrize(("fmt", "products"), [("q4g32", 16 * 16 * 32), ("q8g64", 16 * 16 * 64)])
def test_products_of_tiles_are_counted(
    fmt: str, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups a round, on machines without tiles too: nothing is run."""
    kernel = build_tile_linear(LinearSpec(32, 1024, WeightFormat.parse(fmt), 16), AMX)
    code = host(monkeypatch, True).kernel_code({"kernel": kernel})["kernel"]
    assert code.products == 2 * products
    assert code.loop["tile"] == 10
