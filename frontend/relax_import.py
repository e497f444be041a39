"""A traced torch program as Relax: TVM's importer, and the operations that it does not know."""

from __future__ import annotations

import re
import types
from typing import Any

import torch
import tvm
from torch.export.graph_signature import InputKind, InputSpec
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from morendo.ir import dialect
from morendo.ir.errors import InputError


class _Shapes:
    """What TVM's importer needs of an ExportedProgram, without any tensor data.

    The importer would copy every parameter and buffer into TVM; here all of them are parameters
    of which it sees the shape only.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.graph = program.graph
        self.graph_module = program.graph_module
        self.state_dict: dict[str, torch.Tensor] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.weight_of: dict[str, str] = {}  # the importer's variable -> Hugging Face name
        specs = []
        for spec in program.graph_signature.input_specs:
            if spec.kind is not InputKind.USER_INPUT:
                target = spec.target or ""
                stores: Any = program.state_dict, program.constants
                self.state_dict[target] = next(v[target] for v in stores if target in v)
                self.weight_of[spec.arg.name] = target.removeprefix("model.")
                spec = InputSpec(InputKind.PARAMETER, spec.arg, target)
            specs.append(spec)
        outputs = program.graph_signature.output_specs
        self.graph_signature = types.SimpleNamespace(input_specs=specs, output_specs=outputs)

    def named_buffers(self) -> list[Any]:
        return []

    def named_parameters(self) -> list[Any]:
        return []


class _Importer(ExportedProgramImporter):
    """TVM's importer with readable parameters: weights by name, the length called n."""

    def __init__(self, aliases: dict[str, str]) -> None:
        super().__init__()
        self.aliases = aliases
        self.weight_names: dict[str, str] = {}  # Relax variable -> Hugging Face name

    def create_input_vars(self, exported_program: Any) -> Any:
        weights, inputs, _ = super().create_input_vars(exported_program)
        tokens = tvm.tirx.Var("n", "int64")
        for name in inputs:
            inputs[name] = relax.Var(name, relax.TensorType([1, tokens], "int64"))
        self.position_ids = inputs["position_ids"]
        for key, var in weights.items():
            name: str = exported_program.weight_of[key]
            name = self.aliases.get(name, name)
            weights[key] = relax.Var(re.sub(r"\W", "_", name), var.ty)
            self.weight_names[weights[key].name] = name
        return weights, inputs, {}


def _convert_attention(node: torch.fx.Node, importer: Any) -> relax.Var:
    args = importer.retrieve_args(node)
    builder = importer.block_builder
    tokens = node.args[8] if len(node.args) > 8 else node.kwargs.get("tokens")
    if tokens is not None and not _is_true(tokens):
        raise InputError(
            "the model masks tokens by itself",
            hint="only causal attention, with or without a sliding window, can be compiled",
        )
    # (1, heads, n, head_dim) -> (1, n, heads, head_dim)
    operands = [builder.emit(relax.op.permute_dims(x, [0, 2, 1, 3])) for x in args[:3]]
    layer, scale, window, softcap = args[3:7]
    alibi = args[7] if len(args) > 7 else None
    attrs = {
        "layer": int(layer),
        "scale": float(scale),
        "window": int(window),
        "softcap": float(softcap),
        "alibi": importer.weight_names[alibi.name] if alibi is not None else "",
    }
    return builder.emit(dialect.call("attention", *operands, **attrs))


def _is_true(node: Any) -> bool:
    """Whether a node is ones of some shape, cast to anything."""
    while node.target.__name__.startswith(("to.", "_to_copy.")):
        node = node.args[0]
    name = node.target.__name__.partition(".")[0]
    return name in ("ones", "new_ones", "ones_like") or (name == "full" and node.args[1] == 1)


def _convert_to_device(node: torch.fx.Node, importer: Any) -> Any:
    """x.to(device, dtype) casts; everything is on one device."""
    x, dtype = importer.env[node.args[0]], node.args[2]
    return importer.block_builder.emit(relax.op.astype(x, importer._convert_data_type(dtype)))


def _convert_repeat_interleave(node: torch.fx.Node, importer: Any) -> relax.Var:
    """x.repeat_interleave(k, axis): each element k times in a row."""
    x, repeats = importer.env[node.args[0]], node.args[1]
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    return importer.block_builder.emit(relax.op.repeat(x, repeats, axis))


def _convert_arange(node: torch.fx.Node, importer: Any) -> relax.Var:
    """0, 1, ... for the tokens are their positions, so the input takes its place.

    A count of anything else stays as it is.
    """
    start, stop = (0, *node.args)[-2:] if len(node.args) < 3 else (None, None)
    stop = importer.env[stop] if isinstance(stop, torch.fx.Node) else stop
    if start != 0 or not isinstance(stop, tvm.tirx.Var):
        return importer._arange(node)
    positions = importer.block_builder.emit(relax.op.reshape(importer.position_ids, [stop]))
    dtype = importer._convert_data_type(node.kwargs.get("dtype") or torch.int64)
    return importer.block_builder.emit(relax.op.astype(positions, dtype))


def _convert_rms_norm(node: torch.fx.Node, importer: Any) -> relax.Var:
    """torch's own RMS norm, spelled as models spell it."""
    args = importer.retrieve_args(node)
    x, shape = args[0], args[1]
    weight = args[2] if len(args) > 2 else None
    eps = args[3] if len(args) > 3 else None
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    axes = list(range(-len(shape), 0))
    emit = importer.block_builder.emit
    mean = emit(relax.op.mean(emit(relax.op.multiply(x, x)), axes, keepdims=True))
    root = emit(relax.op.rsqrt(emit(relax.op.add(mean, relax.const(eps, "float32")))))
    y = emit(relax.op.multiply(x, root))
    return y if weight is None else emit(relax.op.multiply(y, weight))


def _convert_layer_norm(node: torch.fx.Node, importer: Any) -> relax.Var:
    """A layer norm; TVM's importer has no answer to a weight or a bias that is None."""
    x, shape, *rest = importer.retrieve_args(node)
    gamma, beta, eps = [*rest, *(None, None, 1e-5)[len(rest) :]][:3]
    return importer._layer_norm_impl(x, gamma, beta, eps, tuple(shape))


def _convert_mish(node: torch.fx.Node, importer: Any) -> relax.Var:
    """x * tanh(softplus(x))."""
    x, emit = importer.env[node.args[0]], importer.block_builder.emit
    inner = emit(relax.op.tanh(emit(relax.op.nn.softplus(x))))
    return emit(relax.op.multiply(x, inner))


def _convert_prelu(node: torch.fx.Node, importer: Any) -> relax.Var:
    """relu(x) - weight * relu(-x), with a weight for all or for each index of axis 1."""
    x, weight = importer.retrieve_args(node)
    emit, relu = importer.block_builder.emit, relax.op.nn.relu
    weight = emit(relax.op.reshape(weight, [-1, *[1] * (len(x.ty.shape) - 2)]))
    below = emit(relax.op.multiply(weight, emit(relu(emit(relax.op.negative(x))))))
    return emit(relax.op.subtract(emit(relu(x)), below))


def _convert_clip(node: torch.fx.Node, importer: Any) -> relax.Var:
    """Another name of clamp."""
    return importer._clamp(node)


def _convert_view(node: torch.fx.Node, importer: Any) -> relax.Var:
    """The view of a tensor that nothing else reads."""
    return importer._reshape(node)


_CONVERSIONS = {
    "_unsafe_view.default": _convert_view,
    "arange.default": _convert_arange,
    "arange.start": _convert_arange,
    "clip.default": _convert_clip,
    "attention.default": _convert_attention,
    "layer_norm.default": _convert_layer_norm,
    "mish.default": _convert_mish,
    "prelu.default": _convert_prelu,
    "repeat_interleave.self_int": _convert_repeat_interleave,
    "rms_norm.default": _convert_rms_norm,
    "to.device": _convert_to_device,
}


def import_program(
    program: torch.export.ExportedProgram, aliases: dict[str, str]
) -> tuple[relax.Function, dict[str, str]]:
    """A program of (input_ids, position_ids) as Relax.

    Args:
        aliases: name of a tied weight -> the one name under which it is kept.

    Returns:
        main(input_ids, position_ids, *weights), and the Hugging Face name of each of its weights.

    Raises:
        InputError: naming the operations that TVM does not import.
    """
    importer = _Importer(aliases)
    called = {n.target.__name__ for n in program.graph.nodes if n.op == "call_function"}
    unknown = sorted(called - set(importer.convert_map) - set(_CONVERSIONS))
    if unknown:
        raise InputError(
            f"the model uses operations that cannot be imported ({', '.join(unknown)})",
            hint="morendo knows no model with them",
        )
    try:
        module = importer.from_exported_program(
            _Shapes(program),  # type: ignore[arg-type]
            keep_params_as_input=True,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=_CONVERSIONS,
        )
    except InputError:
        raise
    except Exception as error:  # of many types, and about TVM's insides
        raise InputError(
            f"an operation of the model cannot be imported as it is used there "
            f"({_operation(error)})",
            hint="morendo knows no model that uses it so; --debug shows the error",
        ) from error
    return module["main"], importer.weight_names


def _operation(error: Exception) -> str:
    """The operation that an error was raised for: its name, and the part of the model it is in."""
    found, trace = "", error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and node.op == "call_function":
            parts = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
            part = parts[-1].removeprefix("model.") if parts else ""
            found = f"{getattr(node.target, '__name__', node.target)}{part and f' in {part}'}"
        trace = trace.tb_next
    return found or type(error).__name__
