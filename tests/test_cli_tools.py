"""The commands that look inside: opt, passes, targets, inspect."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from morendo.cli import entry as cli
from morendo.codegen import link as link_module
from morendo.codegen.model_tables import ModelTables
from morendo.ir.errors import CompileError
from morendo.runtime.artifact import create_artifact
from morendo.targets import find_target
from tests.relist import relist

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "passes" / "quantize_weights" / "llama.py"


@pytest.fixture
def ir_file(tmp_path):
    """IR text as `--dump-ir` writes it."""
    path = tmp_path / "normalized.py"
    path.write_text(GOLDEN.read_text(encoding="utf-8").partition("\n# after\n")[0], "utf-8")
    return path


def test_opt_prints_ir_and_reports_on_stderr(ir_file, capsys):
    assert cli.main(["opt", str(ir_file), "-p", "quantize-weights{bits=8}"]) == 0
    streams = capsys.readouterr()
    assert 'format="q8g32"' in streams.out
    assert streams.err.startswith("quantize-weights{bits=8}: ")


def test_opt_reads_standard_input_and_writes_a_file(ir_file, tmp_path, monkeypatch, capsys):
    out, dump = tmp_path / "out.py", tmp_path / "dump"
    monkeypatch.setattr(sys, "stdin", io.StringIO(ir_file.read_text(encoding="utf-8")))
    words = ["opt", "-", "-p", "quantize-weights,fuse-linears", "-o", out, "--dump-ir", dump]
    assert cli.main(list(map(str, words))) == 0
    assert capsys.readouterr().out == ""
    assert "M.fused_linear" in out.read_text(encoding="utf-8")
    names = sorted(path.name for path in dump.iterdir())
    assert names[:3] == ["00_input.py", "01_quantize_weights.json", "01_quantize_weights.py"]
    facts = json.loads((dump / names[1]).read_text(encoding="utf-8"))
    assert facts["pass"] == "quantize-weights"
    assert facts["counts"]


@pytest.mark.parametrize(
    ("text", "spec", "said"),
    [
        (None, "normalize", "there is no file"),
        (b"\xff\xfe", "fuse-linears", "is not text"),
        (b"x = 1\n", "fuse-linears", "error: there is no @I.ir_module in it at "),
        (b"def (", "fuse-linears", "ir.py; print a module with"),
        (b"", "melt", "unknown pass (got 'melt')"),
        (b"", "quantize-weights{bytes=4}", "unknown option (got 'bytes')"),
        (b"", "", "pass spec is empty"),
    ],
)
def test_opt_says_what_is_wrong_with_its_input(text, spec, said, tmp_path, capsys):
    path = tmp_path / "ir.py"
    if text is not None:
        path.write_bytes(text)
    assert cli.main(["opt", str(path), "-p", spec]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["."], "error: . is a directory; "),
        (["ir.py", "-o", "nodir/x.py"], "error: there is no directory nodir for --out"),
        (["ir.py", "-o", "."], "error: cannot write ., it is a directory"),
    ],
)
def test_opt_checks_its_files_first(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ir.py").touch()
    assert cli.main(["opt", *words, "-p", "no-such-pass"]) == cli.USER_ERROR
    assert capsys.readouterr().err.startswith(said)


def test_a_linker_without_a_word_is_explained(tmp_path, monkeypatch):
    def link(free, stderr=""):
        done = subprocess.CompletedProcess([], 137, "", stderr)
        monkeypatch.setattr(link_module.subprocess, "run", lambda *_, **__: done)
        monkeypatch.setattr(link_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        with pytest.raises(CompileError) as caught:
            toolchain = link_module.Toolchain("x86_64")
            link_module.link_model([], ModelTables(), tmp_path / "m.so", toolchain)
        return str(caught.value)

    said = link(free=2_000_000)
    assert said.startswith("linking failed: the linker ended with code 137 and no message at ")
    assert "; free some space (2 MB are left in " in said
    assert "space" not in link(free=10**12)
    assert "free some space" in link(free=10**12, stderr="error: NoSpaceLeft")


def test_a_reader_that_goes_away_is_no_error(ir_file):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "morendo", "opt", ir_file, "-p", "quantize-weights"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == cli.NO_READER
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_passes_and_targets_are_listed_with_one_line(capsys):
    assert cli.main(["passes"]) == 0
    listed = capsys.readouterr().out
    assert "quantize-weights{bits=4,group_size=32" in listed
    assert "\n  Give linears and embeddings a weight format" in listed
    assert cli.main(["targets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    native = find_target("native").name
    assert listed[0].split(maxsplit=1) == ["native", f"this machine, the default: {native}"]
    assert any(line.startswith("x86 ") for line in listed)


def test_targets_are_listed_where_none_is_for_this_machine(capsys, monkeypatch):
    monkeypatch.setattr("morendo.targets._native", missing_target)
    assert cli.main(["targets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split(maxsplit=1) == ["native", "this machine: no target is for it"]
    assert any(line.startswith("x86 ") for line in listed)


def missing_target():
    raise CompileError("no target is for it")


MANIFEST = {
    "model": {"name": "toy", "architecture": "llama"},
    "target": {
        "name": "x86",
        "triple": "x86_64-linux-gnu",
        "isa": "avx2",
        "machine": "x86_64",
        "cpu_flags": ["fma"],
        "emulator": "",
    },
    "options": {"chunk": 8, "cache_dtype": "float16"},
    "passes": [
        {"spec": "normalize", "counts": {"linears": 7}, "missed": {}},
        {"spec": "fuse-linears", "counts": {}, "missed": {"weights are f16": 2}},
    ],
    "weights": [
        {
            "part": "layers.*.mlp.gate.weight + layers.*.mlp.up.weight",
            "format": "q4g32",
            "pieces": 2,
            "weights": 1000,
            "bytes": 600,
        }
    ],
    "tokenizer": {"stop": [2], "add_bos": False, "vocabulary": 5, "context": 64},
}


@pytest.fixture
def artifact(tmp_path):
    out = tmp_path / "toy"
    with create_artifact(out) as writer:
        for name in ("plan.json", "model.so", "weights.bin"):
            (writer.path / name).write_bytes(b"x" * 1500)
        writer.finish(MANIFEST)
    return out


def test_inspect_shows_what_is_inside(artifact, capsys):
    assert cli.main(["inspect", str(artifact)]) == 0
    text = capsys.readouterr().out
    for said in (
        "toy (llama)",
        "x86: x86_64-linux-gnu avx2",
        "64 tokens",
        "chunk 8, cache_dtype float16",
        "4.80 per weight",
        "1.5 kB  weights.bin",
        "normalize\n  linears: 7",
        "fuse-linears\n  nothing to do\n  left alone: 2 (weights are f16)",
    ):
        assert said in text
    row = next(line for line in text.splitlines() if line.startswith("q4g32"))
    assert " ".join(row.split()) == "q4g32 2 1000 600 B 4.80 layers.*.mlp.gate + up"


ENTRY = {
    "names": ["layers.0.up.weight"],
    "rows": [32],
    "columns": 96,
    "format": "q4g32p2,1o3",
    "transposed": False,
    "interleaved": False,
    "order": None,
    "offsets": [0, 64, 128],
    "nbytes": 1500,
    "figures": [{"nearest": 0.01, "promoted": 0.05, "feedback": 0.02, "dead": 0.0}],
}


def weight_list(entry: dict) -> str:
    """The text of weights.json with one matrix."""
    return json.dumps({"matrices": [entry], "vectors": []})


def test_inspect_weights_says_where_the_bits_went(artifact, capsys):
    (artifact / "weights.json").write_text(weight_list(ENTRY))
    relist(artifact)
    assert cli.main(["inspect", str(artifact), "--weights"]) == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("layers.0"))
    assert " ".join(row.split()) == "layers.0.up 32 x 96 1 1 1 6 3.91 1.00e-02 5.00e-02 2.00e-02"
    for change in ({"format": "q5"}, {"rows": "32"}, {"rows": []}, {"columns": -1}):
        (artifact / "weights.json").write_text(weight_list({**ENTRY, **change}))
        relist(artifact)
        assert cli.main(["inspect", str(artifact), "--weights"]) == cli.USER_ERROR
        assert "malformed" in capsys.readouterr().err
    (artifact / "weights.json").write_text(weight_list(ENTRY))
    assert cli.main(["inspect", str(artifact), "--weights"]) == cli.USER_ERROR
    assert "weights.json is damaged" in capsys.readouterr().err
    (artifact / "weights.json").unlink()
    assert cli.main(["inspect", str(artifact), "--weights"]) == cli.USER_ERROR
    assert "weights.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "needs", "shown"),
    [(["fma"], "", "fma"), ([], "a GPU", "a GPU"), (["fma"], "a GPU", "fma a GPU"), ([], "", "-")],
)
def test_inspect_says_what_a_device_must_have(flags, needs, shown, tmp_path, capsys):
    target = {**MANIFEST["target"], "cpu_flags": flags, "needs": needs}
    with create_artifact(tmp_path / "toy") as writer:
        for name in ("plan.json", "model.so"):
            (writer.path / name).write_bytes(b"x")
        writer.finish({**MANIFEST, "target": target})
    assert cli.main(["inspect", str(tmp_path / "toy")]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["needs", shown] in lines


@pytest.mark.parametrize(
    ("passes", "weights", "shown"),
    [
        ({"quantize-activations": {"activations quantized": 2}}, "q4g32", "8 bits"),
        (
            {"choose-activations{bits=4}": {"inputs of projections with 4 bits": 1},
             "quantize-activations": {"activations quantized": 2}},
            "q4g32", "8 bits, 4 for some inputs",
        ),
        ({}, "q4g32", "16 bits (halves)"),
        ({"quantize-activations": {}}, "f16", "floats"),
    ],
)  # fmt: skip
def test_inspect_says_what_activations_are(passes, weights, shown, tmp_path, capsys):
    records = [{"spec": spec, "counts": found, "missed": {}} for spec, found in passes.items()]
    (part,) = MANIFEST["weights"]
    with create_artifact(tmp_path / "toy") as writer:
        for name in ("plan.json", "model.so"):
            (writer.path / name).write_bytes(b"x")
        changed = {"passes": records, "weights": [{**part, "format": weights}]}
        writer.finish({**MANIFEST, **changed})
    assert cli.main(["inspect", str(tmp_path / "toy")]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["activations", shown] in lines


def test_inspect_json_is_the_manifest(artifact, capsys):
    assert cli.main(["inspect", str(artifact), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["model"] == MANIFEST["model"]
    assert manifest["files"]["plan.json"]["bytes"] == 1500


def test_inspect_says_what_is_damaged(artifact, capsys):
    assert cli.main(["inspect", str(artifact), "--plan"]) == cli.USER_ERROR
    assert "plan.json" in capsys.readouterr().err
    (artifact / "weights.bin").write_bytes(b"x" * 1000)
    for form in ([], ["--json"], ["--plan"], ["--weights"]):
        assert cli.main(["inspect", str(artifact), *form]) == cli.USER_ERROR
        said = capsys.readouterr()
        assert "weights.bin is damaged (got 1000 bytes, need 1500)" in said.err
        assert said.out == ""
    (artifact / "manifest.json").write_text("{")
    assert cli.main(["inspect", str(artifact)]) == cli.USER_ERROR
    assert "manifest.json" in capsys.readouterr().err


def test_opt_without_passes_checks_and_prints(ir_file, capsys):
    assert cli.main(["opt", str(ir_file)]) == 0
    streams = capsys.readouterr()
    assert "M.linear" in streams.out
    assert streams.err == ""


def test_opt_refuses_ir_that_no_pass_could_have_made(ir_file, capsys):
    text = ir_file.read_text(encoding="utf-8")
    ir_file.write_text(text.replace("features=64", 'features=64, format="q7g32"', 1), "utf-8")
    assert cli.main(["opt", str(ir_file)]) == cli.USER_ERROR
    assert "the module is not formats-known as it was read" in capsys.readouterr().err


def test_opt_prints_after_passes_and_their_times(ir_file, capsys):
    words = ["opt", str(ir_file), "-p", "quantize-weights,fuse-attention", "--verify-each"]
    assert cli.main([*words, "--print-after", "quantize-weights", "--time"]) == 0
    said = capsys.readouterr().err
    assert said.count("# after ") == said.count("@I.ir_module") == 1
    assert "# after quantize-weights\n" in said
    assert "seconds" in said
    assert cli.main([*words, "--print-after-all"]) == 0
    assert capsys.readouterr().err.count("@I.ir_module") == 2


def test_opt_says_when_a_printed_pass_does_not_run(ir_file, capsys):
    words = ["opt", str(ir_file), "-p", "fuse-attention", "--print-after", "normalize"]
    assert cli.main(words) == cli.USER_ERROR
    assert "--print-after normalize: no such pass runs; passes that run: fuse-attention" in (
        capsys.readouterr().err
    )


def test_verify_each_notices_text_that_means_something_else(ir_file, monkeypatch, capsys):
    from morendo.ir import text

    real = text.print_module
    monkeypatch.setattr(text, "print_module", lambda m: real(m).replace("1e-05", "1e-06"))
    words = ["opt", str(ir_file), "-p", "quantize-weights"]
    assert cli.main(words) == 0
    capsys.readouterr()
    assert cli.main([*words, "--verify-each"]) == cli.USER_ERROR
    assert "the IR's text parses to another module at after quantize-weights" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("path", "said"), [(".", "it is a directory"), ("no/x", "no directory no")]
)
def test_compile_refuses_a_place_for_statistics_first(path, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compile", "no-model", "--stats", path]) == cli.USER_ERROR
    assert said in capsys.readouterr().err
