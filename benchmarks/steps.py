"""Where the time of a call goes: seconds by kernel, with the bytes of weights that each reads.

python benchmarks/steps.py DIR --function decode
python benchmarks/steps.py DIR --function prefill --tokens 512 --threads 1
python benchmarks/steps.py DIR --json times.json       for `morendo view --times times.json`
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from morendo.ir.plan import Plan, Step
from morendo.runtime.executor import CExecutor
from morendo.runtime.session import Session


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--function", choices=["prefill", "score", "decode"], default="decode")
    parser.add_argument("--tokens", type=int, default=256, help="of a call; decode makes so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds of each step")
    return parser.parse_args()


def run(executor: CExecutor, options: argparse.Namespace, ids: np.ndarray) -> None:
    """One call of the function from an empty cache; as many as tokens for decode."""
    executor.set_position(0)
    if options.function == "decode":
        for token in ids:
            executor.decode(int(token))
    else:
        getattr(executor, options.function)(ids)


def main() -> None:
    options = parse_options()
    with Session(options.artifact, threads=options.threads) as session:
        plan, executor = session.plan, session.executor
        assert isinstance(executor, CExecutor)
        ids = np.random.default_rng(0).integers(session.vocabulary, size=options.tokens)
        run(executor, options, ids)
        executor.start_profile()
        for _ in range(options.rounds):
            run(executor, options, ids)
        steps = plan.functions[options.function]
        seconds = executor.step_seconds(options.function, len(steps))
    calls = options.tokens if options.function == "decode" else -(-options.tokens // plan.chunk)
    mean = np.array(seconds) / options.rounds / calls
    if options.json:
        write(options.json, options.function, [plan.kernels[s.kernel] for s in steps], mean)
    show(plan, steps, mean)


def write(path: Path, function: str, kernels: list[str], seconds: np.ndarray) -> None:
    """The steps of a call in their order."""
    found = [{"kernel": k, "seconds": float(s)} for k, s in zip(kernels, seconds, strict=True)]
    path.write_text(json.dumps({"function": function, "steps": found}, indent=1) + "\n")


def show(plan: Plan, steps: tuple[Step, ...], seconds: np.ndarray) -> None:
    """The kernels by time spent."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])
    for step, took in zip(steps, seconds, strict=True):
        total = totals[plan.kernels[step.kernel]]
        total[0] += 1
        total[1] += float(took)
        total[2] += step.reads[0]
    table = Table("kernel", "calls", "ms", "share", "us a call", "GB/s of weights")
    for name, (count, took, nbytes) in sorted(totals.items(), key=lambda item: -item[1][1]):
        table.add_row(
            name, str(count), f"{took * 1e3:.3f}", f"{took / seconds.sum():.1%}",
            f"{took / count * 1e6:.1f}", f"{nbytes / took / 1e9:.1f}",
        )  # fmt: skip
    table.add_row("all", str(len(steps)), f"{seconds.sum() * 1e3:.3f}", "", "", "")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
