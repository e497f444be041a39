"""`morendo eval --tasks`: which choice is the likeliest, and what is no question."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.cli import main
from morendo.ir.errors import InputError
from morendo.quality import Question, evaluate_tasks, read_questions
from morendo.quality.tasks import _log_probability, _row, _tokens

TINY = Path(__file__).parent / "models" / "tiny_llama"
QUESTIONS = [
    Question("import ", ("os", "banana soup", "numpy"), 0),
    Question("The capital of France is", (" Berlin", " Paris"), 1),
    Question("", ("def f(x):", "zz qq"), 0),
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks") / "artifact"
    return morendo.compile(TINY, out=out, bits=8, context=64, prune_tokens=0.2)


def test_questions_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [json.dumps({**vars(question), "more": 1}) for question in QUESTIONS]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert read_questions(path) == QUESTIONS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "is no JSON object .*line 2; a question is a line such as"),
        ("[1]", "is no JSON object"),
        ('{"choices": ["a", "b"], "answer": 0}', "has no context that is text"),
        ('{"context": "a", "choices": ["a"], "answer": 0}', "has no two choices"),
        ('{"context": "a", "choices": ["a", ""], "answer": 0}', "a choice is no text"),
        ('{"context": "a", "choices": ["a", 1], "answer": 0}', "a choice is no text"),
        (
            '{"context": "a", "choices": ["a", "b"], "answer": 2}',
            r"none of the choices \(got 2, need 0 to 1\)",
        ),
        ('{"context": "a", "choices": ["a", "b"], "answer": true}', "none of the choices"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(tmp_path: Path, line, message) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(vars(QUESTIONS[0])) + "\n" + line, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_questions(path)


def test_files_without_questions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, message in (
        ("empty", "there are no questions"),
        ("none", "cannot be read .No such file"),
        (".", "cannot be read .Is a directory"),
        ("bytes", "it is not UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            read_questions(tmp_path / name)


def test_figures_are_what_the_definitions_say() -> None:
    questions = [Question("c", ("a", "bbbb"), 1), Question("c", ("aa", "b"), 0)]
    sums = [np.array([-1.0, -2.0]), np.array([-3.0, -4.0])]
    exact = [np.array([-1.0, -2.0]), np.array([-5.0, -4.0])]
    row = _row("artifact", 0, sums, questions, exact)
    assert (row.accuracy, row.by_length, row.same) == (0.5, 1.0, 0.5)
    assert row.error == pytest.approx(0.25 * np.sqrt(2), rel=1e-6)
    assert _row("float", None, sums, questions, None).same is None
    logits = np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32))
    found = _log_probability(logits, np.array([9, 2, 1], np.int32), 1)
    assert found == pytest.approx(np.log(0.7 * 0.25), rel=1e-6)


def test_an_artifact_chooses_what_its_logits_say(artifact: Path) -> None:
    report = evaluate_tasks(artifact, QUESTIONS, reference=TINY, cached=False)
    assert [row.kind for row in report.rows] == ["float", "artifact"]
    likeliest = []
    with morendo.load(artifact) as session:
        for number, question in enumerate(QUESTIONS, start=1):
            sums = []
            for ids, first in _tokens(session, question, number):
                context = session.encode(question.context)
                assert not context or context[:first] == list(ids[:first])
                logits = session.logits(ids, first)[:-1].astype(np.float64)
                chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                sums.append(np.log([row[i] for row, i in zip(chances, ids[first:], strict=True)]))
            likeliest.append(int(np.argmax([part.sum() for part in sums])))
    hits = [found == question.answer for found, question in zip(likeliest, QUESTIONS, strict=True)]
    assert report.rows[1].accuracy == pytest.approx(np.mean(hits))
    assert report.rows[1].same is not None and report.rows[0].same is None


def test_what_does_not_fit_is_refused(artifact: Path) -> None:
    long = Question("a b " * 60, (" x", " y"), 0)
    with pytest.raises(InputError, match=r"question 2 does not fit .*need at most 64\)"):
        evaluate_tasks(artifact, [QUESTIONS[0], long])
    with pytest.raises(InputError, match="question 1 has a choice of one token behind nothing"):
        evaluate_tasks(artifact, [Question("", ("a", "b c d"), 0)])
    with pytest.raises(InputError, match=r"no such precision level \(got 7, need 0 to 0\)"):
        evaluate_tasks(artifact, QUESTIONS, levels=[7])


def test_the_command(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(vars(question)) for question in QUESTIONS))
    figures = tmp_path / "figures.json"
    command = ["eval", str(artifact), "--tasks", str(path), "-q"]
    assert main([*command, "--json", str(figures)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 questions\n") and "accuracy" in out and "level 0" in out
    assert json.loads(figures.read_text())["rows"][0]["level"] == 0
    assert main([*command, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 3
    for more in (["--text", str(path)], ["--dequantized"], ["--windows", "2"]):
        with pytest.raises(SystemExit):
            main([*command, *more])
        assert "--tasks" in capsys.readouterr().err
