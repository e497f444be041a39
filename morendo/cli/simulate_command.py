"""`morendo simulate`: how long an artifact would take on a machine that a file describes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.cli.parser import whole_number
from morendo.terminal import table

if TYPE_CHECKING:
    from morendo.ir.plan import Plan
    from morendo.simulate import DeviceDescription, Prediction, StepWork

_DESCRIPTION = """\
Predict the time of an answer from what its kernels read and multiply and from the numbers of a
machine that a TOML file describes: with float16 weights, at precision levels, with schedules.

It is a model, not a measurement: bytes by a bandwidth, packets by a clock, and the slower of both
where weights are fetched ahead. The file says where its numbers are from."""

_EPILOG = """\
examples:
  morendo simulate my-npu-model                        on the machine that its target describes
  morendo simulate my-model --npu my-npu.toml          on another
  morendo simulate my-model --npu my-npu.toml --prompt 900 --tokens 128 --json"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `simulate`."""
    parser = commands.add_parser(
        "simulate",
        parents=[common],
        help="predict an artifact's speed on a machine that a file describes",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="DIR", help="an artifact directory")
    add("--npu", type=Path, metavar="FILE.toml", help="the machine (default: the target's own)")
    add("--prompt", type=whole_number(1), default=64, metavar="N", help="its tokens (default: 64)")
    add("--tokens", type=whole_number(2), default=128, metavar="N", help="of the answer (128)")
    add("--json", action="store_true", help="all figures, for scripts")
    parser.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    from morendo.ir.errors import InputError
    from morendo.runtime.artifact import read_plan
    from morendo.simulate import Answer, predict, read_device

    plan = read_plan(arguments.artifact)
    device = read_device(arguments.npu or _described(arguments.artifact))
    answer = Answer(arguments.prompt, arguments.tokens, plan.chunk)
    if answer.prompt + answer.tokens > plan.context:
        raise InputError(
            f"the answer does not fit the context (got {answer.prompt} + {answer.tokens} tokens, "
            f"need at most {plan.context})",
            where=str(arguments.artifact),
            hint="fewer --prompt or --tokens",
        )
    found = {name: predict(device, work, answer) for name, work in _ways(arguments.artifact, plan)}
    if arguments.json:
        print(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1))
    else:
        print(_show(device, found))
    return 0


def _described(artifact: Path) -> Path:
    """The description of a machine that the artifact's target comes with."""
    from morendo.ir.errors import InputError
    from morendo.runtime.artifact import read_manifest
    from morendo.simulate import described_machine

    described = described_machine(artifact)
    if described is None:
        name = read_manifest(artifact)["target"]["name"]
        raise InputError(
            f"target {name} describes no machine", hint="describe one: --npu FILE.toml"
        )
    return described


def _ways(artifact: Path, plan: Plan) -> Iterator[tuple[str, Callable[[int], StepWork]]]:
    """(name, the work of each token of an answer) of all that is compared."""
    from morendo.runtime.schedule import falls_of, parse_schedules, read_schedule_file
    from morendo.simulate import float16_work, plan_work
    from morendo.simulate.work import cache_item_bytes

    works = [plan_work(plan, level) for level in range(plan.levels)]
    half = float16_work(works[0], cache_item_bytes(plan))
    yield "float16", lambda _: half
    for level, work in enumerate(works):
        yield f"level {level}", lambda token, work=work: work if token else works[0]
    data = read_schedule_file(artifact)
    for name, schedule in (parse_schedules(data, plan.levels) if data else {}).items():
        falls = falls_of(schedule)
        for number, fall in enumerate(falls):
            which = f"{name} {number + 1}" if len(falls) > 1 else name
            yield which, lambda token, fall=fall: works[fall.level(token)]


def _show(device: DeviceDescription, found: dict[str, Prediction]) -> str:
    first = next(iter(found.values()))
    header = ("", "prefill", "tokens/s", "x", "packets", "bytes", "memory", "answer", "x")
    rows = [
        (
            name,
            f"{one.prefill:.3f} s",
            f"{one.tokens_per_second:.1f}",
            f"{one.tokens_per_second / first.tokens_per_second:.2f}",
            f"{one.packets / one.steps / 1e6:.2f} M",
            f"{one.nbytes / one.steps / 1e6:.1f} MB",
            f"{one.memory_bound:.0%}",
            f"{one.seconds:.2f} s",
            f"{first.seconds / one.seconds:.2f}",
        )
        for name, one in found.items()
    ]
    notes = (
        "A model, not a measurement. packets, bytes: of a decode step; memory: part of decoding\n"
        f"that waits for it; x: times as fast as float16.\n{device.name}: {device.sources.strip()}"
    )
    return f"{table(rows, header)}\n\n{notes}"
