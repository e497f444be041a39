"""What the weights of an artifact are, by kind: the list that its manifest has for `inspect`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from morendo.codegen.lowering import Program
from morendo.ir.formats import NESTED
from morendo.passes.pipeline import PassRecord
from morendo.passes.promote_groups import PromoteGroups


@dataclass
class WeightSummary:
    """Weights of one kind in all layers, for `inspect`.

    Attributes:
        budgeted: `--average-bits` counts them: nested codes of linears, of heads and tables where
            the budget is for them too, and orders of channels.
    """

    part: str
    format: str
    pieces: int = 0
    weights: int = 0
    bytes: int = 0
    budgeted: bool = False


def weight_summaries(program: Program, records: Sequence[PassRecord]) -> list[WeightSummary]:
    """One for each kind of weights and format, the largest first.

    Args:
        records: of the passes that the module went through.
    """
    steps = [record.step for record in records]
    counts_heads = any(isinstance(step, PromoteGroups) and step.heads for step in steps)
    apart = frozenset() if counts_heads else program.heads
    summaries: dict[tuple[str, str], WeightSummary] = {}
    for part in program.weights.parts():
        name = re.sub(r"\.\d+\.", ".*.", part.name)
        summary = summaries.setdefault((name, part.format), WeightSummary(name, part.format))
        summary.pieces += 1
        summary.weights += part.weights
        summary.bytes += part.nbytes
        nested = part.format.startswith(NESTED) and part.name not in apart
        summary.budgeted = nested or part.format == "u16"
    return sorted(summaries.values(), key=lambda s: -s.bytes)
