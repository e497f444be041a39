"""How each dialect op becomes kernel calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx

from morendo.ir.activation_formats import DEFAULT_ACTIVATIONS, ActivationFormat
from morendo.ir.dialect import attrs_of, op_name, shape_of
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.pruning import StagePosition, kept

from .cpu.kernels import norms
from .cpu.kernels.attention import KEPT, Scores, cached_attention
from .cpu.kernels.elementwise import gated
from .cpu.kernels.embedding import embedding
from .cpu.kernels.kv_cache import append_kv
from .cpu.kernels.linear import build_linear
from .cpu.kernels.linear_spec import LinearSpec
from .cpu.kernels.quantize_activation import quantize_activation
from .cpu.kernels.quantized_linear import build_quantized_linear
from .cpu.kernels.received_attention import received_attention
from .cpu.kernels.rope import Rotation, rope, rope_append_kv
from .cpu.kernels.token_pruning import prune_tokens
from .cpu.kernels.token_rows import copy_last_token
from .cpu.vectors.vector_blocks import Rows
from .lower_generic import lower_generic
from .lowering import FunctionLowering, LevelStorage, Scalar
from .memory import Storage
from .packed_matrix import Matrix

Lower = Callable[[FunctionLowering, relax.Call, dict[str, Any]], Any]


def lower_op(lowering: FunctionLowering, call: relax.Call) -> Any:
    """Append the kernel calls of a dialect call; gives the storage (or storages) of its value.

    Raises:
        CompileError: for an op that has to be rewritten by a pass first.
    """
    name = op_name(call)
    lower = lowering.program.target.lowerings.get(name) or LOWERINGS.get(name)
    if lower is None:
        raise CompileError(
            f"morendo.{name} has no kernel", hint="run specialize-phases and quantize-activations"
        )
    return lower(lowering, call, attrs_of(call))


def _weight(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    return lowering.program.weights.vector([attrs["name"]], [math.prod(attrs["shape"])])


def _embedding(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    fmt = WeightFormat.parse(attrs["format"])
    if fmt != fmt.of_kernel:
        raise CompileError(
            f"an embedding table has all planes, one reading and no outliers (got {fmt.name})",
            where=attrs["weight"],
        )
    rows, features = attrs["rows"], attrs["features"]
    tokens, count = lowering.rows(call.args[0])
    table = lowering.program.weights.matrix(
        Matrix((attrs["weight"],), (rows,), features, fmt, calibrated=bool(attrs["codes"]))
    )
    out = lowering.new("float32", tokens, features)
    function = lowering.build(embedding, max_tokens=tokens, rows=rows, features=features, fmt=fmt)
    ids = lowering.storage(call.args[0])
    if ids.space != "ids":  # positions: computed with, so int64
        cast = relax.op.astype(call.args[0], "int32")
        ids = lower_generic(lowering, relax.BlockBuilder().normalize(cast))
    lowering.call(function, [ids, *table, out, count], attrs["weight"], table_rows=rows)
    return out


def _fused_linear(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    if WeightFormat.parse(attrs["format"]).quantized:
        raise CompileError(
            "its weights are integers and its activations floats",
            where=" + ".join(attrs["weights"]),
            hint="run quantize-activations, as --activations 8 does",
        )
    return lower_linear(lowering, call, attrs, [lowering.storage(call.args[0])], build_linear)


def _quantized_linear(
    lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]
) -> Storage:
    x = [lowering.storage(arg) for arg in call.args[:3]]
    return lower_linear(lowering, call, attrs, x, build_quantized_linear)


def lower_linear(
    lowering: FunctionLowering,
    call: relax.Call,
    attrs: dict[str, Any],
    x: list[Storage],
    build: Callable[..., tirx.PrimFunc],
) -> Storage:
    """The kernel call of a fused linear.

    Args:
        x: its activations as the kernel takes them.
        build: makes the kernel of a `LinearSpec`.
    """
    fmt = WeightFormat.parse(attrs["format"])
    inputs = 3 if op_name(call) == "quantized_linear" else 1
    tokens, count = lowering.rows(call.args[0])
    residual = [lowering.storage(arg) for arg in call.args[inputs:]]
    spec = LinearSpec(
        sum(attrs["out_features"]),
        attrs["in_features"],
        fmt.of_kernel,
        tokens,
        bias=bool(attrs["biases"]),
        residual=bool(residual),
        gate=attrs["gate"],
        outliers=fmt.slots > 0,
    )
    out = lowering.new("float32", tokens, spec.output_features)
    args = [*x, *lowering.matrix(attrs), *lowering.bias(attrs), *residual, out]
    level = lowering.level(attrs)
    note = " + ".join(attrs["weights"])
    weights = sum(attrs["out_features"]) * attrs["in_features"]
    lowering.call(lowering.build(build, spec=spec), [*args, count, *level], note, weights)
    return out


def _norm(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    """Rows are normalized one by one, so it does not matter whether heads or tokens come first."""
    _, *leading, features = shape_of(call.args[0].ty)
    symbolic = [i for i, dim in enumerate(leading) if not isinstance(dim, int)]
    of_tokens = leading.pop(symbolic[0] if symbolic else 0)
    tokens, count = lowering.max_tokens(of_tokens), lowering.token_count(of_tokens)
    out = lowering.new("float32", tokens, *leading, features)
    options = _norm_options(attrs)
    if math.prod(leading) != 1:
        options["rows_per_token"] = math.prod(leading)
    builder = norms.layer_norm if "bias" in attrs else norms.rms_norm
    function = lowering.build(builder, max_tokens=tokens, features=features, **options)
    args = [lowering.storage(call.args[0]), *_norm_vectors(lowering, attrs, features), out, count]
    lowering.call(function, args, attrs["weight"])
    return out


def _norm_quantize(
    lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]
) -> list[Storage]:
    tokens, count = lowering.rows(call.args[0])
    features = shape_of(call.args[0].ty)[-1]
    builder = norms.layer_norm_quantize if "bias" in attrs else norms.rms_norm_quantize
    function = lowering.build(builder, max_tokens=tokens, features=features, **_norm_options(attrs))
    outputs = _quantized(lowering, function)
    vectors = _norm_vectors(lowering, attrs, features)
    source = [lowering.storage(call.args[0]), *vectors, *_channels(lowering, attrs, features)]
    lowering.call(function, [*source, *outputs, count], attrs["weight"])
    return outputs


def _quantized(lowering: FunctionLowering, function: tirx.PrimFunc) -> list[Storage]:
    """Codes, scales and sums, the last parameters before the tokens, as the kernel lays them."""
    return lowering.new_like(function.params[-4:-1])


def _channels(lowering: FunctionLowering, attrs: dict[str, Any], features: int) -> list[Storage]:
    """The channel order of quantized activations, nothing when it is the model's; then factors, if
    channels have some.
    """
    weights = lowering.program.weights
    order = [weights.order(attrs["order"], features)] if attrs["order"] else []
    return order + ([weights.vector([attrs["factors"]], [features])] if attrs["factors"] else [])


def _rounding_options(attrs: dict[str, Any]) -> dict[str, Any]:
    """How activations are rounded, as far as it is not what kernels do by default."""
    fmt = ActivationFormat.parse(attrs["activations"])
    if fmt.factored != bool(attrs["factors"]):
        raise CompileError(f"activations {fmt.name} with factors {attrs['factors']!r}")
    ordered = {"ordered": True} if attrs["order"] else {}
    return ordered if fmt == DEFAULT_ACTIVATIONS else {**ordered, "activations": fmt}


def _norm_options(attrs: dict[str, Any]) -> dict[str, Any]:
    options = {key: attrs[key] for key in ("eps", "offset", "group_size") if key in attrs}
    return {**options, **_rounding_options(attrs)} if "order" in attrs else options


def _norm_vectors(
    lowering: FunctionLowering, attrs: dict[str, Any], features: int
) -> list[Storage | LevelStorage]:
    """The weight, and for a layer norm the bias; one that is missing is zeros."""
    names = [attrs["weight"], *attrs["lower_weights"]]
    weight = lowering.vector_at_levels(names, features, attrs["levels"])
    biases = [attrs["bias"]] if "bias" in attrs else []
    return [weight, *(lowering.program.weights.vector([name], [features]) for name in biases)]


def _rope(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    tokens, count = lowering.rows(call.args[0])
    heads, head_dim = shape_of(call.args[0].ty)[2:]
    out = lowering.new("float32", tokens, heads, head_dim)
    listed: dict[str, Any] = {}
    position: list[Any] = ["position"]
    if not call.args[1].same_as(lowering.function.params[1]):
        listed, position = {"listed": True}, [lowering.storage(call.args[1])]
    function = lowering.build(
        rope, max_tokens=tokens, heads=heads, rotation=_rotation(attrs, head_dim), **listed
    )
    args = [lowering.storage(call.args[0]), _frequencies(lowering, attrs), out, count, *position]
    lowering.call(function, args, "rope")
    return out


def _rotation(attrs: dict[str, Any], head_dim: int) -> Rotation:
    return Rotation(head_dim, attrs["rotary_dim"], attrs["scaling"], attrs["interleaved"])


def _frequencies(lowering: FunctionLowering, attrs: dict[str, Any]) -> Storage:
    return lowering.program.weights.vector([attrs["inv_freq"]], [attrs["rotary_dim"] // 2])


def _slot(attrs: dict[str, Any]) -> Scalar:
    """The first slot of an attention's cache that the call writes to."""
    return StagePosition(attrs["stage"]) if attrs["stage"] else "position"


def _cached_attention(
    lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]
) -> Storage | list[Storage]:
    tokens, count = lowering.rows(call.args[0])
    heads, head_dim = shape_of(call.args[0].ty)[2:]
    kv_heads = shape_of(call.args[1].ty)[2]
    cache, stored = lowering.program.cache(attrs["layer"], kv_heads, head_dim, attrs["cache_bits"])
    query, key, value = (lowering.storage(arg) for arg in call.args)
    append = lowering.build(append_kv, max_tokens=tokens, cache=cache)
    note = f"layer {attrs['layer']} attention"
    lowering.call(append, [key, value, *stored, count, _slot(attrs)], note)
    return _attend(lowering, attrs, query, heads, (tokens, count), Rows(heads * head_dim))


def _cached_stacked_attention(
    lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]
) -> Storage | list[Storage]:
    tokens, count = lowering.rows(call.args[0])
    heads, kv_heads, head_dim = attrs["heads"], attrs["kv_heads"], attrs["head_dim"]
    cache, stored = lowering.program.cache(attrs["layer"], kv_heads, head_dim, attrs["cache_bits"])
    stacked = lowering.storage(call.args[0])
    append = lowering.build(
        rope_append_kv,
        max_tokens=tokens,
        heads=heads,
        cache=cache,
        rotation=_rotation(attrs, head_dim),
        **({"listed": True} if attrs["stage"] else {}),
    )
    listed = [lowering.storage(call.args[1])] if attrs["stage"] else []
    args = [stacked, _frequencies(lowering, attrs), *listed, *stored, count, _slot(attrs)]
    lowering.call(append, args, f"layer {attrs['layer']} rope, append to the cache")
    rows = Rows((heads + 2 * kv_heads) * head_dim)
    return _attend(lowering, attrs, stacked, heads, (tokens, count), rows)


def _attend(
    lowering: FunctionLowering,
    attrs: dict[str, Any],
    query: Storage,
    heads: int,
    tokens: tuple[int, Any],
    rows: Rows,
) -> Storage | list[Storage]:
    cache, stored = lowering.program.caches[attrs["layer"]]
    scores = Scores(
        scale=attrs["scale"],
        window=attrs["window"],
        softcap=attrs["softcap"],
        alibi=bool(attrs["alibi"]),
    )
    slopes = [lowering.program.weights.vector([attrs["alibi"]], [heads])] if attrs["alibi"] else []
    out = lowering.new("float32", 1 if attrs["last"] else tokens[0], heads, cache.head_dim)
    kept = [lowering.new("float32", tokens[0], heads) for _ in KEPT[attrs["importance"]]]
    shape = {"max_tokens": tokens[0], "heads": heads, "cache": cache, "scores": scores}
    options = {key: attrs[key] for key in ("importance", "last") if attrs[key]}
    function = lowering.build(cached_attention, **shape, q_rows=rows, **options)
    note, read = f"layer {attrs['layer']} attention", [query, *stored, *slopes]
    lowering.call(function, [*read, out, *kept, tokens[1], _slot(attrs)], note)
    if attrs["importance"] == "received":
        received = lowering.new("float32", tokens[0], heads)
        function = lowering.build(received_attention, **shape, q_rows=rows)
        lowering.call(function, [*read, *kept, received, tokens[1], _slot(attrs)], note)
        kept = [received]
    return [out, *kept] if kept else out


def _gated(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    tokens, count = lowering.rows(call.args[0])
    features = shape_of(call.args[0].ty)[-1]
    out = lowering.new("float32", tokens, features)
    function = lowering.build(
        gated,
        max_tokens=tokens,
        features=features,
        activation_name=attrs["activation"],
    )
    args = [*(lowering.storage(arg) for arg in call.args), out, count]
    lowering.call(function, args, attrs["activation"])
    return out


def _quantize_activation(
    lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]
) -> list[Storage]:
    tokens, count = lowering.rows(call.args[0])
    features = shape_of(call.args[0].ty)[-1]
    function = lowering.build(
        quantize_activation,
        max_tokens=tokens,
        features=features,
        group_size=attrs["group_size"],
        **_rounding_options(attrs),
    )
    outputs = _quantized(lowering, function)
    args = [lowering.storage(call.args[0]), *_channels(lowering, attrs, features), *outputs, count]
    lowering.call(
        function, args, f"activation to int{ActivationFormat.parse(attrs['activations']).bits}"
    )
    return outputs


def _prune_tokens(
    lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]
) -> list[Storage]:
    tokens, count = lowering.rows(call.args[0])
    if kept(tokens, attrs["dropped"]) == tokens:
        raise CompileError(
            f"prune-tokens: the share is less than one token of a chunk (got a chunk of {tokens})",
            hint="drop a larger share, or take a larger --chunk",
        )
    features, heads = shape_of(call.args[0].ty)[2], shape_of(call.args[2].ty)[2]
    function = lowering.build(prune_tokens, max_tokens=tokens, features=features, heads=heads)
    outputs = [lowering.new("float32", tokens, features), lowering.new("int64", tokens)]
    lowering.stages.append(shape_of(call.ty.fields[0])[1])
    left = lowering.stage_tokens(len(lowering.stages) - 1)
    args = [*(lowering.storage(arg) for arg in call.args), *outputs, count, left]
    lowering.call(function, args, "drop the tokens that matter least")
    return outputs


def _last_token(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    tokens, count = lowering.rows(call.args[0])
    features = math.prod(shape_of(call.args[0].ty)[2:])
    out = lowering.new("float32", 1, features)
    function = lowering.build(copy_last_token, max_tokens=tokens, features=features)
    lowering.call(function, [lowering.storage(call.args[0]), out, count], "last token")
    return out


LOWERINGS: dict[str, Lower] = {
    "weight": _weight,
    "embedding": _embedding,
    "fused_linear": _fused_linear,
    "quantized_linear": _quantized_linear,
    "rms_norm": _norm,
    "layer_norm": _norm,
    "rope": _rope,
    "cached_attention": _cached_attention,
    "cached_stacked_attention": _cached_stacked_attention,
    "gated": _gated,
    "quantize_activation": _quantize_activation,
    "rms_norm_quantize": _norm_quantize,
    "layer_norm_quantize": _norm_quantize,
    "prune_tokens": _prune_tokens,
    "last_token": _last_token,
}
