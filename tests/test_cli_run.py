"""`morendo run`: what it asks of a session, what it prints, and where."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import morendo
from morendo.cli import entry as cli
from morendo.runtime.sampling import SamplingSettings
from morendo.runtime.stats import LevelRuns, Stats


class FakeSession:
    """A model that says "ab, cd" whatever it is asked."""

    context = 16
    has_chat_template = False
    emulation = ""
    prefill_emulation = ""
    levels = 5
    said = ("ab, ", "cd")

    def __init__(self, finish="stop"):
        self.stats = Stats(
            load_seconds=0.5,
            prompt_tokens=10,
            prompt_seconds=0.25,
            decode_tokens=3,
            decode_seconds=1.5,
            levels=LevelRuns([[0, 1], [2, 2]]),
            bytes_per_token=2_000_000_000,
            bits_per_weight=3.914,
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
        yield from self.said


@pytest.fixture
def fake_session(monkeypatch):
    session = FakeSession()

    def load(directory, threads, prefill_on):
        assert prefill_on is None
        session.calls.append((directory, threads))
        return session

    monkeypatch.setitem(vars(morendo), "load", load)
    return session


def test_run_streams_text_and_nothing_else(fake_session, capsys):
    assert cli.main(["run", "dir", "Hello", "--threads", "2", "--level", "1"]) == 0
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("ab, cd\n", "")
    options = {
        "max_tokens": 256,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "repetition_penalty": None,
        "seed": 0,
        "ignore_eos": False,
        "stop": [],
        "schedule": None,
    }
    assert fake_session.calls == [
        (Path("dir"), 2),
        ("level", 1),
        ("encode", "Hello"),
        ([1, 2], options),
        "close",
    ]


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        (True, [], ("chat", "Hi", None)),
        (True, ["--raw"], ("encode", "Hi")),
        (True, ["--no-chat"], ("encode", "Hi")),
        (True, ["--chat"], ("chat", "Hi", None)),
        (True, ["--system", "Be brief."], ("chat", "Hi", "Be brief.")),
        (False, [], ("encode", "Hi")),
        (False, ["--raw"], ("encode", "Hi")),
    ],
)
def test_run_uses_the_chat_template_where_there_is_one(template, words, expected, fake_session):
    fake_session.has_chat_template = template
    assert cli.main(["run", "dir", "Hi", *words]) == 0
    assert fake_session.calls[1] == expected


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--chat"], "leave --chat out"),
        (["--system", "Be brief."], "leave --system out"),
        (["--system", "Be brief.", "--chat"], "leave --system and --chat out"),
    ],
)
def test_a_chat_without_a_template_is_refused(words, hint, fake_session, capsys):
    assert cli.main(["run", "dir", "Hi", *words]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"error: this model has no chat template; {hint}\n"


@pytest.mark.parametrize(
    ("template", "words", "hint"),
    [
        (True, [], "--raw continues PROMPT instead of answering it"),
        (True, ["--raw"], "without --raw, PROMPT is what the user says"),
        (False, [], "--ignore-eos goes on after the model's end of text"),
    ],
)
@pytest.mark.parametrize("said", [[], ["\n", " "]], ids=["nothing", "blanks"])
def test_an_answer_that_ends_at_once_is_said(template, words, hint, said, fake_session, capsys):
    fake_session.has_chat_template = template
    fake_session.said = said
    assert cli.main(["run", "dir", "Hi", *words]) == 0
    assert capsys.readouterr().err == f"note: the text ended at once; {hint}\n"
    fake_session.stats.finish = "length"
    assert cli.main(["run", "dir", "Hi", *words]) == 0
    assert capsys.readouterr().err == ""


def test_run_hands_sampling_options_over(fake_session, capsys):
    words = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2"
    fake_session.stats.sampling = SamplingSettings(0.5)
    assert cli.main(["run", "dir", "Hi", *words.split(), "--stop", "a", "--stop", "b"]) == 0
    options = fake_session.calls[2][1]
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
    assert [options[name] for name in names] == [0.5, 3, 0.9, 0.1, 1.2, ["a", "b"]]
    assert capsys.readouterr().err == ""


def test_sampling_options_without_an_effect_are_said(fake_session, capsys):
    assert cli.main(["run", "dir", "Hi", "--top-k", "3", "--min-p", "0.1"]) == 0
    said = capsys.readouterr().err
    assert "note: --top-k, --min-p change nothing at temperature 0; add --temperature" in said
    assert cli.main(["run", "dir", "Hi", "--top-k", "3"]) == 0
    assert "note: --top-k changes nothing at" in capsys.readouterr().err


def test_run_hands_the_schedule_over(fake_session, capsys):
    assert cli.main(["run", "dir", "Hi", "--schedule", "fixed:2"]) == 0
    assert fake_session.calls[2][1]["schedule"] == "fixed:2"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "dir", "Hi", "--level", "5"])
    assert "--level must be 0 to 4 here (got 5)" in capsys.readouterr().err
    fake_session.levels = 1
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "dir", "Hi", "--level", "1"])
    assert "--level must be 0: the artifact has one level (got 1)" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "dir", "Hi", "--schedule", "static", "--level", "1"])
    assert "argument --level: not allowed with argument --schedule" in capsys.readouterr().err


def test_run_reads_the_prompt_from_standard_input(fake_session, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a file\n"))
    assert cli.main(["run", "dir", "-"]) == 0
    assert ("encode", "from a file") in fake_session.calls


def test_run_on_a_terminal_without_a_prompt_asks_for_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert cli.main(["run", "dir"]) == cli.USER_ERROR
    assert "there is no prompt" in capsys.readouterr().err


def test_stats_go_to_standard_error(fake_session, capsys):
    fake_session.stats.sampling = SamplingSettings(0.7, top_k=20)
    assert cli.main(["run", "dir", "Hi", "--stats"]) == 0
    streams = capsys.readouterr()
    assert streams.out == "ab, cd\n"
    lines = [" ".join(line.split()) for line in streams.err.splitlines()]
    assert lines[:4] == [
        "start 0.50 s first token after 0.75 s",
        "prefill 40.0 tokens/s 10 tokens",
        "decode 2.0 tokens/s 3 tokens",
        "weights 4.0 GB/s 2.00 GB a token, 3.91 bits a weight",
    ]
    assert lines[4:6] == ["levels 0 x1, 2 x2", "sampling temperature 0.7, top-k 20"]
    assert lines[6].startswith("memory ")


def test_a_full_context_is_said(fake_session, capsys):
    fake_session.stats.finish = "context"
    assert cli.main(["run", "dir", "Hi"]) == 0
    assert "the context of 16 tokens is full" in capsys.readouterr().err


def test_run_without_an_artifact_says_how_to_make_one(tmp_path, capsys):
    assert cli.main(["run", str(tmp_path / "nothing"), "Hello"]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "does not exist; make one with: morendo compile" in said
