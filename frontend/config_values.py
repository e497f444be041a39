"""Numbers of a configuration that no model can have: refused before a model is built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from morendo.ir.errors import InputError

_MOST_LAYERS = 10_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_POSITIONS = ("max_position_embeddings", "n_positions", "seq_length")
_EPSILON = re.compile(r"(\w+_)?eps(ilon)?")
_ROPE_POSITIVE = {
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
    "rope_theta",
    "short_factor",
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHECK = "check the configuration: the file is damaged, or of another model"


def check_layers(facts: Mapping[str, Any], where: str) -> None:
    """Refuse a number of layers for which already a list of them would not end.

    Raises:
        InputError: with the key and its value.
    """
    for name in _LAYERS:
        value = facts.get(name)
        if type(value) is int and not 1 <= value <= _MOST_LAYERS:
            raise _refusal(f"{name} is {value}, need 1 to {_MOST_LAYERS}", where)


def check_values(config: PreTrainedConfig, where: str) -> None:
    """Refuse experts, positions and rotary parameters that are not above 0, epsilons below it.

    Raises:
        InputError: with the key and its value.
    """
    facts = config.to_dict()
    for name in _EXPERTS:
        value = facts.get(name)
        if isinstance(value, int) and value > 0:
            raise no_experts(f"{name} is {value}", where)
    for name in _POSITIONS:
        value = facts.get(name)
        if type(value) is int and value < 1:
            raise _refusal(f"{name} is {value}, need at least 1", where)
    for name, value in facts.items():
        if _EPSILON.fullmatch(name) and _is_number(value) and not 0 <= value < math.inf:
            raise _refusal(f"{name} is {value}, need 0 or more", where)
    _check_rope(getattr(config, "rope_parameters", None) or {}, "rope_parameters", where)


def no_experts(sign: str, where: str) -> InputError:
    """The refusal of a mixture of experts.

    Args:
        sign: what tells of it.
        where: the model.
    """
    return InputError(
        f"a mixture of experts is not supported ({sign})",
        where=where,
        hint="give a dense model, such as one of the same family without experts",
    )


def check_sizes(
    config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse sizes that a checkpoint's tensors cannot fill, before memory is asked for.

    Args:
        shapes: of every stored tensor, by its name.
        where: the checkpoint, for messages.

    Raises:
        InputError: with the key and its value, and for tensors of experts.
    """
    expert = next((name for name in shapes if ".experts." in name), None)
    if expert is not None:
        raise no_experts(f"tensor {expert}", where)
    numbers = sum(math.prod(shape) for shape in shapes.values())
    limits = {"num_hidden_layers": (len(shapes), "tensors of the checkpoint")}
    limits |= dict.fromkeys(_WIDTHS, (numbers, "numbers in the checkpoint's tensors"))
    facts = config.to_dict()
    for usual, (most, what) in limits.items():
        name = config.attribute_map.get(usual, usual)  # as the family's files have it
        value = facts.get(name)
        if type(value) is int and not 1 <= value <= most:
            raise _refusal(f"{name} is {value}, need 1 to {most}, the {what}", where)


def _check_rope(facts: Mapping[str, Any], path: str, where: str) -> None:
    for name, value in facts.items():
        if isinstance(value, Mapping):  # one set for each type of layer
            _check_rope(value, f"{path}.{name}", where)
            continue
        values = value if isinstance(value, list | tuple) else [value]
        checked = [v for v in values if v is not None] if name in _ROPE_POSITIVE else []
        wrong = next((v for v in checked if not (_is_number(v) and 0 < v < math.inf)), None)
        if wrong is not None:
            raise _refusal(f"{path}.{name} is {str(wrong)[:80]}, need a number above 0", where)
    low, high = facts.get("low_freq_factor"), facts.get("high_freq_factor")
    if low is not None and high is not None and low >= high:
        raise _refusal(f"{path}.high_freq_factor is {high}, need more than {low}", where)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refusal(said: str, where: str) -> InputError:
    return InputError(f"the configuration's {said}", where=where, hint=_CHECK)
