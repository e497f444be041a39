"""Models in a .gguf file, through the reader and the tables of the gguf and transformers packages.

Transformers' own loader holds the whole model in float. Here its configuration mapping, its name
map and its per-architecture tensor processors are used one tensor at a time, on gguf's memory map.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as hf_gguf

from morendo.ir.errors import InputError

from .weights import TensorSource

_MAGIC = b"GGUF"


def check_file(path: Path) -> None:
    """Refuse what is no GGUF file of a version that the reader knows.

    Raises:
        InputError: for another kind of file, or one that ends in the header.
    """
    with path.open("rb") as file:
        head = file.read(24)
    if head[:4] != _MAGIC:
        raise InputError(
            "not a GGUF file (it does not start with the letters GGUF)",
            where=str(path),
            hint="give a .gguf file or a Hugging Face model directory",
        )
    if len(head) < 24 or struct.unpack("<I", head[4:8])[0] not in (2, 3):
        raise InputError(
            "the GGUF header is damaged or of an unknown version", where=str(path), hint=_AGAIN
        )


_AGAIN = "the file is truncated or damaged: download it again"


def open_reader(path: Path) -> gguf.GGUFReader:
    """The memory-mapped file.

    Raises:
        InputError: when the file is truncated or damaged.
    """
    check_file(path)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader raises what numpy raises on short data
        raise InputError("the GGUF file cannot be read", where=str(path), hint=_AGAIN) from error


def read_config(path: Path) -> PreTrainedConfig:
    """The Hugging Face configuration of the model in the file.

    Raises:
        InputError: for an architecture that transformers cannot read from GGUF.
    """
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers raises ValueError, KeyError, ...
        said = str(error).strip().splitlines()[0]
        raise InputError(
            f"the GGUF file's configuration cannot be read ({said})",
            where=str(path),
            hint="use the Hugging Face checkpoint of this model instead",
        ) from error


def _name_map(architecture: str, model: PreTrainedModel, processor: Any) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face name, for every parameter of the model.

    As `get_gguf_hf_weights_map` of transformers, which rebuilds gguf's table for every submodule.
    """
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = model.config.num_hidden_layers
    table = gguf.get_tensor_name_map(known[architecture], layers)
    prefix = model.base_model_prefix + "."
    found: dict[str, str] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        stem, _, suffix = processor.preprocess_name(name).rpartition(".")
        stored = table.get_name(stem) or table.get_name(stem.removeprefix(prefix))
        if stored is not None:
            found.setdefault(f"{stored}.{suffix}", name)
    return found


class GgufSource(TensorSource):
    """Tensors of a GGUF file under Hugging Face names, dequantized when read.

    Args:
        reader: the open file.
        model: the empty model, for the name map.
    """

    def __init__(self, path: Path, reader: gguf.GGUFReader, model: PreTrainedModel) -> None:
        self.path = path
        self.reader = reader
        config = model.config.to_dict()
        architecture = str(reader.fields["general.architecture"].contents())
        kind = hf_gguf.TENSOR_PROCESSORS.get(architecture, hf_gguf.TensorProcessor)
        self.processor = kind(config=config)
        self.name_map = _name_map(architecture, model, self.processor)
        self.tensors = {self.name_map[t.name]: t for t in reader.tensors if t.name in self.name_map}
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        stored = tuple(int(d) for d in reversed(self.tensors[name].shape))
        wanted = self.shapes.get(name, stored)
        # A processor may transpose (gpt2) or add an axis; the number of values cannot change.
        return wanted if np.prod(stored) == np.prod(wanted) else stored

    def dtype(self, name: str) -> str:
        return self.tensors[name].tensor_type.name

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        data = gguf.dequantize(tensor.data, tensor.tensor_type)
        caught: dict[str, Any] = {"tensors": {}}
        result = self.processor.process(
            weights=data,
            name=tensor.name,
            tensor_key_mapping=self.name_map,
            parsed_parameters=caught,
        )
        if result.name is None:  # the processor stored it itself
            (values,) = caught["tensors"].values()
            return values.numpy()
        array = np.ascontiguousarray(result.weights, dtype=np.float32)
        return array.reshape(self.shape(name))
