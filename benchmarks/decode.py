"""Speed of an artifact on this machine: prefill and decode against what memory allows.

    python benchmarks/decode.py DIR                              table
    python benchmarks/decode.py DIR --json out.json              and JSON; - prints it instead
    python benchmarks/decode.py DIR --torch MODEL                with torch bfloat16 eager in turn
    python benchmarks/decode.py DIR --levels                     decode at every precision level

Every figure is the median over rounds; in each round the memory bandwidth, the artifact and the
peer are measured one after another, since a shared machine changes its speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bandwidth import Bandwidth
from rich.console import Console
from rich.table import Table
from torch_peer import TorchPeer

from morendo.ir.errors import MorendoError
from morendo.runtime.artifact import read_manifest
from morendo.runtime.session import Session
from morendo.runtime.step_cost import StepCost
from morendo.terminal import print_error

PREFILLS = (128, 512)
DECODED = 64
Times = dict[str, list[float]]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="DIR", help="an artifact directory")
    add(
        "--threads",
        type=_positive,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="measure with each of these numbers of threads (default: 1 2)",
    )
    add("--rounds", type=_positive, default=5, metavar="N", help="medians over N (default: 5)")
    add("--torch", metavar="MODEL", help="the same model, for torch eager")
    add("--dtype", default="bfloat16", help="of torch (default: bfloat16)")
    add("--levels", action="store_true", help="decode at every precision level")
    add("--json", type=Path, metavar="FILE", help="write all rows there; - prints them instead")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def seconds(work: Callable[[], object]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def peer(options: argparse.Namespace, threads: int) -> Iterator[TorchPeer | None]:
    """The torch process, when one is asked for."""
    process = TorchPeer(options.torch, options.dtype, threads) if options.torch else None
    try:
        yield process
    finally:
        if process:
            process.close()


def prefill(session: Session, ids: np.ndarray) -> None:
    session.executor.set_position(0)
    session.executor.prefill(ids)


def decode(session: Session, ids: np.ndarray) -> None:
    """One step for each id, from an empty cache on."""
    session.executor.set_position(0)
    for token in ids:
        session.executor.decode(int(token))


def measure(options: argparse.Namespace, threads: int, bandwidth: Bandwidth) -> Times:
    """Seconds of every kind of work, one value a round; "bandwidth" is in bytes per second."""
    times: Times = defaultdict(list)
    rng = np.random.default_rng(0)
    with Session(options.artifact, threads=threads) as session, peer(options, threads) as torch:
        levels = range(session.plan.levels if options.levels else 1)
        for round_number in range(options.rounds + 1):  # the first warms up
            keep = times if round_number else defaultdict(list)
            keep["bandwidth"].append(bandwidth(threads))
            for level in levels:
                session.set_level(level)
                ids = rng.integers(session.vocabulary, size=DECODED)
                keep[f"decode level {level}"].append(seconds(lambda x=ids: decode(session, x)))
            session.set_level(0)
            keep["bandwidth"].append(bandwidth(threads))
            for tokens in PREFILLS:
                ids = rng.integers(session.vocabulary, size=tokens)
                keep[f"prefill {tokens}"].append(seconds(lambda x=ids: prefill(session, x)))
                if torch:
                    keep[f"torch prefill {tokens}"].append(torch.seconds("prefill", tokens))
            if torch:
                keep["torch decode"].append(torch.seconds("decode", DECODED))
    return times


def summarize(options: argparse.Namespace, threads: int, times: Times) -> list[dict]:
    """One row for each kind of work."""
    medians = {what: statistics.median(values) for what, values in times.items()}
    with Session(options.artifact, verify=False) as session:
        plan = session.plan
    rows = []
    for what, median in medians.items():
        if what == "bandwidth":
            continue
        tokens = next((n for n in PREFILLS if what.endswith(str(n))), DECODED)
        row = {"threads": threads, "work": what, "tokens_per_second": tokens / median}
        if what.startswith("decode level"):
            nbytes = StepCost.of(plan).level_bytes[int(what.split()[-1])]
            row["bytes_per_token"] = nbytes
            row["bytes_per_second"] = nbytes * DECODED / median
            row["bandwidth"] = medians["bandwidth"]
            row["fraction"] = row["bytes_per_second"] / medians["bandwidth"]
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    """The rows as a table."""
    table = Table("threads", "work", "tokens/s", "MB/token", "GB/s", "memory GB/s", "of memory")
    table.columns[1].no_wrap = True
    for row in rows:
        cells = [str(row["threads"]), row["work"], f"{row['tokens_per_second']:.1f}"]
        if "fraction" in row:
            cells.append(f"{row['bytes_per_token'] / 1e6:.1f}")
            cells.append(f"{row['bytes_per_second'] / 1e9:.1f}")
            cells.append(f"{row['bandwidth'] / 1e9:.1f}")
            cells.append(f"{row['fraction']:.0%}")
        table.add_row(*cells)
    Console(width=100).print(table)


def main() -> int:
    """One line on stderr when the artifact cannot be measured."""
    try:
        benchmark(parse_options())
    except MorendoError as error:
        print_error(str(error))
        return 1
    return 0


def benchmark(options: argparse.Namespace) -> None:
    """Measure and show."""
    read_manifest(options.artifact)  # what is wrong with it is said before anything is measured
    bandwidth = Bandwidth()
    rows = []
    for threads in options.threads:
        rows += summarize(options, threads, measure(options, threads, bandwidth))
    figures = json.dumps(rows, indent=1)
    if options.json == Path("-"):
        print(figures)
        return
    show(rows)
    if options.json:
        options.json.write_text(figures + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
