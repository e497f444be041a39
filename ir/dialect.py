"""The morendo dialect: Relax ops that say what a language model is made of.

Every op is one row of `OPS`: its inputs, its attributes with their types, and how its result type
follows. Weights are attributes, names in a WeightStore; an activation keeps its leading batch of 1.

`order` names a uint16 [K] permutation: channel k of what is stored (a quantized matrix's columns,
or quantized activations) is channel order[k] of the model. No name is the model's own order.

`codes` says where a matrix's codes are: nowhere yet (""), so that packing rounds it to nearest, or
with the weights (`ir/weight_overlay.py`), made for this very format by a search ("searched") or by
a text ("calibrated"), perhaps with scales that were moved afterwards ("tuned").

`activations` is how the input of a linear is rounded (`ir/activation_formats.py`), where its matrix
has codes; `factors` names a float32 [K] vector, one of 1, 2, 4 or 8 for each channel as stored.

`stage` is the stage of prefill (`ir/pruning.py`) whose tokens the cache of an attention holds: 0,
all of them, unless tokens are pruned before it. With `importance`, one of `IMPORTANCES`, an
attention also gives how important each of its tokens is to every head. With `last` it keeps the
keys and values of all its tokens, but only the last one attends.

`lower_weights` of a norm take the place of its weight where matrices are read at their second or
third reading; where there are none, the weight is the same at every reading.

`levels` is what each precision level reads, the most precise first: of a linear of nested codes the
spelling of a `LevelRead`, of a norm the place among its weights, `weight` and `lower_weights`. None
is one level, at which everything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import ir, relax

from .formats import WeightFormat
from .pruning import kept

Attrs = dict[str, Any]
Infer = Callable[[list[Any], Attrs], Any]


@dataclass(frozen=True)
class OpDef:
    """One op of the dialect.

    Attributes:
        name: without the "morendo." prefix.
        inputs: names of the operands; a trailing "?" marks one that may be left out.
        attrs: attribute name -> default value, or a type when it has to be given.
        infer: result type from the operand types and the attributes.
        doc: one line for people.
    """

    name: str
    inputs: tuple[str, ...]
    attrs: Attrs
    infer: Infer
    doc: str


def tensor(shape: Sequence[Any], dtype: str = "float32") -> relax.TensorType:
    """The type of a tensor of known (perhaps symbolic) shape."""
    return relax.TensorType(list(shape), dtype)


def shape_of(ty: Any) -> list[Any]:
    """The dimensions of a tensor type: ints, or expressions of symbolic variables."""
    dims = ty.shape.values if hasattr(ty.shape, "values") else ty.shape
    return [int(d) if isinstance(d, int | tvm.tirx.IntImm) else d for d in dims]


def _same(types: list[Any], attrs: Attrs) -> Any:
    return types[0]


def _last(extent: str) -> Infer:
    def infer(types: list[Any], attrs: Attrs) -> Any:
        return tensor([*shape_of(types[0])[:-1], attrs[extent]])

    return infer


def _embedding(types: list[Any], attrs: Attrs) -> Any:
    return tensor([*shape_of(types[0]), attrs["features"]])


def _weight(types: list[Any], attrs: Attrs) -> Any:
    return tensor(attrs["shape"], attrs["dtype"])


def _activation(types: list[Any], attrs: Attrs) -> Any:
    *rows, features = shape_of(types[0])
    fmt = WeightFormat("q8", attrs["group_size"])
    padded, groups = fmt.padded_features(features), fmt.groups(features)
    fields = [tensor([*rows, padded], "int8"), tensor([*rows, groups])]
    return relax.TupleType([*fields, tensor([*rows, groups], "int32")])


def _fused(types: list[Any], attrs: Attrs) -> Any:
    rows = sum(attrs["out_features"])
    return tensor([*shape_of(types[0])[:-1], rows // 2 if attrs["gate"] else rows])


def _stacked(types: list[Any], attrs: Attrs) -> Any:
    batch, tokens, _ = shape_of(types[0])
    return tensor([batch, tokens, attrs["heads"] * attrs["head_dim"]])


def _last_row(types: list[Any], attrs: Attrs) -> Any:
    return tensor([1, 1, *shape_of(types[0])[2:]])


def _cached(infer: Infer) -> Infer:
    def infer_cached(types: list[Any], attrs: Attrs) -> Any:
        out = infer(types, attrs)
        if attrs["last"]:
            return _last_row([out], attrs)
        if not attrs["importance"]:
            return out
        batch, tokens, *rest = shape_of(types[0])
        heads = attrs["heads"] if "heads" in attrs else rest[0]
        return relax.TupleType([out, tensor([batch, tokens, heads])])

    return infer_cached


def _pruned(types: list[Any], attrs: Attrs) -> Any:
    batch, tokens, *rest = shape_of(types[0])
    count = kept(tokens, attrs["dropped"])
    return relax.TupleType([tensor([batch, count, *rest]), tensor([batch, count], "int64")])


NORMS = ("rms_norm", "layer_norm")
"""Ops whose weights multiply each channel."""

NORM: Attrs = {"weight": str, "eps": float, "offset": 0.0, "lower_weights": [], "levels": []}
LAYER_NORM: Attrs = {"weight": str, "bias": "", **NORM}  # no weight, or no bias, is zeros
ROPE: Attrs = {"inv_freq": str, "scaling": 1.0, "rotary_dim": int, "interleaved": False}
ATTENTION: Attrs = {"layer": int, "scale": float, "window": 0, "softcap": 0.0, "alibi": ""}
CACHED: Attrs = {
    **ATTENTION,
    "cache_bits": 0,  # of CACHE_DTYPES; 0 is what the target likes best
    "stage": 0,
    "importance": "",
    "last": False,
}
ACTIVATIONS: Attrs = {"activations": "a8", "factors": ""}
FUSED: Attrs = {
    "weights": list,
    "biases": [],
    "out_features": list,
    "in_features": int,
    "transposed": False,
    "format": "f32",
    "order": "",
    "codes": "",
    **ACTIVATIONS,
    "gate": "",
    "levels": [],
}
STACKED = ("in_features", "transposed", "format", "order", "codes", *ACTIVATIONS)
"""Attributes that the linears in a fused one share."""
QUANTIZE: Attrs = {"group_size": int, "order": "", **ACTIVATIONS}
HEADS: Attrs = {"heads": int, "kv_heads": int, "head_dim": int}

_DEFS = (
    OpDef(
        "weight",
        (),
        {"name": str, "shape": list, "dtype": "float32"},
        _weight,
        "a weight that a generic op reads",
    ),
    OpDef(
        "embedding",
        ("ids",),
        {"weight": str, "rows": int, "features": int, "format": "f32", "codes": ""},
        _embedding,
        "rows of a table by token id or position",
    ),
    OpDef(
        "linear",
        ("x",),
        {
            "weight": str,
            "bias": "",
            "out_features": int,
            "in_features": int,
            "transposed": False,
            "format": "f32",
            "order": "",
            "codes": "",
            **ACTIVATIONS,
        },
        _last("out_features"),
        "y = x W^T + b; W is [N, K], or [K, N] when transposed; stored with channels in `order`",
    ),
    OpDef("rms_norm", ("x",), NORM, _same, "x / rms(x) * (weight + offset) over the last axis"),
    OpDef(
        "layer_norm",
        ("x",),
        LAYER_NORM,
        _same,
        "(x - mean) / std * (weight + offset) + bias over the last axis",
    ),
    OpDef("rope", ("x", "position_ids"), ROPE, _same, "rotary position embedding of (1,n,H,D)"),
    OpDef("attention", ("q", "k", "v"), ATTENTION, _same, "causal attention of (1,n,H,D)"),
    OpDef("gated", ("gate", "up"), {"activation": str}, _same, "activation(gate) * up"),
    OpDef(
        "fused_linear",
        ("x", "residual?"),
        FUSED,
        _fused,
        "linears of one input stacked by rows, or gate and up interleaved; plus a residual",
    ),
    OpDef(
        "stacked_attention",
        ("qkv", "position_ids"),
        {**HEADS, **ROPE, **ATTENTION},
        _stacked,
        "rope and attention of q, k and v that lie in one row",
    ),
    OpDef(
        "quantize_activation",
        ("x",),
        QUANTIZE,
        _activation,
        "int8 codes, float scales and int32 code sums per token and group, channels in `order`",
    ),
    OpDef(
        "rms_norm_quantize",
        ("x",),
        {**NORM, **QUANTIZE},
        _activation,
        "rms_norm and quantize_activation in one pass",
    ),
    OpDef(
        "layer_norm_quantize",
        ("x",),
        {**LAYER_NORM, **QUANTIZE},
        _activation,
        "layer_norm and quantize_activation in one pass",
    ),
    OpDef(
        "quantized_linear",
        ("codes", "scales", "sums", "residual?"),
        FUSED,
        _fused,
        "fused_linear of quantized activations and quantized weights",
    ),
    OpDef(
        "cached_attention",
        ("q", "k", "v"),
        CACHED,
        _cached(_same),
        "appends k and v to the layer's KV cache in place, then attends to all of it",
    ),
    OpDef(
        "cached_stacked_attention",
        ("qkv", "position_ids"),
        {**HEADS, **ROPE, **CACHED},
        _cached(_stacked),
        "stacked_attention over the layer's KV cache, which grows in place",
    ),
    OpDef(
        "prune_tokens",
        ("x", "position_ids", "importance"),
        {"dropped": int},
        _pruned,
        "without the least important `dropped` of 10000 tokens: their (1,n,C) and their positions",
    ),
    OpDef(
        "last_token",
        ("x",),
        {},
        _last_row,
        "the last token's row of (1,n,C)",
    ),
)
OPS = {definition.name: definition for definition in _DEFS}
PREFIX = "morendo."


def _plain(value: Any) -> Any:
    """A TVM attribute value as the plain Python value it stands for."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tvm.tirx.IntImm):
        return bool(value) if str(value.dtype) == "bool" else int(value)
    if isinstance(value, tvm.tirx.FloatImm):
        return float(value)
    return [_plain(item) for item in value]


def op_name(expr: Any) -> str:
    """The dialect name of a call ("linear", ...), "" for anything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op):
        name = expr.op.name
        return name[len(PREFIX) :] if name.startswith(PREFIX) else ""
    return ""


def attrs_of(call: relax.Call) -> Attrs:
    """All attributes of a dialect call as plain Python values, defaults filled in."""
    given = {str(k): _plain(v) for k, v in call.attrs.items()}
    defaults = OPS[op_name(call)].attrs
    return {**{k: v for k, v in defaults.items() if not isinstance(v, type)}, **given}


def _check_attrs(definition: OpDef, attrs: Attrs) -> Attrs:
    complete: Attrs = {}
    for name, default in definition.attrs.items():
        kind = default if isinstance(default, type) else type(default)
        if name not in attrs and isinstance(default, type):
            raise TypeError(f"morendo.{definition.name}: attribute {name} is missing")
        value = attrs.get(name, default)
        value = float(value) if kind is float and isinstance(value, int) else value
        value = list(value) if kind is list and isinstance(value, tuple) else value
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(
                f"morendo.{definition.name}: attribute {name} is {value!r}, need {kind.__name__}"
            )
        complete[name] = value
    unknown = set(attrs) - set(definition.attrs)
    if unknown:
        raise TypeError(f"morendo.{definition.name}: unknown attributes {sorted(unknown)}")
    return complete


def call(name: str, /, *args: Any, **attrs: Any) -> relax.Call:
    """A call of a dialect op.

    Args:
        name: without prefix, one of `OPS`.
        args: operands (Relax expressions).
        attrs: attributes; those with a default may be left out.

    Raises:
        TypeError: for a wrong number of operands or a wrong attribute.
    """
    definition = OPS[name]
    required = sum(not n.endswith("?") for n in definition.inputs)
    if not required <= len(args) <= len(definition.inputs):
        raise TypeError(f"morendo.{name}: takes {definition.inputs}, got {len(args)} operands")
    node = ir.make_node("ir.DictAttrs", **_check_attrs(definition, attrs))
    return relax.Call(ir.Op.get(PREFIX + name), list(args), node)


def _constructor(name: str) -> Callable[..., relax.Call]:
    def construct(*args: Any, **attrs: Any) -> relax.Call:
        return call(name, *args, **attrs)

    construct.__name__ = name
    construct.__doc__ = OPS[name].doc
    return construct


def _register(definition: OpDef) -> None:
    def infer(node: relax.Call, context: Any) -> Any:
        return definition.infer([arg.ty for arg in node.args], attrs_of(node))

    full = PREFIX + definition.name
    ir.register_op_attr(full, "FInferType", infer)
    ir.register_op_attr(full, "FPurity", True)
    ir.Op.get(full).set_num_inputs(-1)


class Namespace:
    """The dialect as seen from IR text: `M.linear(x, weight="...")`."""

    def __init__(self) -> None:
        for name in OPS:
            setattr(self, name, _constructor(name))


for _definition in _DEFS:
    _register(_definition)
M = Namespace()
