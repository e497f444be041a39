"""`morendo inspect`: what is in an artifact."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from morendo.ir.formats import NESTED
from morendo.ir.printable import printable
from morendo.terminal import paint, size, table

from .parser import above_zero


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `inspect`."""
    parser = commands.add_parser(
        "inspect",
        parents=[common],
        help="show what is in an artifact",
        description="Show an artifact's model, target, weight formats, sizes and passes.",
        epilog="examples:\n  morendo inspect my-model\n"
        "  morendo inspect my-model --json | python3 -m json.tool\n"
        "  morendo inspect my-model --weights           where the bits went\n"
        "  morendo inspect my-model --plan | less       every kernel call and its buffers\n"
        "  morendo inspect my-model --kernels           what kernels read, and their instructions\n"
        "  morendo inspect my-model --kernels --bandwidth 25 --rate 8     and what bounds them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifact", type=Path, metavar="DIR", help="an artifact directory")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--weights", action="store_true", help="bits, outliers and error of every matrix"
    )
    form.add_argument("--plan", action="store_true", help="the kernel calls of every function")
    form.add_argument(
        "--kernels",
        action="store_true",
        help="bytes and instructions of every kernel; makes machine code that is not in the cache",
    )
    add = parser.add_argument
    add("--json", action="store_true", help="the manifest, or with --kernels these, for scripts")
    for name, unit in (("bandwidth", "GB"), ("rate", "10^9 instructions")):
        about = f"of a machine, in {unit}/s of all its threads: with both, says what bounds kernels"
        add(f"--{name}", type=above_zero, metavar="N", default=0.0, help=about)
    parser.set_defaults(run=_inspect, refuse=parser.error)


def _inspect(arguments: argparse.Namespace) -> int:
    from morendo.runtime.artifact import read_manifest, read_plan
    from morendo.runtime.verify import check_files

    if arguments.json and (arguments.plan or arguments.weights):
        arguments.refuse("--json is the manifest, or goes with --kernels")
    if not arguments.kernels and (arguments.bandwidth or arguments.rate):
        arguments.refuse("--bandwidth and --rate go with --kernels")
    if bool(arguments.bandwidth) != bool(arguments.rate):
        arguments.refuse("--bandwidth and --rate go together")
    manifest = read_manifest(arguments.artifact)
    check_files(arguments.artifact, manifest)
    if arguments.kernels:
        _show_kernels(arguments, manifest)
        return 0
    if arguments.plan:
        from morendo.ir.plan_text import print_plan

        sys.stdout.write(print_plan(read_plan(arguments.artifact)))
        return 0
    if arguments.weights:
        print(_matrices(arguments.artifact))
        return 0
    if arguments.json:
        json.dump(manifest, sys.stdout, indent=1)
        print()
        return 0
    print(_overview(manifest, arguments.artifact))
    return 0


def _show_kernels(arguments: argparse.Namespace, manifest: dict[str, Any]) -> None:
    from morendo.codegen.kernel_facts import kernel_facts
    from morendo.debug.captured import open_kernels
    from morendo.kernel_table import print_kernels
    from morendo.progress import make_progress

    opened = open_kernels(arguments.artifact, manifest)
    made = opened.program.kernels
    with make_progress() as progress, progress.task("read the machine code, or make it"):
        target = opened.program.target.prepared()
        codes = target.kernel_code(made)
    kernels = kernel_facts(opened.plan, made, codes)
    kernels = [replace(one, predicted=target.predicted(one)) for one in kernels]
    bandwidth, rate = arguments.bandwidth, arguments.rate
    if arguments.json:
        found = [one.to_json() for one in kernels]
        if bandwidth and rate:
            for facts, one in zip(found, kernels, strict=True):
                facts["bound"], facts["bound_times"] = one.bound(bandwidth, rate)
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        print(print_kernels(kernels, bandwidth, rate))


def _overview(manifest: dict[str, Any], artifact: Path) -> str:
    """Facts, then the weights by part, then what each pass counted."""
    model, target = manifest["model"], manifest["target"]
    parts = [WeightPart.of(part) for part in manifest.get("weights", [])]
    weights = sum(p.weights for p in parts)
    files = manifest["files"]
    facts = [
        ("model", f"{model['name']} ({model['architecture']}), {weights / 1e6:.1f} M weights"),
        ("target", f"{target['name']}: {target['triple']} {target.get('isa', '')}".rstrip()),
        ("needs", " ".join([*target["cpu_flags"], target.get("needs", "")]).strip() or "-"),
        ("context", f"{manifest['tokenizer'].get('context', '?')} tokens"),
        ("chat", _chat(manifest["tokenizer"].get("chat"))),
        ("sampling", _settings(manifest.get("generation")) or "greedy"),
        ("options", _settings(manifest.get("options"))),
        ("activations", _activations(manifest)),
        ("bits", bits_of(manifest.get("weights", []))),
        ("size", size(sum(entry["bytes"] for entry in files.values()))),
        *(("", f"{size(entry['bytes']):>10}  {name}") for name, entry in files.items()),
    ]
    sections = [_title(str(artifact)), table(facts), *_schedules(artifact)]
    sections += ["", _title("weights"), table([p.row() for p in parts], WeightPart.HEADER)]
    sections += ["", _title("passes"), *map(_pass_line, manifest.get("passes", []))]
    return "\n".join(sections)


def _schedules(artifact: Path) -> list[str]:
    """The schedules of the artifact, each with what `morendo tune` measured on held-out prompts."""
    from morendo.runtime.artifact import read_plan
    from morendo.runtime.schedule import parse_schedules, read_schedule_file

    data = read_schedule_file(artifact)
    if not data:
        return []
    evidence: dict[str, Any] = data.get("evidence", {})
    rows: list[tuple[str, str, str]] = []
    for kind, schedule in parse_schedules(data, read_plan(artifact).levels).items():
        measured = ""
        if kind in evidence:
            held_out: dict[str, float] = evidence[kind]["held_out"]
            quality = f"{evidence[kind]['metric']} {held_out['quality']:.3f}"
            measured = f"{quality}, {size(held_out['bytes'])} a token"
        rows.append((kind, str(schedule), measured))
    return ["", _title("schedules"), table(rows)]


def _settings(found: dict[str, Any] | None) -> str:
    return ", ".join(f"{k} {v}" for k, v in (found or {}).items())


def _chat(found: dict[str, Any] | None) -> str:
    """What the chat template can do, as it was tried at compile time."""
    if found is None:
        return "no template"
    return found["problem"] or f"template, {'with' if found['system'] else 'no'} system messages"


def _activations(manifest: dict[str, Any]) -> str:
    """What the inputs of linears are, by the passes that made them so."""
    counts = {
        record["spec"].partition("{")[0]: record["counts"] for record in manifest.get("passes", [])
    }
    if counts.get("quantize-activations"):
        few = any(what.endswith("with 4 bits") for what in counts.get("choose-activations", {}))
        return "8 bits, 4 for some inputs" if few else "8 bits"
    quantized = any(part["format"].startswith("q") for part in manifest.get("weights", []))
    return "16 bits (halves)" if quantized else "floats"


def bits_of(parts: list[dict[str, Any]]) -> str:
    """Bits per weight of everything, and of what a budget is for.

    Args:
        parts: "weights" of the manifest.
    """
    total, nested = _average(parts), _average([part for part in parts if _is_budgeted(part)])
    facts = f"{total:.2f} per weight over all, scales included" if total else "?"
    if not nested:
        return facts
    return f"{facts}; {nested:.2f} in nested codes, which --average-bits counts"


def _average(parts: list[dict[str, Any]]) -> float:
    """Bits per weight; orders are not weights and count as bytes of others."""
    weights = sum(part["weights"] for part in parts if part["format"] != "u16")
    return 8 * sum(part["bytes"] for part in parts) / weights if weights else 0.0


def _is_budgeted(part: dict[str, Any]) -> bool:
    orders = part["format"] == "u16"
    return part.get("budgeted", orders or part["format"].startswith(NESTED))


_MATRIX_HEADER = (
    "weight", "shape", "6 bit", "5 bit", "4 bit", "3 bit", "2 bit", "outliers", "bits",
    "all bits", "these bits", "kept",
)  # fmt: skip


def _matrices(artifact: Path) -> str:
    """A row for every matrix; the last three are its output error on the calibration text."""
    from morendo.ir.errors import ArtifactError, InputError
    from morendo.runtime.artifact import read_weight_list

    entries = read_weight_list(artifact)["matrices"]
    try:
        rows = [row for entry in entries for row in _matrix_rows(entry)]
    except (KeyError, ValueError, ArithmeticError, InputError) as error:
        raise ArtifactError(
            f"the list of weights is malformed ({type(error).__name__}: {error})",
            where=str(artifact),
            hint="compile it again",
        ) from None
    notes = [
        "6 to 2 bit: groups of input channels stored with so many. The last three: part of the",
        "output that is lost on the calibration text, rounded to nearest with all bits in all",
        "groups, with the bits that they have, and as calibrate-weights rounded them. Where scales",
        "were searched without a text: what would be lost to nearest and is lost, channels apart;",
        "- where neither was. Codes made for several readings (r43) lose so much in each.",
    ]
    return "\n".join([_title(str(artifact)), table(rows, _MATRIX_HEADER), "", *notes])


def _matrix_rows(entry: dict[str, Any]) -> list[tuple[str | int, ...]]:
    from morendo.ir.formats import WeightFormat

    fmt, columns = WeightFormat.parse(entry["format"]), entry["columns"]
    groups: tuple[str | int, ...] = (fmt.name, "", "", "", "")
    if fmt.nested:
        ends = [fmt.groups(columns), *fmt.plane_groups(columns), 0]
        counts = [end - above for end, above in itertools.pairwise(ends)]
        lowest = ("",) * (fmt.base_bits - 2)
        above = ("",) * (len(groups) - len(counts) - len(lowest))
        groups = (*above, *reversed(counts), *lowest)
    bits = f"{8 * entry['nbytes'] / (sum(entry['rows']) * columns):.2f}"
    found: list[tuple[str | int, ...]] = []
    for name, rows, figures in zip(entry["names"], entry["rows"], entry["figures"], strict=True):
        outliers = fmt.slots * fmt.tiles(rows) if fmt.slots else "-"
        errors = ("-", "-", "-")
        if figures and "searched" in figures:
            errors = f"{figures['nearest']:.2e}", "-", f"{figures['searched']:.2e}"
        elif figures:
            nearest, promoted = (f"{figures[key]:.2e}" for key in ("nearest", "promoted"))
            readings = ["feedback", *(f"feedback_{bits}" for bits in fmt.readings[1:])]
            errors = nearest, promoted, " ".join(f"{figures[key]:.2e}" for key in readings)
        shape = f"{rows} x {columns}"
        found.append((name.removesuffix(".weight"), shape, *groups, outliers, bits, *errors))
    return found


@dataclass(frozen=True)
class WeightPart:
    """Weights of one kind in all layers: an entry of the manifest's "weights"."""

    part: str
    format: str
    pieces: int
    weights: int
    bytes: int

    HEADER: ClassVar[tuple[str, ...]] = ("format", "pieces", "weights", "bytes", "bits", "part")

    @classmethod
    def of(cls, entry: dict[str, Any]) -> WeightPart:
        """The entry of a manifest that was checked."""
        return cls(**{field.name: entry[field.name] for field in fields(cls)})

    def row(self) -> tuple[str | int, ...]:
        """What the table shows, in the order of HEADER."""
        bits = f"{8 * self.bytes / self.weights:.2f}" if self.weights else "?"
        return self.format, self.pieces, self.weights, size(self.bytes), bits, self._short_name

    @property
    def _short_name(self) -> str:
        """`layers.*.self_attn.q_proj + k_proj + v_proj`: each place is named once."""
        names = [name.removesuffix(".weight") for name in self.part.split(" + ")]
        place = names[0].rpartition(".")[0] + "."
        return " + ".join([names[0], *(name.removeprefix(place) for name in names[1:])])


def _pass_line(record: dict[str, Any]) -> str:
    counts = ", ".join(f"{what}: {count}" for what, count in record["counts"].items())
    reasons = [f"left alone: {count} ({why})" for why, count in record["missed"].items()]
    spec, counts = printable(record["spec"]), printable(counts) or "nothing to do"
    return "\n  ".join([spec, counts, *map(printable, reasons)])


def _title(text: str) -> str:
    return paint(text, "bold", sys.stdout)
