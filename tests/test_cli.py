"""The command line: what it prints, where, and with which exit code."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import morendo
from morendo import cli, terminal
from morendo.ir.errors import CompileError
from morendo.progress import BarProgress, PlainProgress, Progress, make_progress
from morendo.runtime.artifact import create_artifact
from morendo.runtime.session import Stats

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "passes" / "quantize_weights" / "llama.py"
COMMANDS = ("compile", "run", "opt", "passes", "targets", "inspect")


def run_cli(*arguments, **options):
    """A real process, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "morendo", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.fixture
def ir_file(tmp_path):
    """IR text as `--dump-ir` writes it."""
    path = tmp_path / "normalized.py"
    path.write_text(GOLDEN.read_text(encoding="utf-8").partition("\n# after\n")[0], "utf-8")
    return path


@pytest.fixture
def set_api(monkeypatch):
    """Put a stand-in in place of morendo.compile or morendo.load."""
    return lambda name, value: monkeypatch.setitem(vars(morendo), name, value)


# What every command shares: help, errors, exit codes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_command(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: morendo {command}" in text
    if command in ("compile", "run", "opt", "inspect"):
        assert "examples:\n  morendo " in text
        assert f"  morendo {command} " in text


def test_help_starts_fast_and_shows_what_to_do_first():
    done = run_cli("--help")
    assert "start here:\n  morendo compile" in done.stdout
    assert "exit codes" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["compile"],
        ["compile", "m", "--bits", "5"],
        ["compile", "m", "--context", "-1"],
        ["compile", "m", "--context", "many"],
        ["run", "d", "text", "--max-tokens", "x"],
        ["inspect", "d", "--json", "--plan"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == cli.USAGE_ERROR
    assert "usage: morendo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            CompileError("K is odd (got 7, need 8)", where="layers.0", hint="pad it"),
            cli.USER_ERROR,
            "error: K is odd (got 7, need 8) at layers.0; pad it",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "model.gguf"),
            cli.USER_ERROR,
            "error: No such file or directory: model.gguf",
        ),
        (OSError(28, "No space left on device"), cli.USER_ERROR, "error: No space left on device"),
        (MemoryError(), cli.USER_ERROR, "error: out of memory"),
        (KeyboardInterrupt(), cli.INTERRUPTED, "error: interrupted"),
        (
            ValueError("deep\ninside"),
            cli.INTERNAL_ERROR,
            "internal error: ValueError: deep; this is a mistake in morendo, rerun with --debug",
        ),
        (AssertionError(), cli.INTERNAL_ERROR, "internal error: AssertionError; this is"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, set_api, capsys):
    def fail(*args, **options):
        raise error

    set_api("load", fail)
    assert cli.main(["run", "dir", "text"]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(line)
    assert streams.err.count("\n") == 1


def test_debug_shows_the_stack_trace(set_api):
    def fail(*args, **options):
        raise ValueError("deep inside")

    set_api("load", fail)
    with pytest.raises(ValueError, match="deep inside"):
        cli.main(["run", "dir", "text", "--debug"])


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


def test_the_api_is_lazy_and_complete():
    assert {"compile", "load", "MorendoError", "__version__"} <= set(dir(morendo))
    assert morendo.MorendoError is CompileError.__base__
    with pytest.raises(AttributeError, match="no attribute 'melt'"):
        morendo.melt  # noqa: B018


# compile


def test_compile_hands_its_options_over(set_api, tmp_path, capsys):
    calls = []

    def fake(model, **options):
        calls.append((model, options))
        (tmp_path / "weights.bin").write_bytes(b"12345678")
        return tmp_path

    set_api("compile", fake)
    assert cli.main(["compile", "some/model", "--bits", "8", "--group-size", "64"]) == 0
    model, options = calls[0]
    assert isinstance(options.pop("progress"), Progress)
    assert model == "some/model"
    assert options == {"target": "x86", "bits": 8, "group_size": 64}
    out = capsys.readouterr().out
    assert f"wrote {tmp_path}: 8 B in " in out
    assert f"morendo run {tmp_path} " in out

    words = "--bits f16 --context 512 --chunk 64 --out o --dump-ir d --passes normalize -q"
    assert cli.main(["compile", "m", *words.split()]) == 0
    options = calls[1][1]
    assert (options["bits"], options["context"], options["chunk"]) == ("f16", 512, 64)
    assert (options["out"], options["dump_ir"]) == (Path("o"), Path("d"))
    assert options["passes"] == "normalize"
    assert capsys.readouterr().out == ""


def test_compile_of_nothing_says_so_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    done = run_cli("compile", tmp_path / "missing.gguf", "--out", out)
    assert done.returncode == cli.USER_ERROR
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "missing.gguf" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_is_named_with_the_known_ones(tmp_path, capsys):
    assert cli.main(["compile", "m", "--target", "pdp11", "--out", str(tmp_path / "o")]) == 1
    assert "unknown target (got 'pdp11'); known targets: " in capsys.readouterr().err


# run


class FakeSession:
    """A model that says "ab, cd" whatever it is asked."""

    context = 16

    def __init__(self, finish="stop"):
        self.stats = Stats(
            load_seconds=0.5,
            prompt_tokens=10,
            prompt_seconds=0.25,
            decode_tokens=3,
            decode_seconds=1.5,
            bytes_per_token=2_000_000_000,
            finish=finish,
        )
        self.calls = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.calls.append("close")

    def set_level(self, level):
        self.calls.append(("level", level))

    def encode(self, text):
        self.calls.append(("encode", text))
        return [1, 2]

    def encode_chat(self, text, system=None):
        self.calls.append(("chat", text, system))
        return [3]

    def stream(self, ids, **options):
        self.calls.append((ids, options))
        yield "ab, "
        yield "cd"


@pytest.fixture
def fake_session(set_api):
    session = FakeSession()

    def load(directory, threads):
        session.calls.append((directory, threads))
        return session

    set_api("load", load)
    return session


def test_run_streams_text_and_nothing_else(fake_session, capsys):
    assert cli.main(["run", "dir", "Hello", "--threads", "2", "--level", "1"]) == 0
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("ab, cd\n", "")
    options = {
        "max_tokens": 256,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "ignore_eos": False,
        "stop": [],
    }
    assert fake_session.calls == [
        (Path("dir"), 2),
        ("level", 1),
        ("encode", "Hello"),
        ([1, 2], options),
        "close",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--chat"], ("chat", "Hi", None)),
        (["--system", "Be brief."], ("chat", "Hi", "Be brief.")),
        (["--no-chat"], ("encode", "Hi")),
        ([], ("encode", "Hi")),
    ],
)
def test_run_uses_the_chat_template_when_asked(words, expected, fake_session):
    assert cli.main(["run", "dir", "Hi", *words]) == 0
    assert fake_session.calls[1] == expected


def test_run_reads_the_prompt_from_standard_input(fake_session, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a file\n"))
    assert cli.main(["run", "dir", "-"]) == 0
    assert ("encode", "from a file") in fake_session.calls


def test_run_on_a_terminal_without_a_prompt_asks_for_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert cli.main(["run", "dir"]) == cli.USER_ERROR
    assert "there is no prompt" in capsys.readouterr().err


def test_stats_go_to_standard_error(fake_session, capsys):
    assert cli.main(["run", "dir", "Hi", "--stats"]) == 0
    streams = capsys.readouterr()
    assert streams.out == "ab, cd\n"
    lines = [" ".join(line.split()) for line in streams.err.splitlines()]
    assert lines[:4] == [
        "start 0.50 s first token after 0.75 s",
        "prefill 40.0 tokens/s 10 tokens",
        "decode 2.0 tokens/s 3 tokens",
        "weights 4.0 GB/s 2.00 GB a token",
    ]
    assert lines[4].startswith("memory ")


def test_a_full_context_is_said(fake_session, capsys):
    fake_session.stats.finish = "context"
    assert cli.main(["run", "dir", "Hi"]) == 0
    assert "the context of 16 tokens is full" in capsys.readouterr().err


def test_run_without_an_artifact_says_how_to_make_one(tmp_path):
    done = run_cli("run", tmp_path / "nothing", "Hello")
    assert done.returncode == cli.USER_ERROR
    assert done.stderr.count("\n") == 1
    assert "does not exist; make one with: morendo compile" in done.stderr


# opt, passes, targets


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
        (b"x = 1\n", "fuse-linears", "error: "),
        (b"def (", "fuse-linears", "error: "),
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


def test_passes_and_targets_are_listed_with_one_line(capsys):
    assert cli.main(["passes"]) == 0
    listed = capsys.readouterr().out
    assert "quantize-weights{bits=4,group_size=32" in listed
    assert "\n  Give linears and embeddings a weight format" in listed
    assert cli.main(["targets"]) == 0
    assert any(line.startswith("x86 ") for line in capsys.readouterr().out.splitlines())


# inspect

MANIFEST = {
    "model": {"name": "toy", "architecture": "llama"},
    "target": {"name": "x86", "triple": "x86_64-linux-gnu", "features": ["fma"], "isa": "avx2"},
    "options": {"chunk": 8, "cache_dtype": "float16"},
    "passes": [
        {"spec": "normalize", "counts": {"linears": 7}, "missed": 0},
        {"spec": "fuse-linears", "counts": {}, "missed": 2},
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
        "fuse-linears\n  nothing to do; left alone: 2",
    ):
        assert said in text
    row = next(line for line in text.splitlines() if line.startswith("q4g32"))
    assert row.split() == "q4g32 2 1000 600 B 4.80 layers.*.mlp.gate + up".split()


def test_inspect_json_is_the_manifest(artifact, capsys):
    assert cli.main(["inspect", str(artifact), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["model"] == MANIFEST["model"]
    assert manifest["files"]["plan.json"]["bytes"] == 1500


def test_inspect_says_what_is_damaged(artifact, capsys):
    assert cli.main(["inspect", str(artifact), "--plan"]) == cli.USER_ERROR
    assert "plan.json" in capsys.readouterr().err
    (artifact / "manifest.json").write_text("{")
    assert cli.main(["inspect", str(artifact)]) == cli.USER_ERROR
    assert "manifest.json" in capsys.readouterr().err


# What is printed


def test_a_table_has_aligned_columns():
    text = terminal.table([("up", 7, "1.0 MB"), ("down_proj", 1000, "20.0 kB")], ("part", "n", "b"))
    assert text.splitlines() == [
        "part          n        b",
        "up            7   1.0 MB",
        "down_proj  1000  20.0 kB",
    ]
    assert terminal.table([]) == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (92_400_000, "92.4 MB"), (3.2e9, "3.20 GB")],
)
def test_sizes_are_decimal(count, text):
    assert terminal.size(count) == text


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_color_only_where_it_shows(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.paint("x", "red", Screen()) == "\x1b[1;31mx\x1b[0m"
    assert terminal.paint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.paint("x", "red", Screen()) == "x"


# Progress


def test_plain_progress_speaks_only_of_what_takes_long():
    now = 0.0
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=lambda: now)
    with progress, progress.task("quick", 3) as advance:
        advance(3)
    assert stream.getvalue() == ""
    with progress.task("pack", 4) as advance:
        for _ in range(4):
            now += 6
            advance()
    with progress.task("link"):
        now += 2
    assert stream.getvalue().splitlines() == [
        "pack: 2 of 4, 12 s",
        "pack: 4 of 4, 24 s",
        "pack: done in 24.0 s",
        "link: done in 2.0 s",
    ]


def test_bars_show_title_count_and_time():
    screen = Screen()
    with make_progress(screen) as progress:
        assert isinstance(progress, BarProgress)
        with progress.task("pack weights", 2) as advance:
            advance()
            advance()
        with progress.task("link"):
            pass
    assert "pack weights" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert "link" in screen.getvalue()


def test_progress_is_plain_in_logs_and_silent_when_quiet(capsys):
    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    with make_progress(quiet=True) as progress, progress.task("pack", 1) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_a_failing_task_passes_the_error_on():
    for progress in (Progress(), PlainProgress(io.StringIO()), BarProgress(Screen())):
        with pytest.raises(ValueError, match="broken"), progress, progress.task("pack", 1):
            raise ValueError("broken")
