"""What is true of a module between passes: each invariant has a name and a checker.

A pass lists the invariants that it needs and gives; the pipeline checks both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import tvm
from tvm import relax

from .dialect import Attrs, attrs_of, op_name
from .errors import CompileError, InputError
from .formats import WeightFormat
from .level_reads import parse_levels
from .text import bindings_of
from .weight_overlay import WeightOverlay

Checker = Callable[[tvm.IRModule], str]
ResultChecker = Callable[[tvm.IRModule, WeightOverlay], str]

SEARCHED, CALIBRATED, TUNED = "searched", "calibrated", "tuned"
"""Values of the attribute `codes`."""


def tuned_mark(reading: int) -> str:
    """The name of the figure that marks codes whose scales for a reading are tuned."""
    return f"{TUNED}{reading or ''}"


@dataclass(frozen=True)
class Invariant:
    """What may be true of a module, and of what passes keep with its weights.

    Attributes:
        check: what is wrong; "" when it is true.
        hint: what to do about it.
        check_results: the same of module and weights; not asked where there is only IR text.
    """

    check: Checker = lambda module: ""
    hint: str = "run the passes in order"
    check_results: ResultChecker = lambda module, weights: ""


def relax_functions(module: tvm.IRModule) -> dict[str, relax.Function]:
    """The graph functions of a module by name."""
    return {
        var.name_hint: function
        for var, function in module.functions_items()
        if isinstance(function, relax.Function)
    }


def calls(module: tvm.IRModule) -> Iterator[tuple[str, relax.Call]]:
    """All dialect calls with their op's name, functions and bindings in order."""
    for function in relax_functions(module).values():
        for binding in bindings_of(function):
            name = op_name(binding.value)
            if name:
                yield name, binding.value


def readings_of(module: tvm.IRModule) -> tuple[int, ...]:
    """The bits of each reading of the module's matrices, () where no format has several."""
    specs = (attrs_of(call).get("format", "") for _, call in calls(module))
    found = (WeightFormat.parse(spec).readings for spec in dict.fromkeys(filter(None, specs)))
    return max(found, key=len, default=())


def _well_formed(module: tvm.IRModule) -> str:
    try:
        relax.analysis.well_formed(module)
    except Exception as error:  # TVM raises ValueError, TypeError and its own
        return str(error).strip().splitlines()[-1]
    return ""


def _one_graph(module: tvm.IRModule) -> str:
    return "" if "main" in relax_functions(module) else "there is no function main"


def _normalized(module: tvm.IRModule) -> str:
    main = relax_functions(module).get("main")
    if main is None:
        return _one_graph(module)
    if len(main.params) != 2:
        return f"main has {len(main.params)} parameters, need input_ids and position_ids"
    return ""


def _no_op(*names: str) -> Checker:
    def check(module: tvm.IRModule) -> str:
        return next((f"morendo.{name} is left" for name, _ in calls(module) if name in names), "")

    return check


def _formats_known(module: tvm.IRModule) -> str:
    for name, call in calls(module):
        attrs = attrs_of(call)
        if "format" not in attrs:
            continue
        try:
            fmt = WeightFormat.parse(attrs["format"])
        except InputError as error:
            return f"morendo.{name}: {error}"
        if attrs["codes"] not in ("", *((SEARCHED, CALIBRATED, TUNED) if fmt.quantized else ())):
            return f"morendo.{name}: codes {attrs['codes']!r} in the format {fmt.name}"
    return ""


def _formats_open(module: tvm.IRModule) -> str:
    """Codes fit one format alone, so that nothing may choose another one."""
    for _, call in calls(module):
        attrs = attrs_of(call)
        if attrs.get("codes"):
            name = attrs.get("weight") or attrs["weights"][0]
            return f"{name} has {attrs['codes']} codes, which fit {attrs['format']} alone"
    return ""


def _formats_whole(module: tvm.IRModule) -> str:
    for _, call in calls(module):
        attrs = attrs_of(call)
        fmt = WeightFormat.parse(attrs.get("format", "f32"))
        parted = fmt.of_one_reading != fmt.of_kernel or fmt.nibbles
        if parted or ("format" in attrs and attrs.get("order")):
            return f"{attrs.get('weight') or attrs['weights'][0]} has {fmt.name} already"
    return ""


def _with_codes(module: tvm.IRModule) -> list[tuple[str, str]]:
    """(weight, "searched", "calibrated" or "tuned") of the linears whose codes are made."""
    linears = [attrs_of(call) for name, call in calls(module) if name == "linear"]
    return [(attrs["weight"], attrs["codes"]) for attrs in linears if attrs["codes"]]


def _calibrated(module: tvm.IRModule) -> str:
    made = {codes for _, codes in _with_codes(module)} - {SEARCHED}
    return "" if made else "no matrix has codes that a text made"


def _scales_open(module: tvm.IRModule) -> str:
    tuned = [name for name, codes in _with_codes(module) if codes == TUNED]
    return f"the scales of {tuned[0]} are tuned" if tuned else ""


def _activations_match(module: tvm.IRModule) -> str:
    for name, call in calls(module):
        attrs = attrs_of(call)
        if name == "fused_linear" and attrs["order"]:
            return f"morendo.fused_linear of {attrs['weights']} has an order, but float activations"
        if name == "fused_linear" and WeightFormat.parse(attrs["format"]).quantized:
            return f"morendo.fused_linear of {attrs['weights']} reads float activations"
        if name == "quantized_linear" and not WeightFormat.parse(attrs["format"]).quantized:
            return f"morendo.quantized_linear of {attrs['weights']} has float weights"
    wrong = map(_foreign_order, relax_functions(module).values())
    return next(filter(None, wrong), "")


def _foreign_order(function: relax.Function) -> str:
    """A linear that takes activations in another order than its own."""
    values = {binding.var: binding.value for binding in bindings_of(function)}
    for linear in values.values():
        if op_name(linear) != "quantized_linear":
            continue
        codes = values.get(linear.args[0])
        producer = values.get(codes.tuple_value) if isinstance(codes, relax.TupleGetItem) else None
        have = attrs_of(producer)["order"] if op_name(producer) else ""
        want = attrs_of(linear)["order"]
        if have != want:
            weights = attrs_of(linear)["weights"]
            return f"morendo.quantized_linear of {weights} has order {want!r}, its input {have!r}"
    return ""


def _specialized(module: tvm.IRModule) -> str:
    missing = {"prefill", "score", "decode"} - set(relax_functions(module))
    if missing:
        return f"there is no function {', '.join(sorted(missing))}"
    return _no_op("attention", "stacked_attention")(module)


def _levels_agree(module: tvm.IRModule) -> str:
    """Everything that has levels has the same number of them, and they read what is stored."""
    found = [attrs for _, each in calls(module) if (attrs := attrs_of(each)).get("levels")]
    counts = {len(attrs["levels"]) for attrs in found}
    if len(counts) > 1:
        return f"calls have {min(counts)} and {max(counts)} levels"
    return next(filter(None, map(wrong_levels, found)), "")


def wrong_levels(attrs: Attrs) -> str:
    """What is wrong with the levels of a linear or of a norm; "" if nothing is."""
    if "lower_weights" in attrs:
        most = len(attrs["lower_weights"])
        good = all(isinstance(i, int) and 0 <= i <= most for i in attrs["levels"])
        return (
            "" if good else f"{attrs['weight']} has levels {attrs['levels']}, weights 0 to {most}"
        )
    fmt = WeightFormat.parse(attrs["format"])
    if not fmt.plane_names:
        return f"{attrs['weights'][0]} has levels, but no planes in {fmt.name}"
    stored = fmt.plane_groups(attrs["in_features"])
    try:
        reads = parse_levels(attrs["levels"])
    except InputError as error:
        return f"{attrs['weights'][0]}: {error.message}"
    for read in reads:
        good = len(read.bounds) == len(stored) and read.reading < fmt.reading_count
        good = good and all(n <= most for n, most in zip(read.bounds, stored, strict=False))
        if not good or list(read.bounds) != sorted(read.bounds, reverse=True):
            return f"{attrs['weights'][0]} has the level {read}, stored is {stored} ({fmt.name})"
    return ""


def _analyzed(module: tvm.IRModule, weights: WeightOverlay) -> str:
    """Inputs are analyzed, and their matrices have the formats that they had then."""
    if not weights.analyses:
        return "no matrix is"
    was = {name: each.format.name for each in weights.analyses for name in each.names}
    for attrs in (attrs_of(call) for name, call in calls(module) if name == "linear"):
        name, fmt = attrs["weight"], attrs["format"]
        if was.get(name, fmt) != fmt:
            return f"{name} was in the format {was[name]}, and has {fmt}"
    return ""


def _results_kept(module: tvm.IRModule, weights: WeightOverlay) -> str:
    """What the module names and no checkpoint has is kept with the weights."""
    made = set() if weights.codes is None else weights.codes.keys()
    for _, call in calls(module):
        attrs = attrs_of(call)
        vectors = [attrs.get("order"), attrs.get("factors"), *attrs.get("lower_weights", ())]
        lost = [name for name in filter(None, vectors) if name not in weights]
        matrices = attrs.get("weights", [attrs.get("weight")]) if attrs.get("codes") else []
        lost += [n for n in matrices if (n, WeightFormat.parse(attrs["format"])) not in made]
        if lost:
            return f"nothing is kept of {lost[0]}"
    return ""


INVARIANTS: dict[str, Invariant] = {
    "well-formed": Invariant(_well_formed),
    "one-graph": Invariant(_one_graph),
    "normalized": Invariant(_normalized),
    "formats-known": Invariant(_formats_known),
    "formats-open": Invariant(_formats_open, "choose formats before calibrate-weights"),
    "formats-whole": Invariant(
        _formats_whole, "the order is quantize-weights, analyze-group-ranges, promote-groups"
    ),
    "linears-apart": Invariant(
        _no_op("fused_linear", "quantized_linear"),
        "choose formats and codes before fuse-attention and fuse-linears",
    ),
    "calibrated": Invariant(_calibrated, "run calibrate-weights before it"),
    "scales-open": Invariant(_scales_open, "give tune-scales more steps instead"),
    "fused": Invariant(_no_op("linear")),
    "activations-float": Invariant(
        _no_op("quantized_linear"), "quantize-activations is the last pass"
    ),
    "activations-quantized": Invariant(_activations_match),
    "levels-agree": Invariant(_levels_agree),
    "analyzed": Invariant(hint="run analyze-group-ranges before it", check_results=_analyzed),
    "results-kept": Invariant(check_results=_results_kept),
    "specialized": Invariant(_specialized),
    "tokens-whole": Invariant(_no_op("prune_tokens"), "tokens are pruned once"),
}


def check_invariant(
    name: str, module: tvm.IRModule, where: str, weights: WeightOverlay | None = None
) -> None:
    """Check one invariant.

    Args:
        name: a key of `INVARIANTS`.
        where: "before PASS" or "after PASS", for the message.
        weights: of the model; None where there is only IR text.

    Raises:
        CompileError: with what is wrong.
    """
    invariant = INVARIANTS[name]
    wrong = invariant.check(module)
    if not wrong and weights is not None:
        wrong = invariant.check_results(module, weights)
    if wrong:
        raise CompileError(f"the module is not {name} {where} ({wrong})", hint=invariant.hint)
