"""Schedules against artifacts that read as many bytes at one level, all against one reference.

    morendo compile MODEL --bits f32 --out float
    python benchmarks/schedules.py float 4-3 4-3:static 3.5-bits --prompts FILE

The first artifact is the reference, that of the float model say; each other one is measured at the
schedule that stands behind its colon, else at level 0. All answer the held-out prompts of FILE (the
second, the fourth and so on: `morendo tune` has not seen them), greedily. ROUGE-L compares an
answer with the reference's. Top token and KL divergence are of every decode step along the
reference's answer. Bytes are means over decode steps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from morendo.progress import Progress, make_progress
from morendo.quality.scores import compare
from morendo.runtime.session import Session, load
from morendo.terminal import table
from morendo.tuning.answers import TOP, Answer, Counts, Model
from morendo.tuning.bound import Mean
from morendo.tuning.metrics import answer_rouge
from morendo.tuning.prompts import encode_prompts, read_prompts


@dataclass
class Measured:
    """One artifact at one schedule.

    Attributes:
        rouge_l, top1, kl: one number for each prompt.
        counts: steps of each level in its own answers.
    """

    name: str
    rouge_l: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    counts: Counts = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """The reference's answer to a prompt, and its logits [tokens - 1, vocabulary] float32."""

    prompt: tuple[int, ...]
    answer: Answer
    logits: np.ndarray


def reference_answers(
    directory: Path, prompts: list[str], max_tokens: int, progress: Progress
) -> list[Wanted]:
    """What all are compared with."""
    wanted = []
    with load(directory) as session:
        held_out = encode_prompts(session, prompts, max_tokens).held_out
        model = Model(session, max_tokens)
        with progress.task(f"answer by {directory.name}", len(held_out)) as advance:
            for prompt in held_out:
                answer = model.answer(prompt, TOP)
                logits, _ = model.follow(prompt, answer.tokens, TOP)
                wanted.append(Wanted(prompt, answer, logits.astype(np.float16)))
                advance()
    return wanted


def measure(
    spec: str, wanted: list[Wanted], max_tokens: int, progress: Progress
) -> tuple[Measured, float]:
    """Figures of DIR or DIR:SCHEDULE, and the mean bytes of its decode steps."""
    directory, _, name = spec.partition(":")
    measured = Measured(f"{Path(directory).name} {name}".strip())
    with load(directory) as session:
        model = Model(session, max_tokens)
        schedule = _schedule(session, name)
        with progress.task(f"answer by {measured.name}", len(wanted)) as advance:
            for want in wanted:
                answer = model.answer(want.prompt, schedule)
                measured.rouge_l.append(answer_rouge(model, answer, want.answer))
                for level, steps in answer.counts.items():
                    measured.counts[level] = measured.counts.get(level, 0) + steps
                if len(want.logits):
                    rows, _ = model.follow(want.prompt, want.answer.tokens, schedule)
                    targets = np.asarray(want.answer.tokens[1:])
                    scores = compare(rows, targets, want.logits.astype(np.float32))
                    measured.top1.append(float((rows.argmax(axis=1) == targets).mean()))
                    measured.kl.append(float(scores.divergence.mean()))
                advance()
        return measured, session.step_cost.mean_bytes(measured.counts or {0: 1})


def _schedule(session: Session, name: str):
    return (session.schedule(name) if name else None) or TOP


def main() -> None:
    """Measure all, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reference", type=Path, help="an artifact directory")
    parser.add_argument("others", nargs="+", metavar="DIR[:SCHEDULE]")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--max-tokens", type=int, default=128, help="of each answer")
    options = parser.parse_args()
    prompts = read_prompts(options.prompts)
    rows = []
    with make_progress() as progress:
        wanted = reference_answers(options.reference, prompts, options.max_tokens, progress)
        for spec in options.others:
            measured, read = measure(spec, wanted, options.max_tokens, progress)
            means = [Mean.of(each) for each in (measured.rouge_l, measured.top1, measured.kl)]
            rows.append(
                [
                    measured.name,
                    f"{read / 1e6:.1f}",
                    *(f"{mean.value:.4f} ± {mean.error:.4f}" for mean in means),
                ]
            )
    print(table(rows, ["", "MB a token", "rouge-l", "same top token", "KL, nats"]))


if __name__ == "__main__":
    main()
