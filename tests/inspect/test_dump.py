"""What `--dump-ir` writes: numbered stages from the input to assembly, and an index of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tvm

from morendo.codegen.cpu.machine_code import compile_kernels
from morendo.ir.dump import Dump, read_index
from morendo.ir.errors import InputError
from morendo.ir.text import parse_module
from morendo.runtime.artifact import read_plan
from morendo.targets import find_target


def stage(dump: Path, kind: str) -> tuple[dict, dict]:
    """A stage of the index, and its report."""
    found = next(s for s in read_index(dump)["stages"] if s["kind"] == kind)
    return found, json.loads((dump / found["report"]).read_text())


def test_stages_go_on_to_assembly(compiled):
    _, dump = compiled
    index = read_index(dump)
    kinds = [s["kind"] for s in index["stages"]]
    assert kinds == ["input", *["pass"] * 7, "kernels", "plan", "memory", "assembly", "weights"]
    assert [s["number"] for s in index["stages"]] == list(range(13))
    assert index["facts"]["model"]
    listed = {f for s in index["stages"] for f in [*s["files"], s["report"]] if f}
    written = {p.relative_to(dump).as_posix() for p in dump.rglob("*") if p.is_file()}
    assert written == listed | {"index.json"}


def test_a_dump_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be dumped there .File exists.*give a folder"):
        Dump(tmp_path / "file")


def test_passes_report_time_and_size(compiled):
    _, dump = compiled
    reports = [
        json.loads((dump / s["report"]).read_text())
        for s in read_index(dump)["stages"]
        if s["kind"] == "pass"
    ]
    sizes = [r["size"]["bytes"] for r in reports]
    assert sizes[0] > 3 * sizes[1] > 0, "quantize-weights makes f32 smaller"
    assert all(r["seconds"] >= 0 for r in reports)


def test_every_kernel_has_tir_and_assembly(compiled):
    artifact, dump = compiled
    plan = read_plan(artifact)
    kernels, tir = stage(dump, "kernels")
    assembly, counts = stage(dump, "assembly")
    for name in plan.kernels:
        assert f"{kernels['number']:02d}_kernels/{name}.py" in kernels["files"]
        text = (dump / f"{assembly['number']:02d}_assembly/{name}.s").read_text()
        assert re.search(rf"^__tvm_ffi_{name}:", text, re.MULTILINE)
        facts = counts["kernels"][name]
        assert facts["instructions"] >= sum(facts["loop"].values()) >= 0
        assert facts["instructions"] > 10
        assert sum(tir["kernels"][name]["calls"].values()) > 0
    linear = next(name for name in plan.kernels if name.startswith("qlinear"))
    assert tir["kernels"][linear]["weight_bytes"][0] > 1000
    assert counts["kernels"][linear]["products"] > 0


def test_the_memory_table_has_no_two_values_in_one_place(compiled):
    artifact, dump = compiled
    plan = read_plan(artifact)
    found, buffers = stage(dump, "memory")
    assert (dump / found["files"][0]).read_text().count("\n") > 3 * len(buffers["decode"])
    for function, steps in plan.functions.items():
        assert buffers[function]
        for i, a in enumerate(buffers[function]):
            assert 0 <= a["first"] <= a["last"] < len(steps)
            assert a["offset"] + a["nbytes"] <= plan.arena_bytes
            for b in buffers[function][:i]:
                alive = a["first"] <= b["last"] and b["first"] <= a["last"]
                apart = (
                    a["offset"] + a["nbytes"] <= b["offset"]
                    or b["offset"] + b["nbytes"] <= a["offset"]
                )
                assert apart or not alive, (function, a, b)


def test_kept_machine_code_is_listed_too(tmp_path, monkeypatch):
    from morendo.codegen.cpu.kernels.token_rows import copy_last_token

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = find_target("native")
    kernels = {"copy": copy_last_token(isa=target.isa, max_tokens=4, features=8)}
    (plain,) = compile_kernels(kernels, target.llvm, tmp_path)
    kept = plain.read_bytes()
    listings: dict[str, str] = {}
    compile_kernels(kernels, target.llvm, tmp_path, listings=listings)
    assert plain.read_bytes() == kept
    assert "__tvm_ffi_copy:" in listings["copy"]
    again: dict[str, str] = {}
    monkeypatch.setattr(tvm.tirx, "build", None)  # all of it is kept now
    compile_kernels(kernels, target.llvm, tmp_path, listings=again)
    assert again == listings


def test_a_first_compilation_with_listings_builds_each_kernel_once(tmp_path, monkeypatch):
    from morendo.codegen.cpu.kernels.token_rows import copy_last_token

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = find_target("native")
    kernels = {
        f"copy_{n}": copy_last_token(isa=target.isa, max_tokens=4, features=n) for n in (8, 16)
    }
    built: list[str] = []
    build = tvm.tirx.build

    def counted(module, **options):
        built.extend(variable.name_hint for variable in module.get_global_vars())
        return build(module, **options)

    monkeypatch.setattr(tvm.tirx, "build", counted)
    compile_kernels(kernels, target.llvm, tmp_path, listings={})
    assert sorted(built) == sorted(kernels)


def test_generic_kernels_show_what_they_were_before_scheduling(tmp_path):
    from morendo.codegen.build import lower_module
    from morendo.codegen.dump_program import dump_program
    from morendo.codegen.lowering import Options

    function = """
    @R.function
    def {name}(ids: R.Tensor((1, {n}), "int64"), at: R.Tensor((1, {n}), "int64")):
        with R.dataflow():
            x = M.embedding(ids, weight="e", rows=64, features=64)
            y = R.sigmoid(x)
            z = R.sin(y)
            R.output(z)
        return z
"""
    functions = [("prefill", "n"), ("score", "n"), ("decode", "1")]
    text = "".join(function.format(name=name, n=n) for name, n in functions)
    text = f'n = TypeVar("n")\n@I.ir_module\nclass Module:\n{text}'
    options = Options(chunk=32, context=64, half_cache=False)
    program, plan = lower_module(parse_module(text), find_target("native"), options)
    dump_program(Dump(tmp_path), program, plan, 0.0)
    names = [path.name for path in (tmp_path / "00_kernels").iterdir()]
    before = [name for name in names if name.endswith(".unscheduled.py")]
    assert before
    for name in before:
        scheduled = (tmp_path / "00_kernels" / name.replace(".unscheduled", "")).read_text()
        assert scheduled != (tmp_path / "00_kernels" / name).read_text()


def test_a_second_dump_replaces_the_first(compiled, tmp_path):
    module = parse_module((compiled[1] / "00_input.py").read_text())
    dump = Dump(tmp_path)
    dump.module("input", module)
    dump.text("kernels", {"a.py": "a"})
    (tmp_path / "note.txt").write_text("mine")
    Dump(tmp_path).text("plan", {".txt": "p"})
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert left == ["00_plan.txt", "index.json", "note.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"is no dump, it has no index.json; write a dump with"),
        ("{", "index.json is not JSON"),
        ("[]", "index.json: "),
        ('{"version": 9, "facts": {}, "stages": []}', r"of another version \(got 9, need 2\)"),
        (
            '{"version": 2, "facts": {}, "stages": [{"number": 0, "name": "x", "kind": "x", '
            '"files": ["../x"], "report": null, "seconds": null}]}',
            r"names a file outside the dump \(../x\)",
        ),
    ],
)
def test_what_is_no_dump_is_refused(text, said, tmp_path):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_index(tmp_path)
