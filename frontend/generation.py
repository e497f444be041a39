"""How a model's makers want tokens to be drawn: generation_config.json, or general.sampling.*.

The result has the names of `runtime.sampling.SamplingSettings`; nothing in it means greedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morendo.ir.errors import InputError

GENERATION_CONFIG = "generation_config.json"
# What transformers takes where a configuration asks for sampling and says no more.
_SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
_ALWAYS = {"repetition_penalty": 1.0}
# Settings that change which tokens come and are not applied here, with values that change nothing.
_OTHERS: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "dola_layers": (),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "stop_strings": (),
    "suppress_tokens": (),
    "watermarking_config": (),
}
_OTHERS_SAMPLED: dict[str, tuple[Any, ...]] = {
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "typical_p": (1,),
}
_GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class Generation:
    """Settings for drawing tokens.

    Attributes:
        sampling: names and values of SamplingSettings, those that change something.
        left_out: names of what the model asks for besides, which is not applied.
        source: file that it is from.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    source: str = ""

    def notes(self) -> list[str]:
        """What the person should know."""
        names = ", ".join(self.left_out)
        return [f"{self.source} asks for {names}: not applied"] if names else []


def from_config(facts: dict[str, Any], folder: Path) -> Generation:
    """Read the content of generation_config.json as transformers' `generate` does.

    Without do_sample it is greedy, whatever the temperature is.

    Raises:
        InputError: for values that are no numbers.
    """
    where = str(folder / GENERATION_CONFIG)
    given = {name: value for name, value in facts.items() if value is not None}
    sampled = given.get("do_sample", False)
    if not isinstance(sampled, bool):
        raise InputError(f"do_sample must be true or false (got {sampled!r})", where=where)
    wanted = {**_ALWAYS, **(_SAMPLED if sampled else {})}
    sampling = {
        name: _number(given.get(name, usual), name, where) for name, usual in wanted.items()
    }
    others = {**_OTHERS, **(_OTHERS_SAMPLED if sampled else {})}
    left_out = [n for n, harmless in others.items() if given.get(n, []) not in ([], *harmless)]
    return Generation(_without_neutral(sampling), tuple(left_out), GENERATION_CONFIG)


def from_gguf(metadata: dict[str, Any], path: Path) -> Generation:
    """Read the sampling keys of a .gguf file; without a temperature it is greedy.

    Args:
        metadata: values by their keys.
        path: the file, for messages.

    Raises:
        InputError: for values that are no numbers.
    """
    found = {name: metadata[key] for key, name in _GGUF.items() if key in metadata}
    # The file holds 0.8 as a float32, which is 0.800000011920929.
    sampling = {name: round(_number(v, name, str(path)), 6) for name, v in found.items()}
    if "temperature" not in sampling:
        sampling = {name: value for name, value in sampling.items() if name in _ALWAYS}
    left_out = [k for k in metadata if k.startswith("general.sampling.") and k not in _GGUF]
    return Generation(_without_neutral(sampling), tuple(left_out), path.name)


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number (got {value!r})", where=where)
    return value


def _without_neutral(sampling: dict[str, float]) -> dict[str, float]:
    neutral = {**_ALWAYS, **_SAMPLED, "temperature": 0.0, "top_k": 0}
    return {name: value for name, value in sampling.items() if value != neutral[name]}
