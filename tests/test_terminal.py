"""Tables, sizes, colors and progress."""

import io
import sys
from types import SimpleNamespace

import pytest

from morendo import compiler, terminal
from morendo.ir.errors import InputError, MorendoError
from morendo.ir.printable import printable
from morendo.progress import BarProgress, PlainProgress, Progress, make_progress


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


# Text of files and of models

HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e\ud83d \N{GRINNING FACE}\r\n\t"
QUOTED = r"\x1b[31mred\x1b]0;title\x07\x9b2J\u202e\ud83d " + "\N{GRINNING FACE}" + r"\r\n\t"


def test_control_characters_are_spelled_out():
    assert printable(HOSTILE) == QUOTED
    assert terminal.paint(HOSTILE, "bold", io.StringIO()) == QUOTED
    assert terminal.table([(HOSTILE, 1)]) == f"{QUOTED}  1"


def test_errors_and_notes_are_one_harmless_line(capsys):
    terminal.print_error("a\nb \x1b[2J")
    PlainProgress(sys.stderr).note("kept \x1b[2J")
    assert capsys.readouterr().err == "error: a b \\x1b[2J\nkept \\x1b[2J\n"
    screen = Screen()
    BarProgress(screen).note("[red]kept\x1b[2J")
    assert "[red]kept\\x1b[2J" in screen.getvalue()


def test_a_terminal_does_not_obey_the_model():
    text = "a\x1b[31mb\x07\x08\r\x9b2Jc\td\n\N{GRINNING FACE}\u05d0"
    assert terminal.shown(text, Screen()) == "a[31mb2Jc\td\n\N{GRINNING FACE}\u05d0"
    assert terminal.shown(text, io.StringIO()) == text


def test_streams_take_what_their_encoding_lacks(monkeypatch):
    out, raw = io.BytesIO(), io.BytesIO("caf\u00e9 \N{GRINNING FACE}".encode())
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="ascii"))
    terminal.accept_all_text()
    print(terminal.read_standard_input(), flush=True)
    assert out.getvalue() == b"caf\\xe9 \\U0001f600\n"
    latin = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", latin)
    with pytest.raises(UnicodeDecodeError):
        terminal.read_standard_input()


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
        "pack: 2 of 4, 12 s, 12 s left",
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


def test_what_a_model_leaves_out_is_said_before_it_is_compiled(monkeypatch, tmp_path):
    loaded = SimpleNamespace(notes=("left out: x",), context=8)
    monkeypatch.setattr(compiler, "load_model", lambda model, context: loaded)
    monkeypatch.setattr(compiler, "prepare_tokenizer", lambda *_: {})
    monkeypatch.setattr(compiler, "describe_text", lambda *_: None)
    said = io.StringIO()
    with pytest.raises(InputError, match="context is longer"):
        compiler.compile("x", context=9, out=tmp_path / "a", progress=PlainProgress(said))
    assert said.getvalue().splitlines()[-1] == "note: left out: x"


def test_an_error_is_one_printable_line():
    error = MorendoError("got \x1b[31mawq\nfoo", where="a\u202eb\n", hint="see\tthe \x00 file")
    assert str(error) == r"got \x1b[31mawq foo at a\u202eb; see the \x00 file"
    assert error.args == (error.message,) == (r"got \x1b[31mawq foo",)
