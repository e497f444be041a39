"""Golden tests of passes: IR before and IR after, one file a case.

A case `tests/golden/passes/<pass>/<case>.py` starts with `# spec: ...`, then holds the module
before and, below `# after`, the module that the passes of the spec make of it. A case whose two
modules are the same says where a pass must not fire. `pytest --update-golden` writes what comes
out; read the diff before you commit it.
"""

from pathlib import Path

import pytest
import tvm_ffi

from morendo.ir.errors import CompileError
from morendo.ir.text import parse_module, print_module
from morendo.passes.base import Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes

ROOT = Path(__file__).parent / "passes"
SEPARATOR = "\n# after\n\n"
ALWAYS_FIRES = {"specialize-phases"}
NEEDS_TEXT = {  # and weights; see tests/quantizer
    "analyze-group-ranges", "promote-groups", "choose-activations", "calibrate-weights",
    "tune-scales", "search-scales",
}  # fmt: skip
CASES = sorted(ROOT.glob("*/*.py"))


def read_case(path: Path) -> tuple[str, str, str]:
    """(spec, text before, text after) of a case."""
    spec, _, body = path.read_text(encoding="utf-8").partition("\n")
    before, _, after = body.partition(SEPARATOR)
    return spec.removeprefix("# spec:").strip(), before.strip() + "\n", after


def same_module(before: str, after: str) -> bool:
    """Whether two texts say the same up to the names of variables."""
    modules = parse_module(before), parse_module(after)
    return tvm_ffi.structural_equal(*modules, map_free_vars=True)


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_golden(path: Path, request: pytest.FixtureRequest) -> None:
    spec, before, after = read_case(path)
    module, _ = run_passes(
        parse_module(before, str(path)), parse_spec(spec, known_passes()), Context()
    )
    got = print_module(module)
    if request.config.getoption("--update-golden"):
        path.write_text(f"# spec: {spec}\n{before}{SEPARATOR}{got}", encoding="utf-8")
        return
    assert got == after


def test_every_pass_has_a_case_where_it_fires_and_one_where_it_does_not() -> None:
    for name in set(known_passes()) - NEEDS_TEXT:
        cases = [read_case(path) for path in (ROOT / name.replace("-", "_")).glob("*.py")]
        fires = [not same_module(before, after) for _, before, after in cases]
        assert True in fires, f"{name}: no case where it fires"
        if name not in ALWAYS_FIRES:
            assert False in fires, f"{name}: no case where it must not fire"


def test_specialize_phases_refuses_a_fixed_number_of_tokens() -> None:
    text = read_case(ROOT / "specialize_phases" / "llama.py")[1]
    fixed = text.replace("(1, n", "(1, 7").replace("[1, n", "[1, 7")
    fixed = fixed.replace('n = TypeVar("n")\n', "")
    with pytest.raises(CompileError, match="the number of tokens is fixed"):
        passes = parse_spec("specialize-phases", known_passes())
        run_passes(parse_module(fixed), passes, Context())


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_text_parses_again(path: Path) -> None:
    after = read_case(path)[2]
    assert print_module(parse_module(after)) == after
