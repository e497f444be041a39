"""What the original model computes, by the names of its weights: torch modules with hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tvm import relax

from morendo.ir.dialect import attrs_of, op_name
from morendo.ir.text import bindings_of
from morendo.ir.weight_overlay import untuned_name

if TYPE_CHECKING:
    from morendo.frontend.float_model import FloatModel

_ALIASES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
_LINEARS = ("linear", "fused_linear", "quantized_linear")
Values = NDArray[np.float32]
_AMBIGUOUS: Values = np.zeros((1, 0, 0), np.float32)


@dataclass
class TorchValues:
    """Inputs and outputs [1, tokens, features] of modules, by the weight that they hold.

    Attributes:
        tables: outputs of embeddings, whose weight may be that of the output head too.
        logits: [tokens, vocabulary].
    """

    inputs: dict[str, Values] = field(default_factory=dict)
    outputs: dict[str, Values] = field(default_factory=dict)
    tables: dict[str, Values] = field(default_factory=dict)
    logits: Values = field(default_factory=lambda: np.zeros((0, 0), np.float32))


def torch_values(original: FloatModel, ids: Sequence[int]) -> TorchValues:
    """Run the model on these tokens, from an empty cache."""
    found, module = TorchValues(), original.build()
    for prefix, part in module.named_modules():
        name = f"{prefix}.weight"
        if getattr(part, "weight", None) is not None:
            name = original.weights.aliases.get(name, name)
            part.register_forward_hook(_keep(found, name))
    with torch.inference_mode():
        result = module(input_ids=torch.tensor([list(ids)]), use_cache=False)
    found.logits = result.logits[0].float().numpy()
    for values in (found.inputs, found.outputs, found.tables):
        for name in [name for name, value in values.items() if value is _AMBIGUOUS]:
            del values[name]
    return found


def _keep(found: TorchValues, name: str) -> Any:
    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            if type(module) is torch.nn.Embedding:  # others scale what they look up
                _put(found.tables, name, output)
        elif inputs:
            _put(found.inputs, name, inputs[0])
            _put(found.outputs, name, output)

    return hook


def _put(values: dict[str, Values], name: str, value: Any) -> None:
    """Keep one row a token; what has heads or lacks the batch could be mistaken for something, and
    of a module that is called twice it is not known which call an op is.
    """
    if not isinstance(value, torch.Tensor) or value.ndim != 3 or value.shape[0] != 1:
        return
    values[name] = _AMBIGUOUS if name in values else value.float().numpy()


def counterparts(function: relax.Function, found: TorchValues) -> dict[Any, Values]:
    """The torch value of each variable that has one.

    A variable has one where an op with a weight of torch's makes it, or where such an op reads it:
    sums of the residual stream, attention's results and gated products are known by their readers.
    """
    bindings = bindings_of(function)
    known: dict[Any, Values] = {}
    for binding in bindings:
        made = _made(binding.value, found)
        if made is not None:
            known[binding.var] = made
    values = {binding.var: binding.value for binding in bindings}
    for binding in reversed(bindings):
        for var, value in _read(binding, values, known, found):
            known.setdefault(var, value)
    return known


def _made(call: Any, found: TorchValues) -> Values | None:
    """The output of the op's own module."""
    name = op_name(call)
    attrs = attrs_of(call) if name else {}
    if name == "embedding":
        return found.tables.get(attrs["weight"])
    if name.removesuffix("_quantize") in ("rms_norm", "layer_norm"):
        if attrs.get("order"):
            return None
        return found.outputs.get(_original(attrs["weight"]))
    inputs = 3 if name == "quantized_linear" else 1
    if name not in _LINEARS or len(call.args) > inputs or attrs.get("gate"):
        return None
    parts = [found.outputs.get(weight) for weight in _weights(attrs)]
    return np.concatenate([p for p in parts if p is not None], -1) if _all(parts) else None


def _all(parts: Sequence[Any]) -> bool:
    return bool(parts) and all(part is not None for part in parts)


def _original(name: str) -> str:
    """The checkpoint's name of a weight that may have been tuned."""
    untuned = untuned_name(name)
    return untuned[0] if untuned else name


def _weights(attrs: dict[str, Any]) -> list[str]:
    return attrs["weights"] if "weights" in attrs else [attrs["weight"]]


def _read(
    binding: Any, values: dict[Any, Any], known: dict[Any, Values], found: TorchValues
) -> list[tuple[Any, Values]]:
    """(variable, value) that a binding's operands have, as its module or its own value tells."""
    call = binding.value
    if not isinstance(call, relax.Call) or not call.args:
        return []
    name, operand = op_name(call), call.args[0]
    if name in _LINEARS or name.removesuffix("_quantize") in ("rms_norm", "layer_norm"):
        attrs = attrs_of(call)
        weight = _weights(attrs)[0]
        value = found.inputs.get(_original(weight))
        if name == "quantized_linear":
            operand = _quantized(operand, values)
        return [(operand, value)] if value is not None and operand is not None else []
    if getattr(call.op, "name", "") in _ALIASES and binding.var in known:
        return [(operand, known[binding.var])]
    return []


def _quantized(codes: Any, values: dict[Any, Any]) -> Any:
    """The variable whose rounding these codes are, where an op of its own rounds it."""
    item = values.get(codes)
    producer = values.get(item.tuple_value) if isinstance(item, relax.TupleGetItem) else None
    return producer.args[0] if op_name(producer) == "quantize_activation" else None
