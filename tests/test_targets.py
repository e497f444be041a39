"""What every target promises, whichever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.ir.errors import InputError
from morendo.ir.formats import WeightFormat
from morendo.targets import find_target, known_targets

TARGETS = Path(__file__).parent.parent / "targets"
NAMES = [target.name for target in known_targets()]


@pytest.mark.parametrize("name", NAMES)
def test_target_is_complete(name: str) -> None:
    target = find_target(name)
    assert target.name == name
    assert target.layout.row_tile % target.isa.lanes == 0
    assert target.capabilities.vector_bytes == 4 * target.isa.lanes
    assert target.llvm.kind.name == "llvm"


def test_every_package_has_a_readme() -> None:
    for package in TARGETS.iterdir():
        if (package / "target.py").exists():
            assert (package / "README.md").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_kernels_carry_the_vector_unit_in_their_names(name: str) -> None:
    isa = find_target(name).isa
    spec = LinearSpec(64, 64, WeightFormat("q4", 32), max_tokens=1)
    function = build_quantized_linear(spec, isa)
    assert str(function.attrs["global_symbol"]).endswith(isa.name)


def test_unknown_targets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown target \(got 'toaster'\); known targets: x86"):
        find_target("toaster")
