"""Models in a .gguf file, through the readers and the tables of gguf and transformers.

Transformers' own loader holds the whole model in float. Here its header reader, configuration
mapping and per-architecture tensor processors, and gguf's name map and dequantization are used one
tensor at a time, on a memory map.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as hf_gguf
from transformers.integrations.gguf.dequant import GGML_NAME
from transformers.integrations.gguf.reader import GgufHeader, TensorInfo

from morendo.ir.errors import InputError

from .torch_export import SUPPORTED
from .weights import TensorSource

_VERSIONS = (2, 3)
_ARCHITECTURES = sorted({*SUPPORTED, "gemma3"} & set(hf_gguf.GGUF_SUPPORTED_ARCHITECTURES))
_AGAIN = "the file is truncated or damaged: download it again"


def read_header(path: Path) -> GgufHeader:
    """Architecture and tensor table of a file.

    Raises:
        InputError: for another kind of file, or a truncated or damaged one.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] != b"GGUF":
            raise InputError(
                "not a GGUF file (it does not start with the letters GGUF)",
                where=str(path),
                hint="give a .gguf file or a Hugging Face model directory",
            )
    version = int.from_bytes(start[4:], "little")
    if len(start) == 8 and version not in _VERSIONS:
        raise InputError(
            f"unsupported GGUF version (got {version}, need {' or '.join(map(str, _VERSIONS))})",
            where=str(path),
            hint="convert the model again with a current llama.cpp, for little-endian machines",
        )
    try:
        header = GgufHeader.from_file(str(path))
    except Exception as error:  # struct.error, UnicodeDecodeError, ValueError, MemoryError, ...
        raise _bad_header(path, error) from error
    _check_extents(path, header)
    return header


def _bad_header(path: Path, error: Exception) -> InputError:
    said = " ".join(str(error).split()).removeprefix(f"{path} ")
    kind = re.search(r"\bggml type (\d+)", said)
    if kind:
        number = int(kind[1])
        names = {member.value: member.name for member in gguf.GGMLQuantizationType}
        name = names.get(number, "of unknown kind")
        return InputError(
            f"tensor type {number} ({name}) is not supported",
            where=str(path),
            hint=f"supported: F32, F16, BF16, {', '.join(GGML_NAME.values())}",
        )
    if isinstance(error, struct.error | IndexError):
        said = "it ends too early"
    elif not isinstance(error, ValueError):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return InputError(f"the GGUF header cannot be read ({said})", where=str(path), hint=_AGAIN)


def _check_extents(path: Path, header: GgufHeader) -> None:
    size = path.stat().st_size
    for info in header.tensors:
        end = header.data_start + info.offset + info.nbytes
        if end > size:
            raise InputError(
                f"tensor {info.name} ends behind the file (got {size} bytes, need {end})",
                where=str(path),
                hint=_AGAIN,
            )


class _PlainReader(gguf.GGUFReader):
    """gguf's reader on a plain array: slicing numpy's memmap class takes twice as long."""

    @property
    def data(self) -> np.ndarray:
        return self._plain

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self._plain = np.asarray(value)


@contextmanager
def shared_reader() -> Iterator[None]:
    """Within, transformers parses a file once instead of for every question it has.

    gguf's reader makes a numpy object of each of the vocabulary's strings, which takes seconds.
    """
    original = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(_PlainReader)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = original  # type: ignore[misc]


def read_config(path: Path, architecture: str) -> PreTrainedConfig:
    """The Hugging Face configuration of the model in the file.

    Raises:
        InputError: for an architecture that transformers cannot read from GGUF.
    """
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers raises ValueError, KeyError, ...
        if architecture not in _ARCHITECTURES:
            raise InputError(
                f"the GGUF architecture {architecture!r} is not supported",
                where=str(path),
                hint=f"supported: {', '.join(_ARCHITECTURES)}",
            ) from error
        said = " ".join(str(error).split())
        raise InputError(
            f"the GGUF file's configuration cannot be read ({said})",
            where=str(path),
            hint="use the Hugging Face checkpoint of this model instead",
        ) from error


class GgufSource(TensorSource):
    """Tensors of a GGUF file under Hugging Face names, dequantized when read.

    Args:
        path: the file.
        header: its tensor table.
        model: the empty model, for names and shapes.
    """

    def __init__(self, path: Path, header: GgufHeader, model: PreTrainedModel) -> None:
        self.path = path
        self.data_start = header.data_start
        kind = hf_gguf.TENSOR_PROCESSORS.get(header.architecture, hf_gguf.TensorProcessor)
        self.processor = kind(config=model.config.to_dict())
        self.name_map = _name_map(header.architecture, model, self.processor)
        self.tensors = {self.name_map[t.name]: t for t in header.tensors if t.name in self.name_map}
        self.others = {t.name: t for t in header.tensors if t.name not in self.name_map}
        self.shapes: dict[str, Any] = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        stored: tuple[int, ...] = self.tensors[name].shape
        wanted: tuple[int, ...] = self.shapes.get(name, stored)
        # A processor may transpose (gpt2); the extents cannot change.
        return wanted if sorted(stored) == sorted(wanted) else stored

    def dtype(self, name: str) -> str:
        return _kind(self.tensors[name]).name

    def read(self, name: str) -> np.ndarray:
        info = self.tensors[name]
        data = self._dequantized(info)
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

    def _dequantized(self, info: TensorInfo) -> np.ndarray:
        start = self.data_start + info.offset
        rows = int(np.prod(info.shape[:-1], dtype=np.int64))
        stored = np.memmap(self.path, np.uint8, "r", start, (rows, info.nbytes // rows))
        return gguf.dequantize(stored, _kind(info)).reshape(info.shape)

    def rotary_buffers(self, buffers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's buffers with the rotary frequencies that the file scales (llama 3).

        Transformers does not read these factors.

        Raises:
            InputError: for factors that depend on the length of the text (phi 3 with 128k).
        """
        if "rope_factors_long.weight" in self.others:
            raise InputError(
                "rotary factors for long texts cannot be read from GGUF",
                where=str(self.path),
                hint="use the Hugging Face checkpoint of this model instead",
            )
        if "rope_freqs.weight" not in self.others:
            return buffers
        factors = self._dequantized(self.others["rope_freqs.weight"])
        scaled = {n: b / factors for n, b in buffers.items() if n.endswith("rotary_emb.inv_freq")}
        return {**buffers, **scaled}


def _kind(info: TensorInfo) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(info.ggml_type)


def _name_map(architecture: str, model: PreTrainedModel, processor: Any) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face name, for every parameter of the model.

    As `get_gguf_hf_weights_map` of transformers, which rebuilds gguf's table for every submodule.
    """
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise InputError(
            f"the GGUF architecture {architecture!r} has no table of tensor names",
            hint="use the Hugging Face checkpoint of this model instead",
        )
    table = gguf.get_tensor_name_map(known[architecture], model.config.num_hidden_layers)
    prefix = model.base_model_prefix + "."
    found: dict[str, str] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        stem, _, suffix = processor.preprocess_name(name).rpartition(".")
        stored = table.get_name(stem) or table.get_name(stem.removeprefix(prefix))
        if stored is not None:
            found.setdefault(f"{stored}.{suffix}", name)
    return found
