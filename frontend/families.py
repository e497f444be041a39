"""Which architectures are read: those of transformers, and what is promised of them.

No list decides whether a model compiles: its exported graph does (`torch_export.py`, and the
`normalize` pass). A family that the tests run is promised; any other is said to be untested.
"""

from __future__ import annotations

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from morendo.ir.errors import InputError

TESTED = (
    "apertus",
    "arcee",
    "biogpt",
    "bitnet",
    "bloom",
    "codegen",
    "cohere",
    "cohere2",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gptj",
    "granite",
    "helium",
    "hunyuan_v1_dense",
    "internlm3",
    "jais2",
    "llama",
    "ministral",
    "mistral",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "vaultgemma",
)


def check_type(kind: str, where: str) -> None:
    """Refuse what transformers has no causal language model of.

    Raises:
        InputError: for an unknown `model_type`.
    """
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"architecture {kind!r} is not supported",
            where=where,
            hint=f"transformers {transformers.__version__} has no causal language model of it",
        )


def check_config(config: PreTrainedConfig, where: str) -> None:
    """Refuse models that are more than a language model.

    Raises:
        InputError: for an unknown type, and for one with parts for images or sound.
    """
    check_type(config.model_type, where)
    try:
        text = config.get_text_config()
    except ValueError:  # there are two
        text = None
    if text is not config or not isinstance(getattr(config, "vocab_size", None), int):
        raise InputError(
            f"architecture {config.model_type!r} takes more than text",
            where=where,
            hint="give a text-only model of the family",
        )


def untested(kind: str) -> list[str]:
    """What to tell about a family that no test runs."""
    if kind in TESTED:
        return []
    return [f"{kind} is not among the tested families; --check compares it with transformers"]
