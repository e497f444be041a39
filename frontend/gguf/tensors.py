"""The tensors of a GGUF file under Hugging Face names.

Transformers' own loader holds the whole model in float. Here its per-architecture tensor
processors, and gguf's name map and dequantization are used one tensor at a time, on a memory map.
"""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as hf_gguf

from ..weights import Rows, TensorSource
from .metadata import Metadata
from .rope import FACTORS, LENGTH_FACTORS, read_factors, reads_factors
from .split import GgufFile

# What llama.cpp's converter did to an architecture's tensors is undone by these.
_PROCESSORS = {
    "arcee": hf_gguf.LlamaTensorProcessor,
    "bloom": hf_gguf.BloomTensorProcessor,
    "gemma": hf_gguf.Gemma2TensorProcessor,
    "gemma2": hf_gguf.Gemma2TensorProcessor,
    "gemma3": hf_gguf.Gemma2TensorProcessor,
    "gpt2": hf_gguf.GPT2TensorProcessor,
    "gptneox": hf_gguf.BloomTensorProcessor,
    "granite": hf_gguf.LlamaTensorProcessor,
    "llama": hf_gguf.LlamaTensorProcessor,
    "nemotron": hf_gguf.NemotronTensorProcessor,
    "smollm3": hf_gguf.LlamaTensorProcessor,
}
_OPTIONAL_BIASES = ("arcee", "granite", "llama", "smollm3")
"""Where each bias may be there or not, while Hugging Face has one switch for all of a block."""
_TABLES = ("token_embd.weight", "output.weight")
"""Large matrices that no processor of transformers touches: their rows can be read alone."""
# Old files hold each layer's rotary frequencies as well; the metadata says the same.
_HARMLESS = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")


class GgufSource(TensorSource):
    """Tensors of a model under Hugging Face names, dequantized when read.

    Biases that a file leaves out of those that its architecture may have are read as zeros.

    Args:
        file: the model's files.
        model: the empty model, for names and shapes.
    """

    def __init__(self, file: GgufFile, model: PreTrainedModel) -> None:
        self.file = file
        kind = _PROCESSORS.get(file.architecture, hf_gguf.TensorProcessor)
        config = model.config
        self.processor = kind(config={**config.to_dict(), "n_head": config.num_attention_heads})
        self.name_map = _name_map(file.architecture, model)
        known = file.tensors
        self.tensors = {self.name_map[n]: t for n, t in known.items() if n in self.name_map}
        self.scales = {
            name: known[scale]
            for name, info in self.tensors.items()
            if (scale := _scale_name(info.name)) in known and known[scale].shape == (1,)
        }
        self.shapes: dict[str, Any] = {name: tuple(p.shape) for name, p in model.named_parameters()}
        optional = file.architecture in _OPTIONAL_BIASES
        absent = [n for n in self.shapes if n.endswith(".bias") and n not in self.tensors]
        self.zeros = set(absent if optional else ())

    def names(self) -> list[str]:
        return [*self.tensors, *(name for name in self.shapes if name in self.zeros)]

    def stored_name(self, name: str) -> str:
        """The name in the file."""
        return next((own for own, other in self.name_map.items() if other == name), name)

    def unused(self) -> list[str]:
        """Tensors of the file that have no place in the model."""
        used = {info.name for info in (*self.tensors.values(), *self.scales.values())}
        if reads_factors(self.file):
            used |= {FACTORS, *LENGTH_FACTORS}
        return [n for n in self.file.tensors if n not in used and not _HARMLESS.fullmatch(n)]

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.zeros:
            return self.shapes[name]
        stored = self.tensors[name].shape
        wanted: tuple[int, ...] = self.shapes.get(name, stored)
        # A processor may transpose (gpt2); the extents cannot change.
        return wanted if sorted(stored) == sorted(wanted) else stored

    def dtype(self, name: str) -> str:
        return "F32" if name in self.zeros else self.tensors[name].kind.name

    def nbytes(self, name: str) -> int:
        return 0 if name in self.zeros else self.tensors[name].nbytes

    def read(self, name: str) -> np.ndarray:
        if name in self.zeros:
            return np.zeros(self.shapes[name], np.float32)
        info = self.tensors[name]
        data = info.read()
        if name in self.scales:
            data = data * self.scales[name].read()
        caught: dict[str, Any] = {"tensors": {}}
        result = self.processor.process(
            weights=data,
            name=info.name,
            tensor_key_mapping=self.name_map,
            parsed_parameters=caught,
        )
        if result.name is None:  # the processor stored it itself
            (values,) = caught["tensors"].values()
            return values.numpy()
        return np.ascontiguousarray(result.weights, dtype=np.float32)

    def rows(self, name: str, rows: Rows) -> np.ndarray:
        if name in self.zeros:
            return self.read(name)[rows]
        info = self.tensors[name]
        if info.name not in _TABLES or name in self.scales:
            return self.read(name)[rows]
        return np.ascontiguousarray(info.rows(rows), dtype=np.float32)

    def rotary_buffers(self, buffers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's buffers with the rotary frequencies that the file scales (llama 3).

        Raises:
            InputError: when there are more or fewer factors than frequencies.
        """
        if FACTORS not in self.file.tensors:
            return buffers
        scaled = {
            name: values / read_factors(Metadata(self.file), FACTORS, 2 * values.size)
            for name, values in buffers.items()
            if name.endswith("rotary_emb.inv_freq")
        }
        return {**buffers, **scaled}


def _scale_name(name: str) -> str:
    """Of the one number that a matrix is multiplied with (NVFP4, ternary models)."""
    return name.removesuffix(".weight") + ".scale"


def _name_map(architecture: str, model: PreTrainedModel) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face name, for every parameter of the model.

    As `get_gguf_hf_weights_map` of transformers, which rebuilds gguf's table for every submodule.
    """
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[architecture], model.config.num_hidden_layers)
    prefix = model.base_model_prefix + "."
    found: dict[str, str] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        stem, _, suffix = name.rpartition(".")
        stored = table.get_name(stem) or table.get_name(stem.removeprefix(prefix))
        if stored is not None:
            found.setdefault(f"{stored}.{suffix}", name)
    return found
