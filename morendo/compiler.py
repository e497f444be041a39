"""The compiler as a recipe: a model goes in, an artifact comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from morendo.codegen.build import compile_kernels, lower_module
from morendo.codegen.kernels.kv_cache import KEY_TILE
from morendo.codegen.link import link_model
from morendo.codegen.lowering import Options, Program
from morendo.codegen.target import Target
from morendo.frontend import LoadedModel, load_model, write_tokenizer
from morendo.ir.code_store import CodeStore
from morendo.ir.derived_weights import DerivedWeights
from morendo.ir.errors import InputError
from morendo.ir.formats import format_for_bits
from morendo.passes.base import Calibration, Context, Pass, parse_spec
from morendo.passes.calibrate_weights import CalibrateWeights
from morendo.passes.pipeline import PassRecord, known_passes, run_passes
from morendo.progress import Progress
from morendo.runtime.artifact import LIBRARY, MATRICES, PLAN, WEIGHTS, create_artifact
from morendo.targets import find_target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from morendo.ir.plan import Plan

DEFAULT_CHUNK = 256
DEFAULT_CONTEXT = 4096


def compile(
    model: str | Path,
    target: str = "x86",
    bits: int | str = 4,
    out: str | Path = "",
    *,
    group_size: int = 32,
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    calibrate: str | Path | None = None,
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
        calibrate: text file by which the weights are rounded, with error feedback; "self" for text
            that the model writes. Without it they are rounded to nearest.
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
    spec = default_passes(bits, group_size, calibrate is not None) if passes is None else passes
    recipe = parse_spec(spec, known_passes())
    _check_calibrated(recipe, calibrate)
    out = Path(out or default_name(model, target, bits))
    with create_artifact(out) as artifact, TemporaryDirectory(prefix="morendo-") as scratch:
        with progress.task("load and export the model"):
            loaded = load_model(model)
        options = _options(loaded, bits, context, chunk)
        weights = DerivedWeights(loaded.weights)
        setting = Context(machine.capabilities, weights)
        if calibrate is not None:
            windows = _windows(model, target, loaded, calibrate, progress)
            setting.calibration = _calibration(windows, Path(scratch), progress)
        program, plan, records = _lower(
            loaded, machine, recipe, options, setting, dump_ir, progress
        )
        _generate(program, plan, machine, artifact.path, progress)
        codes = setting.calibration and setting.calibration.codes
        with progress.task("quantize and pack weights", program.weights.count) as advance:
            with (artifact.path / WEIGHTS).open("wb") as file:
                program.weights.write(file, weights, advance, codes)
        (artifact.path / MATRICES).write_text(json.dumps(program.weights.describe()), "utf-8")
        write_tokenizer(loaded, artifact.path)
        artifact.finish(_manifest(loaded, machine, program, plan, records))
    return out


def _check_calibrated(recipe: Sequence[Pass], calibrate: str | Path | None) -> None:
    wanted = any(isinstance(step, CalibrateWeights) for step in recipe)
    if wanted and calibrate is None:
        raise InputError(
            "calibrate-weights needs text", hint="give --calibrate FILE or --calibrate self"
        )
    if calibrate is not None and not wanted:
        raise InputError(
            "calibration text is given, but no pass uses it",
            hint="put calibrate-weights after quantize-weights in --passes",
        )


def _windows(
    model: str | Path,
    target: str,
    loaded: LoadedModel,
    calibrate: str | Path,
    progress: Progress,
) -> NDArray[np.int64]:
    """Token ids of the calibration text."""
    from morendo.calibration import SELF, read_windows, write_windows

    if str(calibrate) != SELF:
        return read_windows(loaded, calibrate)

    def compile_writer(folder: Path) -> Path:
        with progress.task("compile the model that writes"):
            return compile(model, target, bits=8, out=folder)

    return write_windows(compile_writer, loaded.vocabulary, loaded.context, progress)


def _calibration(windows: NDArray[np.int64], scratch: Path, progress: Progress) -> Calibration:
    codes, activations = scratch / "codes", scratch / "activations"
    for folder in (codes, activations):
        folder.mkdir()
    return Calibration(windows, CodeStore(codes), activations, progress.task)


def default_passes(bits: int | str, group_size: int, calibrated: bool = False) -> str:
    """The spec of the passes that `compile` runs.

    Raises:
        InputError: for bits that are no format, or float weights with calibration.
    """
    fmt = format_for_bits(bits, group_size)
    if calibrated and not fmt.quantized:
        raise InputError(
            f"there is nothing to calibrate in float weights (got bits {bits!r}, need 8 or 4)"
        )
    return (
        f"normalize,quantize-weights{{bits={bits},group_size={group_size}}},"
        f"{'calibrate-weights,' if calibrated else ''}"
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
        context=-(-wanted // KEY_TILE) * KEY_TILE,
        cache_dtype="float32" if bits == "f32" else "float16",
    )


def _lower(
    loaded: LoadedModel,
    machine: Target,
    recipe: Sequence[Pass],
    options: Options,
    context: Context,
    dump_ir: str | Path | None,
    progress: Progress,
) -> tuple[Program, Plan, list[PassRecord]]:
    dump = Path(dump_ir) if dump_ir else None
    with progress.task("passes", len(recipe)) as advance:
        module, records = run_passes(loaded.module, recipe, context, dump, done=lambda _: advance())
    with progress.task("lower to kernels", 3) as advance:
        program, plan = lower_module(module, machine, options, advance)
    return program, plan, records


def _generate(
    program: Program, plan: Plan, machine: Target, directory: Path, progress: Progress
) -> None:
    with TemporaryDirectory(prefix="morendo-") as scratch:
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
