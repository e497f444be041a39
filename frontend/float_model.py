"""The float model itself in torch, from the same weights that are compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from morendo.ir.errors import InputError

from . import checkpoint, families, torch_export
from .context import DEFAULT_CONTEXT
from .load import quiet
from .locate import ONNX, locate
from .rope import factors_of, settle_rope
from .weights import WeightStore

ReadWeight = Callable[[str, torch.nn.Module], np.ndarray]


@dataclass(frozen=True)
class FloatModel:
    """A checkpoint whose weights were not read yet.

    Attributes:
        path: directory or .gguf file.
        config: as transformers reads it.
        weights: by Hugging Face name.
        notes: what the person should know of the checkpoint.
        context: longest text, for rotary frequencies that depend on it; None is the default.
    """

    path: Path
    config: PreTrainedConfig
    weights: WeightStore
    notes: tuple[str, ...] = ()
    context: int | None = None

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(self.config.vocab_size)

    @property
    def factors(self) -> str:
        """What of the function depends on the context, see `factors_of`; mostly ""."""
        return factors_of(self.config, self.context or DEFAULT_CONTEXT)

    def build(self, read: ReadWeight | None = None) -> PreTrainedModel:
        """The model in float32, 4 bytes of memory for each weight; tied weights share theirs.

        Args:
            read: gives the value of a parameter by its name and the module that holds it, where
                it is to be another one than the checkpoint's. Tied weights may then differ.
        """
        with torch_export.parameters_on_meta(), quiet():
            module = AutoModelForCausalLM.from_config(
                self.config, attn_implementation="eager", dtype=torch.float32
            ).eval()
        torch_export.widen(module)
        settle_rope(module, self.context or DEFAULT_CONTEXT)
        shared: dict[str, torch.nn.Parameter] = {}
        for prefix, part in module.named_modules():
            for key, old in list(part._parameters.items()):
                if old is None:
                    continue
                name = f"{prefix}.{key}"
                name = self.weights.aliases.get(name, name)
                if read is not None:
                    part._parameters[key] = _parameter(read(name, part))
                    continue
                if name not in shared:
                    shared[name] = _parameter(self.weights.get(name))
                part._parameters[key] = shared[name]
            for key, buffer in part._buffers.items():
                name = f"{prefix}.{key}"
                if buffer is not None and name in self.weights:
                    value = torch.from_numpy(np.array(self.weights.get(name)))
                    part._buffers[key] = value.to(buffer.dtype)
        return module


def _parameter(values: np.ndarray) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(np.array(values, np.float32)), requires_grad=False)


def open_float_model(model: str | Path, context: int | None = None) -> FloatModel:
    """Read a model's configuration and its table of weights.

    Args:
        model: Hugging Face directory, hub id, or .gguf file, as for `load_model`.
        context: the same, of the artifact that the model is compared with.

    Raises:
        InputError: in one line, for whatever is missing, damaged or not supported.
    """
    notes: list[str] = []
    path = locate(str(model), notes)
    if path.suffix == ONNX:
        raise InputError(
            "transformers cannot run an ONNX model",
            where=str(path),
            hint="give the Hugging Face checkpoint that it was exported from",
        )
    with quiet():
        opened = checkpoint.open_checkpoint(path)
        families.check_config(opened.config, str(path))
    weights = checkpoint.open_weights(opened, checkpoint.build_model(opened, context))
    return FloatModel(path, opened.config, weights, (*notes, *opened.notes), context)
