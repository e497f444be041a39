"""The command line: what it prints, where, and with which exit code."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import morendo
from morendo.cli import entry as cli
from morendo.cli.parser import USAGE_ERROR
from morendo.ir.errors import CompileError
from morendo.progress import Progress
from morendo.runtime.artifact import create_artifact
from morendo.terminal import size

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("compile", "run", "eval", "opt", "passes", "targets", "inspect")


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
    if command in ("compile", "run", "eval", "opt", "inspect"):
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
        ["compile", "m", "--bits", "3"],
        ["compile", "m", "--bits", "8", "--average-bits", "3"],
        ["compile", "m", "--average-bits", "0"],
        ["compile", "m", "--average-bits", "inf"],
        ["compile", "m", "--average-bits", "3", "--size", "90MB"],
        ["compile", "m", "--size", "big"],
        ["compile", "m", "--context", "-1"],
        ["compile", "m", "--context", "many"],
        ["run", "d", "text", "--max-tokens", "x"],
        ["run", "d", "text", "--system", "Be brief.", "--raw"],
        ["run", "d", "text", "--system", "Be brief.", "--no-chat"],
        ["inspect", "d", "--json", "--plan"],
        ["inspect", "d", "--rate", "8", "--bandwidth", "25"],
        ["inspect", "d", "--kernels", "--rate", "8"],
        ["inspect", "d", "--kernels", "--rate", "8", "--bandwidth", "inf"],
        ["eval", "d"],
        ["eval", "d", "--text", "t", "--window", "1"],
        ["eval", "d", "--text", "t", "--level", "best"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == USAGE_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert re.search(r"; (see morendo( \w+)? --help|put the prompt into quotes)$", said)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "d", "a", "b"], "unrecognized arguments: b; put the prompt into quotes"),
        (["run", "d", "a", "--b"], "unrecognized arguments: --b; see morendo run --help"),
        (["run", "d", "a", "--stop", ""], "argument --stop: must not be empty; see"),
        (["run", "d", "--temperature", "nan"], "--temperature: must be a finite number of 0 or"),
        (["run", "d", "--temperature", "x"], "a finite number of 0 or more (got x); see morendo"),
        (["run", "d", "--min-p", "1.5"], "argument --min-p: must be 0 to 1 (got 1.5)"),
        (["run", "d", "--top-k", "1.5"], "--top-k: must be a whole number, 0 or more (got 1.5)"),
        (["run", "d", "--max-tokens", "-1"], "must be a whole number, 0 to 2147483647 (got -1)"),
        (["run", "d", "--max-tokens", str(10**20)], "0 to 2147483647 (got 100000000000000000000)"),
        (["run", "d", "--threads", "257"], "must be a whole number, 0 to 256 (got 257)"),
        (["run", "d", "--raw", "--chat"], "--chat: not allowed with argument --raw"),
        (["compile", "m", "--average-bits", "x"], "must be a finite number above 0 (got x)"),
        (["eval", "d", "--text", "t", "--window", "1"], "must be a whole number, 2 or more"),
        (["verify", "d", "--sha256", "abc"], "a SHA-256 has 64 hexadecimal digits; see morendo v"),
        (["verify", "d", "e"], "unrecognized arguments: e; see morendo verify --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_usage_error_says_what_is_needed(arguments, line, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert line in capsys.readouterr().err


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_cleans_up(number, set_api, tmp_path, capsys):
    def fake(model, **options):
        with create_artifact(tmp_path / "new" / "out"):
            os.kill(os.getpid(), number)
            pytest.fail("the signal was not noticed")

    set_api("compile", fake)
    assert cli.main(["compile", "m"]) == 128 + number
    assert capsys.readouterr().err.endswith(f"error: stopped by {number.name}\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_output_that_cannot_be_written_is_one_line():
    command = [sys.executable, "-m", "morendo", "targets"]
    for where, said in ((">&-", "standard output is closed"), (">/dev/full", "cannot write")):
        shell = ["sh", "-c", f'exec "$@" {where}', "sh", *command]
        done = subprocess.run(shell, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == cli.USER_ERROR
        assert done.stderr.startswith(f"error: {said}")
        assert done.stderr.count("\n") == 1
    assert "(No space left on device)" in done.stderr


def test_the_api_is_lazy_and_complete():
    assert {"compile", "load", "MorendoError", "__version__"} <= set(dir(morendo))
    assert morendo.MorendoError is CompileError.__base__
    with pytest.raises(AttributeError, match="no attribute 'melt'"):
        morendo.melt  # noqa: B018


# compile


def test_compile_hands_its_options_over(set_api, tmp_path, capsys):
    calls = []
    tmp_path = tmp_path / "my model"
    tmp_path.mkdir()

    def fake(model, **options):
        calls.append((model, options))
        parts = (("q4g32cp1,0", 700, 300), ("u16", 32, 64), ("q8g32", 90, 90), ("f32", 2, 8))
        weights = [dict(zip(("format", "weights", "bytes"), part, strict=True)) for part in parts]
        used = {"options": {"context": 512, "chunk": 64}, "weights": weights, "passes": []}
        (tmp_path / "manifest.json").write_text(json.dumps(used))
        return tmp_path

    set_api("compile", fake)
    assert cli.main(["compile", "some/model", "--bits", "8", "--group-size", "64"]) == 0
    model, options = calls[0]
    assert isinstance(options.pop("progress"), Progress)
    assert model == "some/model"
    assert options == {"target": "native", "bits": 8, "check": False, "group_size": 64}
    out = capsys.readouterr().out
    assert f"wrote {tmp_path}: {size((tmp_path / 'manifest.json').stat().st_size)} in " in out
    assert "; 4.16 in nested codes, which --average-bits counts" in out
    assert "the model has no tokenizer: use token ids from Python" in out

    words = "--bits f16 --context 512 --chunk 64 --out o --dump-ir d --passes normalize --check -q"
    assert cli.main(["compile", "m", *words.split()]) == 0
    options = calls[1][1]
    assert (options["bits"], options["context"], options["chunk"]) == ("f16", 512, 64)
    assert (options["out"], options["dump_ir"]) == (Path("o"), Path("d"))
    assert (options["passes"], options["check"]) == ("normalize", True)
    assert capsys.readouterr().out == ""

    (tmp_path / "tokenizer.json").touch()
    assert cli.main(["compile", "m", "--context", "500", "--chunk", "900"]) == 0
    streams = capsys.readouterr()
    assert f"run it: morendo run '{tmp_path}' " in streams.out
    note = "note: --context was rounded up from 500 to 512; --chunk was cut from 900 to 64, no more"
    assert note in streams.err


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


@pytest.mark.parametrize("share", ["0.6", "-1", "nan", "half"])
def test_a_share_of_tokens_is_refused_before_anything_starts(share: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compile", "model", "--prune-tokens", share])
    assert f"must be a share of tokens, 0 to 0.5 (got {share})" in capsys.readouterr().err


def test_an_unknown_importance_is_refused_before_anything_starts(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compile", "model", "--prune-importance", "last"])
    assert "must be first or received (got last)" in capsys.readouterr().err


def test_a_pipeline_without_a_depth_is_refused_before_anything_starts(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compile", "model", "--pipeline", "fetch"])
    assert "must be stages with depths, such as fetch=0 (got fetch)" in capsys.readouterr().err
