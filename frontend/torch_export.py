"""A Hugging Face causal language model as a Relax module, traced without its weights.

The model is built with its parameters on torch's meta device, so tracing a model of any size
needs no memory for weights. The module's parameters after the two inputs are the weights; the
function attribute `weight_names` lists their Hugging Face names in the same order.
"""

from __future__ import annotations

import inspect
import re
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tvm
from torch.export.graph_signature import InputKind, InputSpec
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from morendo.ir import dialect
from morendo.ir.errors import InputError, MorendoError
from morendo.ir.text import bindings_of

from . import attention_marker

SUPPORTED = (
    "bloom",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
)


@dataclass
class EmptyModel:
    """A model that knows its shapes but holds no weights.

    Attributes:
        module: the torch module, everything on the meta device.
        buffers: what the model computes for itself (rotary frequencies, alibi slopes), by name.
        persistent: names of buffers that a checkpoint may hold as well.
        aliases: name of a tied weight -> the one name under which it is kept.
    """

    module: PreTrainedModel
    buffers: dict[str, np.ndarray]
    persistent: set[str]
    aliases: dict[str, str] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, tied ones once."""
        return {name: tuple(p.shape) for name, p in self.module.named_parameters()}

    def untie(self, alias: str) -> None:
        """Give a tied weight a parameter of its own."""
        part, _, key = alias.rpartition(".")
        parameters = self.module.get_submodule(part)._parameters
        parameters[key] = torch.nn.Parameter(torch.empty_like(parameters[key]), requires_grad=False)
        del self.aliases[alias]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within, new modules drop their parameters' values at once and keep their buffers'."""
    register = torch.nn.Module.register_parameter

    def register_empty(module: torch.nn.Module, name: str, param: Any) -> None:
        if param is not None and not param.is_meta:  # a tied parameter stays the same object
            param = torch.nn.Parameter(param.to("meta"), requires_grad=False)
        register(module, name, param)

    torch.nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def check_supported(config: PreTrainedConfig, where: str) -> None:
    """Refuse architectures that the frontend was never tried on.

    Raises:
        InputError: with the list of families that work.
    """
    if config.model_type not in SUPPORTED:
        raise InputError(
            f"architecture {config.model_type!r} is not supported",
            where=where,
            hint=f"supported: {', '.join(SUPPORTED)}",
        )


def build_empty(config: PreTrainedConfig) -> EmptyModel:
    """The torch model of a configuration, without weights.

    Raises:
        InputError: for a value that transformers has no implementation of.
    """
    try:
        with parameters_on_meta(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention_marker.NAME, dtype=torch.float32
            ).eval()
    except MorendoError:
        raise
    except Exception as error:  # KeyError of a table, TypeError, RuntimeError of torch, ...
        raise _cannot_build(config, error) from error
    if config.model_type == "bloom":
        attention_marker.mark_bloom(module)
    buffers = {name: b.detach().numpy().copy() for name, b in module.named_buffers()}
    persistent = set(buffers) & set(module.state_dict())
    first = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    aliases = {name: first[id(p)] for name, p in every if first[id(p)] != name}
    return EmptyModel(module.to("meta"), buffers, persistent, aliases)


def _cannot_build(config: PreTrainedConfig, error: Exception) -> InputError:
    where = str(config.name_or_path or config.model_type)
    if isinstance(error, KeyError) and error.args:
        value = error.args[0]  # a name that a table of transformers does not have
        field = _field_of(config.to_dict(), value)
        if field:
            return InputError(
                f"config.json has an unknown value ({field} is {value!r})",
                where=where,
                hint=f"check {field}",
            )
    said = (str(error).strip().splitlines() or [""])[0]
    return InputError(
        f"config.json describes a model that cannot be built ({type(error).__name__}: {said})",
        where=where,
        hint="check the field of config.json that this names",
    )


def _field_of(facts: dict[str, Any], value: object) -> str:
    """Where a configuration has a value ("rope_parameters.rope_type"); "" when nowhere."""
    for name, found in facts.items():
        if isinstance(found, dict):
            inner = _field_of(found, value)
            if inner:
                return f"{name}.{inner}"
        elif type(found) is type(value) and found == value:
            return str(name)
    return ""


class _Logits(torch.nn.Module):
    """(input_ids, position_ids), both (1, n) int64, to logits (1, n, V)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        kwargs = {"position_ids": position_ids} if self.takes_positions else {}
        return self.model(input_ids=input_ids, use_cache=False, **kwargs).logits


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
        for key, var in weights.items():
            name: str = exported_program.weight_of[key]
            name = self.aliases.get(name, name)
            weights[key] = relax.Var(re.sub(r"\W", "_", name), var.ty)
            self.weight_names[weights[key].name] = name
        return weights, inputs, {}


def _convert_attention(node: torch.fx.Node, importer: Any) -> relax.Var:
    args = importer.retrieve_args(node)
    builder = importer.block_builder
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


def _convert_to_device(node: torch.fx.Node, importer: Any) -> Any:
    """x.to(device, dtype) casts; everything is on one device."""
    x, dtype = importer.env[node.args[0]], node.args[2]
    return importer.block_builder.emit(relax.op.astype(x, importer._convert_data_type(dtype)))


def _trace(model: EmptyModel) -> torch.export.ExportedProgram:
    """The model's graph with linear, layer_norm, silu, ... left whole.

    Decomposing it, as TVM's importer would, traces the model twice more: ten times as long.
    """
    ids = torch.zeros((1, 7), dtype=torch.int64, device="meta")
    length = {1: torch.export.Dim("n", min=2)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            _Logits(model.module), (ids, ids.clone()), dynamic_shapes=(length, length), strict=False
        )
    program.graph.eliminate_dead_code()
    return program


def export(model: EmptyModel) -> tvm.IRModule:
    """The model as raw Relax: main(input_ids, position_ids, *weights) -> logits (1, n, V).

    Raises:
        InputError: when the model cannot be traced or uses an operation that TVM does not import.
    """
    config = model.module.config
    importer = _Importer(model.aliases)
    try:
        module = importer.from_exported_program(
            _Shapes(_trace(model)),  # type: ignore[arg-type]
            keep_params_as_input=True,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map={
                "attention.default": _convert_attention,
                "to.device": _convert_to_device,
            },
        )
    except MorendoError:
        raise
    except Exception as error:  # torch and TVM raise many types
        said = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"the model cannot be traced ({type(error).__name__}: {said})",
            where=config.model_type,
            hint="its configuration takes a path that torch.export or TVM does not know",
        ) from error
    function = _with_constants(module["main"], importer.weight_names, model.buffers)
    _check_attention(function, config)
    return tvm.IRModule({"main": function})


def _with_constants(
    function: relax.Function, names: dict[str, str], buffers: dict[str, np.ndarray]
) -> relax.Function:
    """Scalar buffers become constants; other weights that are read are listed in `weight_names`."""
    scalars = {
        var.name: buffers[names[var.name]]
        for var in function.params[2:]
        if names[var.name] in buffers and buffers[names[var.name]].ndim == 0
    }
    function = function.bind_params(scalars) if scalars else function
    read = set(relax.analysis.free_vars(function.body))
    params = [p for i, p in enumerate(function.params) if i < 2 or p in read]
    function = relax.Function(params, function.body, function.ret_ty, function.is_pure)
    left = [names[var.name] for var in params[2:]]
    return function.with_attrs({"global_symbol": "main", "num_input": 2, "weight_names": left})


def _check_attention(function: relax.Function, config: PreTrainedConfig) -> None:
    layers = config.num_hidden_layers
    found = sum(dialect.op_name(b.value) == "attention" for b in bindings_of(function))
    if found != layers:
        raise InputError(
            f"not every layer's attention could be marked (got {found}, need {layers})",
            where=config.model_type,
            hint="this configuration bypasses the attention interface of transformers",
        )
