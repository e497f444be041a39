"""Switches of a configuration that would change the model without a trace in its exported graph.

Every attention layer is exported as one causal op, so what only changes masks must be refused here.
"""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from morendo.ir.errors import InputError


def check_switches(config: PreTrainedConfig, where: str) -> list[str]:
    """Refuse what is not a causal language model's; notes on what is not heeded.

    Raises:
        InputError: with the switch and its value.
    """
    for name, value in _refused(config).items():
        raise InputError(
            f"config.json sets {name} to {value!r}, which is not supported",
            where=where,
            hint="only causal language models of one decoder can be compiled",
        )
    return [*_other_class(config), *_own_code(config)]


def _refused(config: PreTrainedConfig) -> dict[str, object]:
    """The switches that are set otherwise than a causal decoder has them."""
    set_otherwise = {
        "is_causal": getattr(config, "is_causal", True) is False,
        # "vision" is for images alone.
        "use_bidirectional_attention": getattr(config, "use_bidirectional_attention", None)
        not in (None, False, "vision"),
        "add_cross_attention": bool(getattr(config, "add_cross_attention", False)),
        "is_encoder_decoder": bool(getattr(config, "is_encoder_decoder", False)),
    }
    return {name: getattr(config, name) for name, refused in set_otherwise.items() if refused}


def _other_class(config: PreTrainedConfig) -> list[str]:
    """A note where the checkpoint was saved as a classifier, a reward model, an encoder."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    given = config.architectures
    if not isinstance(given, list) or not given or known is None or known in given:
        return []
    return [f"the checkpoint is of a {given[0]}; it is compiled as {known}"]


def _own_code(config: PreTrainedConfig) -> list[str]:
    """A note where the checkpoint comes with Python code, which is never run."""
    code = getattr(config, "auto_map", None)
    if not isinstance(code, dict) or "AutoModelForCausalLM" not in code:
        return []
    return [
        "config.json names code of the checkpoint's own (auto_map), which is not run: "
        f"transformers' {config.model_type} is compiled"
    ]
