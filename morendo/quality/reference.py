"""Logits of the float model, from the cache or from torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morendo.frontend.float_model import FloatModel, open_float_model
from morendo.ir.errors import InputError
from morendo.progress import Progress
from morendo.provenance import difference

from .cache import LogitsCache, cache_directory, model_key
from .dequantized import DequantizedWeights


class Reference:
    """The float model; its weights are read when the first window is not in the cache.

    Args:
        model: Hugging Face directory, hub id, or .gguf file.
        cached: keep logits on disk, and take them from there.
        progress: shows the loading.
        context: the longest text that the artifact was compiled for.
    """

    def __init__(
        self, model: str | Path, cached: bool, progress: Progress, context: int | None = None
    ) -> None:
        self.model: FloatModel = open_float_model(model, context)
        self.cache: LogitsCache | None = None
        if cached:
            self.cache = LogitsCache(
                cache_directory(), model_key(self.model.path, self.model.factors)
            )
        self._progress = progress
        self._module: Any = None

    def check(self, artifact: dict[str, Any], other: bool) -> str:
        """Compare with what an artifact says that it was compiled from.

        Args:
            artifact: its manifest.
            other: another model may be meant.

        Returns:
            A note for the reader of the figures, "" when it is the same model.

        Raises:
            InputError: when the artifact was compiled from other weights, or cannot have been.
        """
        vocabulary, expected = self.model.vocabulary, artifact["tokenizer"]["vocabulary"]
        if vocabulary != expected:
            raise InputError(
                f"the reference has another vocabulary than the artifact "
                f"(got {vocabulary}, need {expected})",
                where=str(self.model.path),
                hint="give the model that was compiled",
            )
        recorded = artifact["model"].get("digests")
        if not recorded:
            return "the artifact does not say which weights it was compiled from: not compared"
        name = difference(recorded, self.model.weights)
        if name and not other:
            raise InputError(
                f"the reference is not the model that was compiled ({name} differs)",
                where=str(self.model.path),
                hint="give that model, or --any-reference if another one is meant, such as the "
                "original of a quantized file",
            )
        return f"the reference is not the model that was compiled: {name} differs" if name else ""

    def logits(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """The logits that predict ids[1:], [tokens - 1, vocabulary]."""
        found = self.cache.load(ids) if self.cache else None
        if found is not None and found.shape[1] == self.model.vocabulary:
            return found
        if self._module is None:
            with self._progress.task("load the float model"):
                self._module = self.model.build()
        logits = torch_logits(self._module, ids)
        if self.cache:
            self.cache.store(ids, logits)
        return logits

    def with_weights_of(self, artifact: DequantizedWeights, level: int) -> Any:
        """The torch model that holds the artifact's dequantized matrices at a level.

        Raises:
            InputError: when the artifact is of another model.
        """
        from torch import nn

        unknown = sorted(name for name in artifact.names if name not in self.model.weights)
        if unknown:
            raise InputError(
                f"the reference lacks weights of the artifact ({len(unknown)} of "
                f"{len(artifact.names)})",
                where=unknown[0],
                hint="--reference must be the model that was compiled",
            )

        def read(name: str, part: Any) -> NDArray[np.float32]:
            original = self.model.weights.get(name)
            return artifact.get(name, original, level, isinstance(part, nn.Embedding))

        with self._progress.task(f"dequantize the weights of level {level}"):
            return self.model.build(read)


def torch_logits(module: Any, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """The logits of a torch model that predict ids[1:], [tokens - 1, vocabulary]."""
    import torch

    with torch.inference_mode():
        batch = torch.from_numpy(ids.astype(np.int64))[None]
        return module(input_ids=batch, use_cache=False).logits[0, :-1].float().numpy()
