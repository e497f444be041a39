"""The stage of a dump that shows weights: formats, bits of groups, bytes by level, histograms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from morendo.ir.dump import Dump
from morendo.ir.formats import WeightFormat
from morendo.ir.plan import Plan
from morendo.ir.plan_reads import matrix_reads
from morendo.ir.reference import dequantize, quantize
from morendo.ir.weight_overlay import WeightOverlay

from .lowering import Program

_SAMPLED_ROWS = 16
_BINS = 41


def dump_weights(dump: Dump, program: Program, plan: Plan, weights: WeightOverlay) -> None:
    """Write the stage weights: every matrix as weights.json has it, and more for `morendo view`.

    bits: of each group of input channels, in stored order. level_bytes: what a pass over it reads
    at each precision level. samples: histograms of the first rows of each weight, before
    and after rounding, between -limit and limit.
    """
    entries = program.weights.describe(weights)["matrices"]
    for entry in entries:
        fmt = WeightFormat.parse(entry["format"])
        entry["bits"] = fmt.group_bits(entry["columns"]) if fmt.nested else []
        entry["level_bytes"] = matrix_reads(plan, entry["offsets"][0]) or [entry["nbytes"]]
        entry["samples"] = [_sample(name, entry, fmt, weights) for name in entry["names"]]
    table = "".join(f"{_line(entry)}\n" for entry in entries)
    dump.text("weights", {".txt": table}, {"matrices": entries})


def _line(entry: dict[str, Any]) -> str:
    shape = f"{sum(entry['rows'])}x{entry['columns']}"
    return f"{entry['format']:<16} {shape:>14} {entry['nbytes']:>11}  {' + '.join(entry['names'])}"


def _sample(
    name: str, entry: dict[str, Any], fmt: WeightFormat, weights: WeightOverlay
) -> dict[str, Any]:
    """Histograms of a weight's first rows; none where what is stored are its columns."""
    if entry["transposed"]:
        return {}
    before = np.asarray(weights.rows(name, slice(0, _SAMPLED_ROWS)), np.float32)
    after = _rounded(name, before, fmt, weights)
    limit = float(np.abs(before).max()) or 1.0
    counts = [np.histogram(x, _BINS, (-limit, limit))[0].tolist() for x in (before, after)]
    return {"limit": limit, "before": counts[0], "after": counts[1]}


def _rounded(
    name: str, rows: NDArray[np.float32], fmt: WeightFormat, weights: WeightOverlay
) -> NDArray[np.float32]:
    """Some rows as their format has them, channels in stored order."""
    if not fmt.quantized:
        return rows.astype(np.float16).astype(np.float32) if fmt.kind == "f16" else rows
    made = weights.codes_of(name, fmt)
    q = quantize(rows, fmt) if made is None else made.rows(0, len(rows))
    return dequantize(q, fmt, rows.shape[1])
