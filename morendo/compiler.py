"""The compiler as a recipe: a model goes in, an artifact comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.budget import Budget, default_name
from morendo.calibration_text import WINDOWS, CalibrationText, calibration_text
from morendo.chat_check import prepare_tokenizer
from morendo.codegen.build import lower_module
from morendo.codegen.dump_program import dump_program
from morendo.codegen.dump_weights import dump_weights
from morendo.codegen.lowering import Options, Program
from morendo.codegen.scratch import scratch_folder
from morendo.codegen.target import Target
from morendo.codegen.text_facts import TextFacts
from morendo.compile_options import (
    DEFAULT_BITS,
    check_activations,
    check_calibrated,
    check_given,
)
from morendo.executable import describe_text, with_step_cost
from morendo.float_check import check_import, open_original
from morendo.forecast import foresee_time
from morendo.frontend import DEFAULT_CONTEXT, LoadedModel, load_model
from morendo.ir.code_store import CodeStore
from morendo.ir.dump import Dump
from morendo.ir.errors import InputError
from morendo.ir.plan_reads import decode_bytes_by_kernel
from morendo.ir.text import print_module
from morendo.ir.weight_overlay import WeightOverlay
from morendo.manifest import manifest_of
from morendo.passes.analyze_group_ranges import AnalyzeGroupRanges
from morendo.passes.base import Calibration, Context, Pass, parse_spec
from morendo.passes.pipeline import PassRecord, known_passes, run_passes
from morendo.passes.promote_groups import PromoteGroups
from morendo.passes.prune_tokens import PruneTokens
from morendo.passes.specialize_phases import SpecializePhases
from morendo.progress import Progress
from morendo.resume import calibration_key, kept_codes
from morendo.runtime.artifact import GRAPH, PLAN, WEIGHT_LIST, WEIGHTS, create_artifact
from morendo.shared_weights import SharedWeights
from morendo.targets import find_target

if TYPE_CHECKING:
    import tvm

    from morendo.ir.plan import Plan

DEFAULT_CHUNK = 256


def compile(
    model: str | Path,
    target: str = "native",
    bits: int | str = DEFAULT_BITS,
    out: str | Path = "",
    *,
    average_bits: float | None = None,
    size_mb: float | None = None,
    group_size: int | None = None,
    embedding_bits: int | str | None = None,
    readings: str | Sequence[int] | None = None,
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    cache_bits: int | None = None,
    activations: int | str | None = None,
    prune_tokens: float | None = None,
    prune_importance: str | None = None,
    search_scales: bool | None = None,
    calibrate: str | Path | Sequence[str | Path] | None = None,
    calibration_windows: int | None = None,
    tuning_steps: int | None = None,
    passes: str | None = None,
    weights_of: str | Path | None = None,
    dump_ir: str | Path | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compile a model for a target and write an artifact.

    Args:
        model: Hugging Face directory, hub id, .gguf or .onnx file.
        target: a name of `morendo targets`; "native" is this machine's CPU.
        bits: format of the weights: "f32", "f16", 8, 6, 5 or 4.
        out: the artifact's directory; by default named after model, target and bits.
        average_bits: instead of 4 bits everywhere, 2, 3 or 4 for each group of a linear's input
            channels so that this many are used on average, with scales and all: about 2.3 to 4.6.
        size_mb: the same for megabytes (10^6 bytes) of all weights.
        group_size: input channels that share a scale, 32, 64 or 128; by default 32.
        embedding_bits: of the table of tokens and the output head, 8, 6, 5 or 4, or "auto": 4 to 6,
            as the budget gives them, which then counts them. By default 8, under a size "auto".
        readings: bits that 4-bit codes are made to be read with, falling, such as "4,3" or
            (4, 3, 2): every reading is a precision level, with scales of its own. "4": codes are
            read whole at the only level, and CPUs unpack them faster. By default codes are made for
            all bits that they have.
        context: positions of the KV cache; by default the model's, at most 4096.
        chunk: tokens that one prefill call takes.
        cache_bits: of keys and values, 32, 16, 8 or 4; with 8 and 4, attention computes with
            integers. By default 16 where the target converts them as it reads, 8 where it has no
            vectors of floats, else 32.
        activations: bits of the inputs of linears with integer weights, 8 (the default), 4, or
            "mixed": 4 where the linears tolerate it. Codes of 4 bits live in bytes: they are for
            measuring, no faster and no smaller. They are measured on the text of `calibrate`, or
            without one on "pydoc". 16: halves, where the target multiplies them (GPUs).
        prune_tokens: share of a prompt's tokens, 0 to 0.5, that the last layers do not see: the
            least important. Off by default.
        prune_importance: "first", the default: how much attention a token pays to the first one;
            "received": how much it receives from those behind it, which takes longer to compute.
        search_scales: without any text, search the scales and zeros of 6, 5 or 4 bits that leave
            the least error, half a minute for a hundred million weights; those of 4 bits are
            smaller, too. By default so; False rounds to nearest.
        calibrate: text file, or several, by which the weights are rounded, with error feedback;
            "self" for text that the model writes, the default under a budget, "pydoc" for the text
            of Python's help. By default there is none without a budget.
        calibration_windows: of 512 tokens, taken evenly from the text; by default 48. More are
            better and take longer.
        tuning_steps: windows of text by which scales are tuned after rounding, each seconds of time
            for a small model; by default 30 under a budget below 4 bits, else 0.
        passes: pass spec to run instead of the default recipe.
        weights_of: artifact of the same model for another machine, whose weights and layout this
            one has, in the same file where the disk can; they say all that the options before say.
        dump_ir: folder for the IR and the report of every pass, then kernels, plan and assembly.
        check: compare the imported graph with transformers' own model first, on random tokens;
            takes 4 bytes of memory for each weight.
        progress: shows what is going on; silent by default.

    Returns:
        The artifact's directory.

    Raises:
        InputError: for a wrong option or a model that cannot be read.
        CompileError: for a model that cannot be compiled, or that `check` finds changed.
        ArtifactError: when the artifact cannot be written.
    """
    check_given(locals())  # the arguments as they are
    progress = progress or Progress()
    machine = find_target(target).prepared()
    if weights_of is not None:
        return _compile_shared(model, weights_of, machine, out, chunk, check, progress)
    wanted = average_bits, size_mb, group_size, embedding_bits, readings, activations
    budget = Budget.of(bits, *wanted)
    calibrating = budget.texts(calibrate)
    spec = budget.passes(bool(calibrating), tuning_steps, search_scales)
    texts = calibrating or budget.measuring_texts
    recipe = _recipe(machine, spec, passes, cache_bits, (prune_tokens, prune_importance))
    check_calibrated(recipe, texts, calibration_windows)
    out = _named(Path(out or default_name(model, machine.name, budget.label)))
    with ExitStack() as stack:
        artifact = stack.enter_context(create_artifact(out))
        scratch = stack.enter_context(scratch_folder())
        dump = None if dump_ir is None else Dump(Path(dump_ir))
        loaded = _load(model, context, check, progress)
        tokenizer, facts = _texts(loaded, artifact.path, progress)
        options = _options(loaded, machine, bits, context, chunk)
        setting = _setting(loaded, machine, recipe, scratch, progress)
        if texts:
            forecast, text = _text(model, loaded, recipe, texts, calibration_windows, progress)
            kept = kept_codes(out, calibration_key(loaded, repr(recipe), text), progress.note)
            setting.weights.codes, setting.track = stack.enter_context(kept), forecast.task
            setting.calibration = Calibration(text.rounding, scratch, tuning=text.tuning)
        module, records = _run_passes(loaded, machine, recipe, setting, dump, progress)
        program, plan = _lower(module, machine, options, artifact.path, dump, progress)
        facts = with_step_cost(facts, plan)
        machine.build(program, plan, facts, artifact.path, progress.task, dump)
        _write_data(program, plan, artifact.path, setting, dump, progress)
        artifact.finish(manifest_of(loaded, context, machine, program, plan, records, tokenizer))
    return out


def _compile_shared(
    model: str | Path,
    weights_of: str | Path,
    machine: Target,
    out: str | Path,
    chunk: int,
    check: bool,
    progress: Progress,
) -> Path:
    """`compile` with the weights of another artifact."""
    shared = SharedWeights.of(weights_of)
    machine = shared.fitted(machine)
    out = _named(Path(out or default_name(model, machine.name, "shared")))
    if out.resolve() == shared.directory.resolve():
        raise InputError(
            "an artifact cannot take the place of the one whose weights it shares",
            where=str(out),
            hint="give another --out",
        )
    with create_artifact(out) as artifact:
        loaded = _load(model, shared.context, check, progress)
        shared.require_model(loaded)
        tokenizer, facts = _texts(loaded, artifact.path, progress)
        options = shared.options(chunk)
        program, plan = _lower(shared.module(), machine, options, artifact.path, None, progress)
        known = shared.place(program, artifact)
        machine.build(program, plan, with_step_cost(facts, plan), artifact.path, progress.task)
        (artifact.path / PLAN).write_text(plan.to_json(), encoding="utf-8")
        manifest = manifest_of(loaded, shared.context, machine, program, plan, [], tokenizer)
        kept = {key: shared.manifest[key] for key in ("passes", "weights")}
        artifact.finish({**manifest, **kept}, known)
    return out


def _named(out: Path) -> Path:
    """The same folder by a name to put others beside, which "." has none of."""
    return out if out.name else out.absolute()


def _load(model: str | Path, context: int | None, check: bool, progress: Progress) -> LoadedModel:
    original = open_original(model, context) if check else None
    with progress.task("load and export the model"):
        loaded = load_model(model, context)
    progress.notes(loaded.notes)
    if original is not None:
        check_import(loaded, original, progress)
    return loaded


def _texts(
    loaded: LoadedModel, directory: Path, progress: Progress
) -> tuple[dict[str, Any], TextFacts]:
    """What the manifest and the executable have to know of the model's texts; the tokenizer's
    tables are in the directory then.
    """
    tokenizer = prepare_tokenizer(loaded, directory, progress.note)
    return tokenizer, describe_text(loaded, tokenizer, directory, progress.note)


def _recipe(
    machine: Target,
    default: str,
    given: str | None,
    bits: int | None,
    pruned: tuple[float | None, str | None],
) -> Sequence[Pass]:
    """The passes that the user gives as they are, or the default ones as the target wants them.

    Args:
        bits: of the cache.
        pruned: the share of tokens, and what makes them important.
    """
    pruning = PruneTokens(float(pruned[0] or 0), importance=pruned[1] or "first")
    if given is not None:
        recipe = parse_spec(given, known_passes())
    else:
        steps = machine.recipe(parse_spec(default, known_passes()))
        check_activations(machine, steps)
        recipe = [each for step in steps for each in _with_options(step, bits or 0, pruning)]
    return recipe


def _with_options(step: Pass, cache_bits: int, pruning: PruneTokens) -> Sequence[Pass]:
    """A default pass with what the user wants of caches and tokens."""
    if not isinstance(step, SpecializePhases):
        return [step]
    specialized = replace(step, cache_bits=cache_bits) if cache_bits else step
    return [specialized, pruning] if pruning.ratio else [specialized]


def _text(
    model: str | Path,
    loaded: LoadedModel,
    recipe: Sequence[Pass],
    texts: Sequence[str | Path],
    windows: int | None,
    progress: Progress,
) -> tuple[Progress, CalibrationText]:
    """What shows how long the passes still take, and the text."""
    count = WINDOWS if windows is None else windows
    forecast = foresee_time(loaded, recipe, count, texts, progress)
    writer = partial(_compile_writer, model, forecast)
    return forecast, calibration_text(loaded, texts, writer, forecast, count)


def _compile_writer(model: str | Path, progress: Progress, folder: Path) -> Path:
    with progress.task("compile the model that writes"):
        return compile(model, bits=8, out=folder)


def _setting(
    loaded: LoadedModel, machine: Target, recipe: Sequence[Pass], scratch: Path, progress: Progress
) -> Context:
    """What passes may ask; a budget that cannot be met is refused here."""
    (scratch / "codes").mkdir()
    weights = WeightOverlay(loaded.weights, CodeStore(scratch / "codes"))
    setting = Context(weights, layout=machine.layout, track=progress.task)
    _foresee_budget(recipe, loaded, setting)
    return setting


def _foresee_budget(recipe: Sequence[Pass], loaded: LoadedModel, context: Context) -> None:
    """Refuse a budget that cannot be met before any text is written or read."""
    kinds = [type(step) for step in recipe]
    if PromoteGroups not in kinds or AnalyzeGroupRanges not in kinds:
        return
    module, _ = run_passes(loaded.module, recipe[: kinds.index(AnalyzeGroupRanges)], context)
    for step in recipe:
        if isinstance(step, PromoteGroups):
            step.foresee(module)


def _options(
    loaded: LoadedModel, machine: Target, bits: int | str, context: int | None, chunk: int
) -> Options:
    if context is not None and context > loaded.context:
        raise InputError(
            f"context is longer than the model's (got {context}, need at most {loaded.context})",
            hint="leave --context out",
        )
    wanted, tile = context or min(loaded.context, DEFAULT_CONTEXT), machine.layout.key_tile
    half = bits != "f32" and machine.capabilities.half_conversion
    return Options(
        chunk=min(chunk, wanted),
        context=-(-wanted // tile) * tile,
        half_cache=half,
    )


def _run_passes(
    loaded: LoadedModel,
    machine: Target,
    recipe: Sequence[Pass],
    context: Context,
    dump: Dump | None,
    progress: Progress,
) -> tuple[tvm.IRModule, list[PassRecord]]:
    if dump:
        dump.facts |= {"model": loaded.name, "target": machine.name}
    with progress.task("passes", len(recipe)) as advance:

        def done(record: PassRecord, _: Any) -> None:
            progress.took(record.name, record.seconds)
            advance()

        return run_passes(loaded.module, recipe, context, dump, done)


def _lower(
    module: tvm.IRModule,
    machine: Target,
    options: Options,
    directory: Path,
    dump: Dump | None,
    progress: Progress,
) -> tuple[Program, Plan]:
    (directory / GRAPH).write_text(print_module(module), encoding="utf-8")
    with progress.task("lower to kernels", 3) as advance:
        begin = time.perf_counter()
        program, plan = lower_module(module, machine, options, advance)
        if dump:
            dump.facts |= {"decode_bytes": decode_bytes_by_kernel(plan)}
            dump_program(dump, program, plan, time.perf_counter() - begin)
    return program, plan


def _write_data(
    program: Program,
    plan: Plan,
    directory: Path,
    context: Context,
    dump: Dump | None,
    progress: Progress,
) -> None:
    assert context.weights is not None
    (directory / PLAN).write_text(plan.to_json(), encoding="utf-8")
    with progress.task("quantize and pack weights", program.weights.count) as advance:
        with (directory / WEIGHTS).open("wb") as file:
            program.weights.write(file, context.weights, advance)
    listed = json.dumps(program.weights.describe(context.weights))
    (directory / WEIGHT_LIST).write_text(listed, "utf-8")
    if dump:
        dump_weights(dump, program, plan, context.weights)
