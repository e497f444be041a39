"""A Hugging Face causal language model as a Relax module, traced without its weights.

The model is built with its parameters on torch's meta device, so tracing a model of any size
needs no memory for weights. The module's parameters after the two inputs are the weights; the
function attribute `weight_names` lists their Hugging Face names in the same order.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tvm
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from tvm import relax

from morendo.ir import dialect
from morendo.ir.errors import InputError, MorendoError
from morendo.ir.text import bindings_of

from . import attention_marker
from .context import DEFAULT_CONTEXT
from .relax_import import import_program
from .rope import settle_rope


@dataclass
class EmptyModel:
    """A model that knows its shapes but holds no weights.

    Attributes:
        module: the torch module, everything on the meta device.
        buffers: what the model computes for itself (rotary frequencies, alibi slopes), by name.
        persistent: names of buffers that a checkpoint may hold as well.
        aliases: name of a tied weight -> the one name under which it is kept.
        notes: what was chosen that the person should know.
    """

    module: PreTrainedModel
    buffers: dict[str, np.ndarray]
    persistent: set[str]
    aliases: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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


def widen(module: torch.nn.Module) -> None:
    """Turn parameters and buffers of 16-bit floats into float32 ones, in place.

    Some parts of transformers have a dtype of their own, whatever the model is asked for.
    """
    halves = (torch.float16, torch.bfloat16)
    module._apply(lambda tensor: tensor.float() if tensor.dtype in halves else tensor)


def build_empty(config: PreTrainedConfig, context: int | None = None) -> EmptyModel:
    """The torch model of a configuration, without weights.

    Args:
        context: longest text, for rotary frequencies that depend on it; `DEFAULT_CONTEXT` when
            not given.

    Raises:
        InputError: for a value that transformers has no implementation of.
    """
    module = _build(config)
    widen(module)
    notes = settle_rope(module, context or DEFAULT_CONTEXT)
    attention_marker.mark_others(module)
    buffers = {name: _array(b) for name, b in module.named_buffers()}
    persistent = set(buffers) & set(module.state_dict())
    first = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    aliases = {name: first[id(p)] for name, p in every if first[id(p)] != name}
    return EmptyModel(module.to("meta"), buffers, persistent, aliases, notes)


def _array(buffer: torch.Tensor) -> np.ndarray:
    """A copy; numpy has no bfloat16."""
    buffer = buffer.detach()
    return (buffer.float() if buffer.dtype == torch.bfloat16 else buffer).numpy().copy()


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    failed: Exception | None = None
    for name in attention_marker.IMPLEMENTATIONS:
        try:
            with parameters_on_meta(), _silent():
                return AutoModelForCausalLM.from_config(
                    config, attn_implementation=name, dtype=torch.float32
                ).eval()
        except MorendoError:
            raise
        except Exception as error:  # KeyError of a table, TypeError, RuntimeError of torch, ...
            failed = error
        no_class = isinstance(failed, KeyError) and failed.args == (attention_marker.NAME,)
        if name == attention_marker.NAME and not no_class:
            break
    assert failed is not None
    raise _cannot_build(config, failed) from failed


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


def _trace(model: EmptyModel) -> torch.export.ExportedProgram:
    """The model's graph with linear, layer_norm, silu, ... left whole.

    Decomposing it, as TVM's importer would, traces the model twice more: ten times as long. Only a
    graph with operations in place is rewritten so, since the importer takes them for pure ones.
    """
    ids = torch.zeros((1, 7), dtype=torch.int64, device="meta")
    length = {1: torch.export.Dim("n", min=2)}
    with torch.no_grad(), _silent(), attention_marker.marking():
        program = torch.export.export(
            _Logits(model.module), (ids, ids.clone()), dynamic_shapes=(length, length), strict=False
        )
        program.graph.eliminate_dead_code()
        if any(_in_place(node) for node in program.graph.nodes):
            program = program.run_decompositions({})
    if program.graph_signature.buffers_to_mutate:
        name = next(iter(program.graph_signature.buffers_to_mutate.values()))
        raise InputError(
            f"the model changes a buffer while it runs ({name})",
            hint="only a model whose state is its keys and values can be compiled",
        )
    return program


def _in_place(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


@contextmanager
def _silent() -> Iterator[None]:
    """Within, torch prints and logs nothing: it shows whole graphs when it cannot go on."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def export(model: EmptyModel) -> tvm.IRModule:
    """The model as raw Relax: main(input_ids, position_ids, *weights) -> logits (1, n, V).

    Raises:
        InputError: when the model cannot be traced, uses an operation that TVM does not import, or
            attends in a way that the marker op does not mean.
    """
    where = str(model.module.config.model_type)
    try:
        program = _trace(model)
    except MorendoError as error:
        place = ", ".join(filter(None, (error.where or _module_of(error), where)))
        raise InputError(error.message, where=place, hint=error.hint) from error
    except Exception as error:  # torch raises many types
        raise InputError(
            f"the model cannot be traced ({_said(error)})",
            where=", ".join(filter(None, (_module_of(error), where))),
            hint="its code takes a path that torch.export does not know; --debug shows it",
        ) from error
    try:
        function, names = import_program(program, model.aliases)
    except MorendoError as error:
        raise InputError(error.message, where=where, hint=error.hint) from error
    function = _with_constants(function, names, model.buffers)
    _check_complete(function, model)
    return tvm.IRModule({"main": function})


def _said(error: Exception) -> str:
    """What is told of an error of torch, whose words are about its own insides."""
    if "Constraints violated" in str(error):
        return "what it computes depends on the number of tokens"
    return type(error).__name__


def _module_of(error: Exception) -> str:
    """The class of the innermost part of the model that an exception comes from."""
    found, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and "transformers" in type(owner).__module__:
            found = type(owner).__name__
        trace = trace.tb_next
    return found


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


def _check_complete(function: relax.Function, model: EmptyModel) -> None:
    """The logits have to depend on an attention and on every weight."""
    where = str(model.module.config.model_type)
    if not any(dialect.op_name(b.value) == "attention" for b in bindings_of(function)):
        raise InputError(
            "no attention of the model goes through transformers' attention interface",
            where=where,
            hint="recurrent models, and attention of another kind, cannot be compiled",
        )
    read = {str(name) for name in function.attrs["weight_names"]}
    known = {*model.shapes(), *model.buffers}
    if read - known:
        raise InputError(
            f"the model computes with a tensor of its own code ({min(read - known)})",
            where=where,
            hint="morendo knows no model with one",
        )
    unread = [name for name in model.shapes() if name not in read]
    if unread:
        weights = "a weight" if len(unread) == 1 else f"{len(unread)} weights"
        raise InputError(
            f"the logits do not depend on {weights} of the model (first: {unread[0]})",
            where=where,
            hint="this model does more than to predict the next token from those before",
        )
