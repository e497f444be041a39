"""Numbers of a configuration that no model can have: refused before a model is built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from morendo.ir.errors import InputError

_MOST_LAYERS = 10_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "word_embed_proj_dim",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_POSITIONS = ("max_position_embeddings", "n_positions", "seq_length", "sliding_window")
_MOST_POSITIONS = 1 << 24  # the longest of known models is 10 million
_ROTATED = ("rotary_dim", "rotary_ndims")  # channels, of a head or of all
_PARTS = ("partial_rotary_factor", "rotary_pct")
# What a model divides by.
_POSITIVE = {
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logits_scaling",
    "query_pre_attn_scalar",
}
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


def check_counts(facts: Mapping[str, Any], kind: str, where: str) -> None:
    """Refuse counts that keep transformers from making a configuration of them.

    Args:
        facts: what config.json holds.
        kind: its `model_type`.

    Raises:
        InputError: with the key and its value, for widths below 1, and for a number of layers for
            which already a list of them would not end.
    """
    other_names = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
    for name in (*_WIDTHS, *(other_names[name] for name in _WIDTHS if name in other_names)):
        value = facts.get(name)
        if type(value) is int and value < 1:
            raise _refusal(f"{name} is {value}, need at least 1", where)
    for name in _LAYERS:
        value = facts.get(name)
        if type(value) is int and not 1 <= value <= _MOST_LAYERS:
            raise _refusal(f"{name} is {value}, need 1 to {_MOST_LAYERS}", where)


def check_values(config: PreTrainedConfig, where: str) -> None:
    """Refuse experts, positions and rotary parameters out of their range, epsilons below 0.

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
        if type(value) is int and not 1 <= value <= _MOST_POSITIONS:
            raise _refusal(f"{name} is {value}, need 1 to {_MOST_POSITIONS}", where)
    for name in _ROTATED:
        value = facts.get(name)
        if type(value) is int and not 0 <= value <= config.hidden_size:
            most = config.hidden_size
            raise _refusal(f"{name} is {value}, need 0 to {most}, the hidden size", where)
    for name, value in facts.items():
        if _is_number(value):
            _check_number(name, value, where)
    _check_rope(getattr(config, "rope_parameters", None) or {}, "rope_parameters", where)


def _check_number(name: str, value: float, where: str) -> None:
    key = name.rpartition(".")[2]
    if _EPSILON.fullmatch(key) and not 0 <= value < math.inf:
        raise _refusal(f"{name} is {value}, need 0 or more", where)
    if key in _POSITIVE and not 0 < value < math.inf:
        raise _refusal(f"{name} is {value}, need a number above 0", where)
    if key in _PARTS and not 0 <= value <= 1:
        raise _refusal(f"{name} is {value}, need 0 to 1", where)
    if math.isnan(value) or math.isinf(value):
        raise _refusal(f"{name} is {value}, need a finite number", where)


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
        if _is_number(value):
            _check_number(f"{path}.{name}", value, where)
    low, high = facts.get("low_freq_factor"), facts.get("high_freq_factor")
    if low is not None and high is not None and low >= high:
        raise _refusal(f"{path}.high_freq_factor is {high}, need more than {low}", where)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refusal(said: str, where: str) -> InputError:
    return InputError(f"the configuration's {said}", where=where, hint=_CHECK)
