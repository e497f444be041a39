"""The compiler as a recipe: a model goes in, an artifact comes out."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.codegen.build import compile_kernels, lower_module
from morendo.codegen.link import link_model
from morendo.codegen.lowering import Options, Program
from morendo.codegen.target import Target
from morendo.frontend import LoadedModel, load_model, write_tokenizer
from morendo.ir.errors import InputError
from morendo.ir.formats import format_for_bits
from morendo.passes.base import Context, Pass, parse_spec
from morendo.passes.pipeline import PassRecord, known_passes, run_passes
from morendo.progress import Progress
from morendo.runtime.artifact import LIBRARY, MATRICES, PLAN, WEIGHTS, create_artifact
from morendo.targets import find_target

if TYPE_CHECKING:
    from morendo.ir.plan import Plan

DEFAULT_CHUNK = 256
DEFAULT_CONTEXT = 4096
CONTEXT_STEP = 16  # the key cache holds positions in tiles


def compile(
    model: str | Path,
    target: str = "x86",
    bits: int | str = 4,
    out: str | Path = "",
    *,
    group_size: int = 32,
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    passes: str | None = None,
    dump_ir: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Compile a model for a target and write an artifact.

    Args:
        model: Hugging Face directory, hub id, or .gguf file.
        target: a name of `morendo targets`; "x86" is this machine's CPU.
        bits: format of the weights: "f32", "f16", 8 or 4.
        out: the artifact's directory; by default named after model, target and bits.
        group_size: input channels that share a scale, 32, 64 or 128.
        context: positions of the KV cache; by default the model's, at most 4096.
        chunk: tokens that one prefill call takes.
        passes: pass spec to run instead of the default recipe.
        dump_ir: folder for the IR and the report of every pass.
        progress: shows what is going on; silent by default.

    Returns:
        The artifact's directory.

    Raises:
        InputError: for a wrong option or a model that cannot be read.
        CompileError: for a model that cannot be compiled.
        ArtifactError: when the artifact cannot be written.
    """
    progress = progress or Progress()
    machine = find_target(target)
    recipe = parse_spec(
        default_passes(bits, group_size) if passes is None else passes, known_passes()
    )
    out = Path(out or default_name(model, target, bits))
    with create_artifact(out) as artifact:
        with progress.task("load and export the model"):
            loaded = load_model(model)
        options = _options(loaded, bits, context, chunk)
        program, plan, records = _lower(loaded, machine, recipe, options, dump_ir, progress)
        _generate(program, plan, machine, artifact.path, progress)
        with progress.task("quantize and pack weights", program.weights.count) as advance:
            with (artifact.path / WEIGHTS).open("wb") as file:
                program.weights.write(file, loaded.weights, advance)
        (artifact.path / MATRICES).write_text(json.dumps(program.weights.describe()), "utf-8")
        write_tokenizer(loaded, artifact.path)
        artifact.finish(_manifest(loaded, machine, program, plan, records))
    return out


def default_passes(bits: int | str, group_size: int) -> str:
    """The spec of the passes that `compile` runs."""
    format_for_bits(bits, group_size)  # refuses what is no format
    return (
        f"normalize,quantize-weights{{bits={bits},group_size={group_size}}},"
        "fuse-attention,fuse-linears,specialize-phases,quantize-activations"
    )


def default_name(model: str | Path, target: str, bits: int | str) -> str:
    """SmolLM2-135M-x86-4bit for .../SmolLM2-135M.gguf; hub ids lose their owner."""
    path = Path(model)
    stem = re.sub(r"\.gguf$", "", path.name or path.resolve().name, flags=re.IGNORECASE)
    return f"{stem}-{target}-{bits}{'bit' if str(bits).isdigit() else ''}"


def _options(loaded: LoadedModel, bits: int | str, context: int | None, chunk: int) -> Options:
    if context is not None and context > loaded.context:
        raise InputError(
            f"context is longer than the model's (got {context}, need at most {loaded.context})",
            hint="leave --context out",
        )
    wanted = context or min(loaded.context, DEFAULT_CONTEXT)
    return Options(
        chunk=min(chunk, wanted),
        context=-(-wanted // CONTEXT_STEP) * CONTEXT_STEP,
        cache_dtype="float32" if bits == "f32" else "float16",
    )


def _lower(
    loaded: LoadedModel,
    machine: Target,
    recipe: Sequence[Pass],
    options: Options,
    dump_ir: str | Path | None,
    progress: Progress,
) -> tuple[Program, Plan, list[PassRecord]]:
    context = Context(machine.capabilities, loaded.weights)
    dump = Path(dump_ir) if dump_ir else None
    with progress.task("passes", len(recipe)) as advance:
        module, records = run_passes(loaded.module, recipe, context, dump, done=lambda _: advance())
    with progress.task("lower to kernels", 3) as advance:
        program, plan = lower_module(module, machine, options, advance)
    return program, plan, records


def _generate(
    program: Program, plan: Plan, machine: Target, directory: Path, progress: Progress
) -> None:
    with tempfile.TemporaryDirectory(prefix="morendo-") as scratch:
        with progress.task("generate machine code", len(program.kernels)) as advance:
            objects = compile_kernels(program, Path(scratch), advance)
        with progress.task("link"):
            link_model(objects, plan.kernels, directory / LIBRARY, machine.toolchain)
    (directory / PLAN).write_text(plan.to_json(), encoding="utf-8")


@dataclass
class WeightSummary:
    """Weights of one kind in all layers, for `inspect`."""

    part: str
    format: str
    pieces: int = 0
    weights: int = 0
    bytes: int = 0


def _summarize(program: Program) -> list[WeightSummary]:
    summaries: dict[tuple[str, str], WeightSummary] = {}
    for part in program.weights.parts():
        name = re.sub(r"\.\d+\.", ".*.", part.name)
        summary = summaries.setdefault((name, part.format), WeightSummary(name, part.format))
        summary.pieces += 1
        summary.weights += part.weights
        summary.bytes += part.nbytes
    return sorted(summaries.values(), key=lambda s: -s.bytes)


def _manifest(
    loaded: LoadedModel,
    machine: Target,
    program: Program,
    plan: Plan,
    records: Sequence[PassRecord],
) -> dict[str, Any]:
    return {
        "model": {"name": loaded.name, "architecture": loaded.architecture},
        "target": {
            "name": machine.name,
            "triple": machine.triple,
            "features": list(machine.features),
            "isa": machine.isa.name,
        },
        "options": asdict(program.options),
        "passes": [
            {"spec": r.spec, "counts": r.report.counts, "missed": len(r.report.misses)}
            for r in records
        ],
        "weights": [asdict(summary) for summary in _summarize(program)],
        "tokenizer": {
            "bos": loaded.bos,
            "eos": loaded.eos,
            "stop": list(loaded.stop),
            "add_bos": loaded.add_bos,
            "vocabulary": plan.vocabulary,
            "context": plan.context,
        },
    }
