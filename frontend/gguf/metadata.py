"""A model's metadata, read key by key: whatever is not read at the end is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from morendo.ir.errors import InputError

from .split import GgufFile

CHECKPOINT_INSTEAD = "use the Hugging Face checkpoint of this model instead"
# What says nothing about the function: where the file is from, what tools were told.
HARMLESS = {
    "expert_used_count",  # of no experts; so are those below
    "expert_feed_forward_length",
    "pooling_type",  # of embeddings
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",  # the embedding table has as many rows as there are tokens
}
# Values with which a key changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "attention.sliding_window": (0,),
    "nextn_predict_layers": (0,),
}
_MISSING = object()


class Metadata:
    """The keys of a file under its architecture's name, such as `llama.block_count`.

    Args:
        file: the file.
        prefix: what the names of keys begin with, the architecture by default.
    """

    def __init__(self, file: GgufFile, prefix: str = "") -> None:
        self.file = file
        self.prefix = prefix or f"{file.architecture}."
        self.read: set[str] = set()

    def error(self, said: str, hint: str = CHECKPOINT_INSTEAD) -> InputError:
        return InputError(said, where=str(self.file.path), hint=hint)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.file.metadata

    def raw(self, name: str, default: Any = _MISSING) -> Any:
        """A value as it is stored.

        Raises:
            InputError: when it is missing and there is no default.
        """
        key = self.prefix + name
        self.read.add(key)
        value = self.file.metadata.get(key, default)
        if value is _MISSING:
            raise self.error(f"the GGUF file has no key {key}")
        return value

    def _scalar(self, name: str, default: Any, kinds: tuple[type, ...], need: str) -> Any:
        value = self.raw(name, default)
        if name not in self:
            return value
        if isinstance(value, list) and value:
            if any(v != value[0] for v in value):
                raise self.error(f"GGUF key {self.prefix}{name} differs from layer to layer")
            value = value[0]
        if type(value) not in kinds:
            got = type(value).__name__ if isinstance(value, list) else repr(value)
            raise self.error(f"GGUF key {self.prefix}{name} is {got}, need {need}")
        return value

    def integer(self, name: str, default: Any = _MISSING, least: int = 0) -> int:
        """A number such as a count; a list of one number for all layers counts as that number."""
        value = self._scalar(name, default, (int,), "an integer")
        if name in self and not least <= value < 2**31:
            raise self.error(
                f"GGUF key {self.prefix}{name} is {value}, need {least} to {2**31 - 1}"
            )
        return value

    def count(self, name: str, default: Any = _MISSING) -> int:
        """An integer of at least 1."""
        return self.integer(name, default, least=1)

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A finite number that is not negative, as all are that are read."""
        value = self._scalar(name, default, (int, float), "a number")
        if name in self and not 0 <= value < math.inf:
            raise self.error(f"GGUF key {self.prefix}{name} is {value}, need 0 or more")
        return value

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        return self._scalar(name, default, (bool,), "true or false")

    def text(self, name: str, default: Any = _MISSING) -> str:
        return self._scalar(name, default, (str,), "a text")

    def require(self, name: str, *allowed: Any) -> None:
        """Refuse every value but these; a missing key is allowed."""
        value = self.raw(name, allowed[0])
        values = value if isinstance(value, list) else [value]
        if any(v not in allowed for v in values):
            raise self._refused(name)

    def _refused(self, name: str) -> InputError:
        value = repr(self.file.metadata[self.prefix + name])
        shown = value if len(value) <= 40 else value[:40] + "..."
        return self.error(
            f"GGUF key {self.prefix}{name} = {shown} is not supported for "
            f"{self.file.architecture}: it may change what the model computes"
        )

    def finish(
        self,
        harmless: Collection[str] = HARMLESS,
        neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL,
    ) -> None:
        """Refuse the keys that nothing has read, unless they are known to change nothing.

        Args:
            harmless: names of keys that never change anything.
            neutral: values with which others change nothing.
        """
        for key in self.file.metadata:
            name = key.removeprefix(self.prefix)
            if not key.startswith(self.prefix) or key in self.read:
                continue
            if name in neutral:
                self.require(name, *neutral[name])
            elif name not in harmless:
                raise self._refused(name)
