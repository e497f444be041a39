"""Families of transformers that are refused: what of them, in which words, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tests.frontend.families import COMMON


@dataclass(frozen=True)
class Refused:
    """One reason, and a family that the tests refuse for it.

    Attributes:
        kind: its model_type.
        said: a pattern that the message matches.
        why: for people who read the table of models.
        alike: families that were refused for the same reason when they were tried.
        options: of the tiny configuration.
    """

    kind: str
    said: str
    why: str
    alike: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> PreTrainedConfig:
        """A tiny configuration of the family."""
        return AutoConfig.for_model(self.kind, **{**COMMON, **self.options})


_GROUPED = {"num_key_value_heads": 2}
REFUSED = (
    Refused(
        "mixtral",
        "mixture-of-experts layers cannot be compiled",
        "mixture of experts",
        (
            *("afmoe", "aria_text", "cohere2_moe", "ernie4_5_moe", "flex_olmo", "glm4_moe"),
            *("granitemoe", "hunyuan_v1_moe", "jamba", "minimax", "olmoe", "phimoe"),
            *("qwen2_moe", "qwen3_moe"),
        ),
        {**_GROUPED, "num_local_experts": 2},
    ),
    Refused(
        "gpt_oss",
        "attention with s_aux is not supported at GptOssAttention, gpt_oss",
        "attention with sinks or a bias of positions",
        ("deepseek_v4", "granite_swa", "inkling_text"),
        {**_GROUPED, "num_local_experts": 2, "head_dim": 8},
    ),
    Refused(
        "deepseek_v3",
        r"heads of queries, keys and values have different sizes \(got 192, 192, 128\)",
        "latent attention, whose keys and values have different sizes",
        ("deepseek_v2", "glm4_moe_lite", "mimo_v2_flash", "minicpm3", "youtu"),
    ),
    Refused(
        "mamba",
        r"cannot be traced \(what it computes depends on the number of tokens\)",
        "recurrent layers, or another form for longer texts",
        ("falcon_h1", "falcon_mamba", "mamba2", "recurrent_gemma", "rwkv", "xlstm"),
    ),
    Refused(
        "lfm2",
        "normalize: op .* at after .*; morendo compiles models whose tokens meet in causal",
        "convolutions over tokens",
        (),
        {**_GROUPED, "layer_types": ["conv", "full_attention"]},
    ),
    Refused(
        "bert",
        r"attention sees something else than all earlier positions \(chunks, both directions",
        "an encoder: tokens see later ones",
        ("camembert", "electra", "ernie", "roberta", "xlm-roberta"),
    ),
    Refused(
        "bart",
        "the logits do not depend on 20 weights of the model .*encoder_attn",
        "the decoder of a pair, which reads an encoder",
        ("bigbird_pegasus", "blenderbot", "marian", "mbart", "pegasus", "plbart", "whisper"),
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "is_decoder": True},
    ),
    Refused(
        "mpt",
        "computes with its attention mask outside of the attention interface at MptModel",
        "attention that does not go through transformers' interface",
        ("deepseek_v32", "doge", "gpt_neo", "openai-gpt", "roformer", "xglm"),
        {"d_model": 32, "n_heads": 4, "n_layers": 2},
    ),
    Refused(
        "falcon",
        r"a tensor of its own code \(transformer\.h\.0\.self_attention\.lifted_tensor_0\)",
        "a number that the model's code makes (in Falcon with one head of keys for all queries)",
    ),
    Refused(
        "gpt_bigcode",
        r"cannot be imported as it is used there \(view\.default in transformer\.h\.0\.attn\)",
        "one head of keys for all queries, written in a way of its own",
    ),
)
# These take images or sound too.
MORE_THAN_TEXT = ("gemma3", "musicgen")
