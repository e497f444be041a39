"""Multiple choice: how often the right ending is the likeliest, as evaluation harnesses ask.

Of each question a model scores every choice behind the context: the sum of the logarithms of its
tokens' probabilities. `accuracy` takes the largest sum, `by length` the largest mean over its
characters (lm-evaluation-harness calls them acc and acc_norm). With few questions both are noisy;
how often an artifact chooses what the float model chooses is finer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import InputError
from morendo.progress import Progress
from morendo.runtime.session import Session, load

from .measure import ARTIFACT, FLOAT, choose_levels, open_reference

if TYPE_CHECKING:
    from .reference import Reference

FORM = '{"context": "The sky is", "choices": [" blue", " square"], "answer": 0}'
Scorer = Callable[[NDArray[np.int32], int], NDArray[np.float32]]
"""(ids, first) -> the logits that predict ids[first:], [tokens, vocabulary]."""


@dataclass(frozen=True)
class Question:
    """One of a file.

    Attributes:
        context: what every choice continues; may be empty.
        choices: two at least, with the space that they begin with, if any.
        answer: which one is right, from 0 on.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class TaskRow:
    """The figures of one variant.

    Attributes:
        kind: "float" or "artifact".
        level: precision level, None for "float".
        accuracy: part of the questions whose answer is the likeliest choice.
        error: its standard error.
        by_length: the same by the mean over characters.
        same: part of the questions whose likeliest choice is the float model's; None without one.
    """

    kind: str
    level: int | None
    accuracy: float
    error: float
    by_length: float
    same: float | None


@dataclass
class TaskReport:
    """What `evaluate_tasks` measured: float first, then by level."""

    artifact: str
    reference: str
    questions: int
    rows: list[TaskRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def read_questions(path: Path) -> list[Question]:
    """The questions of a file of JSON lines, each as `FORM`.

    Raises:
        InputError: naming the line that is none; for a file that cannot be read or has none.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"questions cannot be read ({what})", where=str(path)) from None
    found = [
        _question(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise InputError("there are no questions", where=str(path), hint=f"a line each: {FORM}")
    return found


def _question(line: str, where: str) -> Question:
    try:
        data: Any = json.loads(line)
    except json.JSONDecodeError:
        data = None
    try:
        return _checked(data)
    except ValueError as error:
        hint = f"a question is a line such as {FORM}"
        raise InputError(str(error), where=where, hint=hint) from None


def _checked(data: Any) -> Question:
    """What parsed JSON asks.

    Raises:
        ValueError: saying why it is no question.
    """
    if not isinstance(data, dict):
        raise ValueError("a question is no JSON object")
    context, choices, answer = (data.get(name) for name in ("context", "choices", "answer"))
    if not isinstance(context, str):
        raise ValueError("a question has no context that is text")
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError("a question has no two choices")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError("a choice is no text")
    if type(answer) is not int or not 0 <= answer < len(choices):
        need = f"need 0 to {len(choices) - 1}"
        raise ValueError(f"the answer is none of the choices (got {answer!r}, {need})")
    return Question(context, tuple(choices), answer)


def evaluate_tasks(
    artifact: str | Path,
    questions: Sequence[Question],
    *,
    reference: str | Path | None = None,
    levels: Sequence[int] | None = None,
    threads: int = 0,
    cached: bool = True,
    any_reference: bool = False,
    progress: Progress | None = None,
) -> TaskReport:
    """Ask an artifact, and the float model if there is one; arguments as of `evaluate`.

    The context is computed as a prompt is, which may drop tokens.

    Raises:
        InputError: for a question that does not fit, an option or reference likewise.
        ArtifactError: for a damaged artifact.
        MorendoError: when a model computes NaN or infinity.
    """
    progress = progress or Progress()
    with load(artifact, threads) as session:
        chosen = choose_levels(session, levels)
        asked = [_tokens(session, question, n) for n, question in enumerate(questions, start=1)]
        notes, exact = [session.emulation] if session.emulation else [], None
        report = TaskReport(str(artifact), str(reference or ""), len(questions), notes=notes)
        steps = len(asked) * (len(chosen) + (reference is not None))
        opened: Reference | None = None
        if reference is not None:
            opened, more = open_reference(session, reference, cached, any_reference, progress)
            report.notes += more
        with progress.task("ask questions", steps) as advance:
            if opened is not None:
                logits = opened.logits
                exact = _ask(lambda ids, first: logits(ids)[first - 1 :], asked, advance)
                report.rows.append(_row(FLOAT, None, exact, questions, None))
            for level in chosen:
                session.set_level(level)
                sums = _ask(lambda ids, first: session.logits(ids, first)[:-1], asked, advance)
                report.rows.append(_row(ARTIFACT, level, sums, questions, exact))
        return report


def _tokens(
    session: Session, question: Question, number: int
) -> list[tuple[NDArray[np.int32], int]]:
    """Of each choice: ids of context and choice, and how many of them the context has."""
    before = session.encode(question.context)
    found = []
    for choice in question.choices:
        ids = session.encode(question.context + choice)
        if len(ids) > session.context:
            raise InputError(
                f"question {number} does not fit the artifact's context "
                f"(got {len(ids)} tokens, need at most {session.context})",
                hint="compile with a larger --context, or leave it out",
            )
        pairs = zip(before, ids, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(ids)))
        first = max(min(same, len(ids) - 1), 1)  # a token that merges with the context is scored
        if len(ids) < 2:
            raise InputError(
                f"question {number} has a choice of one token behind nothing, which has no score",
                hint="give it a context",
            )
        found.append((np.asarray(ids, np.int32), first))
    return found


def _ask(
    score: Scorer, asked: Sequence[list[tuple[NDArray[np.int32], int]]], advance: Callable[[], None]
) -> list[NDArray[np.float64]]:
    """The logarithms of the probabilities of all choices, float64 [choices] for each question."""
    found = []
    for choices in asked:
        found.append(np.array([_log_probability(score(*one), *one) for one in choices]))
        advance()
    return found


def _log_probability(logits: NDArray[np.float32], ids: NDArray[np.int32], first: int) -> float:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    taken = rows[np.arange(len(rows)), ids[first:]]
    return float((taken - np.log(np.exp(rows).sum(axis=1))).sum())


def _row(
    kind: str,
    level: int | None,
    sums: Sequence[NDArray[np.float64]],
    questions: Sequence[Question],
    exact: Sequence[NDArray[np.float64]] | None,
) -> TaskRow:
    answers = [question.answer for question in questions]
    means = [s / [len(c) for c in q.choices] for s, q in zip(sums, questions, strict=True)]
    accuracy, by_length = (_part(found, answers) for found in (sums, means))
    error = math.sqrt(accuracy * (1 - accuracy) / len(questions))
    same = None if exact is None else _part(sums, [int(each.argmax()) for each in exact])
    return TaskRow(kind, level, accuracy, error, by_length, same)


def _part(found: Sequence[NDArray[np.float64]], wanted: Sequence[int]) -> float:
    """Of the questions whose largest number stands where it is wanted."""
    hits = [each.argmax() == want for each, want in zip(found, wanted, strict=True)]
    return float(np.mean(hits))
