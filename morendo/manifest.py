"""What an artifact's manifest says of the compilation that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from morendo.codegen.lowering import Program
from morendo.codegen.target import Target
from morendo.frontend import DEFAULT_CONTEXT, LoadedModel
from morendo.passes.pipeline import PassRecord
from morendo.provenance import digests
from morendo.weight_summary import weight_summaries

if TYPE_CHECKING:
    from morendo.ir.plan import Plan


def manifest_of(
    loaded: LoadedModel,
    context: int | None,
    machine: Target,
    program: Program,
    plan: Plan,
    records: Sequence[PassRecord],
    tokenizer: dict[str, Any],
) -> dict[str, Any]:
    """All of it but the files.

    Args:
        context: that the user asked for; None is the default.
        records: what the passes did.
        tokenizer: facts of the tokenizer that `prepare_tokenizer` found.
    """
    return {
        "model": {
            "name": loaded.name,
            "architecture": loaded.architecture,
            "context": context or DEFAULT_CONTEXT,  # that it was loaded for, not rounded up
            "digests": digests(loaded.weights),
        },
        "target": {
            "name": machine.name,
            "triple": machine.toolkit,
            "isa": machine.isa.name,
            **asdict(machine.device),
            "cpu_flags": list(machine.device.cpu_flags),
            "layout": asdict(machine.layout),
        },
        "options": {
            "chunk": program.options.chunk,
            "context": program.options.context,
            "cache_dtype": program.cache_dtype,
        },
        "passes": [
            {
                "spec": r.spec,
                "counts": r.report.counts,
                "missed": r.report.reasons,
                **({"summary": r.report.summary} if r.report.summary else {}),
            }
            for r in records
        ],
        "weights": [asdict(summary) for summary in weight_summaries(program, records)],
        "tokenizer": {
            "bos": loaded.bos,
            "eos": loaded.eos,
            "stop": list(loaded.stop),
            "add_bos": loaded.add_bos,
            "vocabulary": plan.vocabulary,
            "context": plan.context,
            **tokenizer,
        },
        "generation": loaded.generation.sampling,
    }
