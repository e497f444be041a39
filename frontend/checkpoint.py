"""Opening a model's files: configuration first, then weights for the shapes it asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from morendo.ir.errors import InputError

from . import gguf
from .config_values import check_counts, check_sizes, check_values
from .families import check_type
from .generation import GENERATION_CONFIG, Generation, from_config, from_gguf
from .matching import match_names, refuse_unused
from .model_files import ADAPTER, find_weights, other_files, read_json
from .prequantized import refuse_quantized_config
from .switches import check_switches
from .torch_export import EmptyModel, build_empty
from .weights import TensorSource, WeightStore, match_keys


@dataclass
class Checkpoint:
    """A model's configuration and where its weights are.

    Attributes:
        path: a directory, or a .gguf file.
        config: as transformers reads it.
        eos: ids that end a text.
        generation: how its makers want tokens to be drawn.
        file: of a model in GGUF.
        source: the tensors of another one, once `build_model` has opened them.
        notes: what the person should know of configuration and weights.
    """

    path: Path
    config: PreTrainedConfig
    eos: list[int] = field(default_factory=list)
    generation: Generation = field(default_factory=Generation)
    file: gguf.GgufFile | None = None
    source: TensorSource | None = None
    notes: list[str] = field(default_factory=list)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the configuration.

    Raises:
        InputError: when it is damaged, of an unknown architecture, or has numbers that no model
            can have.
    """
    if path.is_file():
        file = gguf.open_gguf(path)
        config, ends = gguf.read_config(file), gguf.end_ids(file)
        check_values(config, str(path))
        generation = from_gguf(file.metadata, path)
        return Checkpoint(path, config, ends, generation, file, notes=gguf.unsaid(file))
    config = _read_config(path)
    check_values(config, str(path / "config.json"))
    eos = _ids(config.eos_token_id, path)
    where = path / GENERATION_CONFIG
    generation = read_json(where)
    more = _ids(generation.get("eos_token_id"), where)
    eos += [i for i in more if i not in eos]
    notes = check_switches(config, str(path))
    return Checkpoint(path, config, eos, from_config(generation, path), notes=notes)


def _ids(value: Any, where: Path) -> list[int]:
    """One id, a list of ids or nothing, as a list."""
    ids = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if any(type(i) is not int for i in ids):
        raise InputError(
            f"eos_token_id is no token id or list of them (got {str(value)[:80]!r})",
            where=str(where),
            hint="the file is damaged",
        )
    return ids


def _read_config(path: Path) -> PreTrainedConfig:
    facts = read_json(path / "config.json")
    kind = facts.get("model_type")
    if not isinstance(kind, str):
        raise InputError("config.json names no model_type", where=str(path))
    check_type(kind, str(path))
    check_counts(facts, kind, str(path / "config.json"))
    refuse_quantized_config(facts, str(path))
    if (path / ADAPTER).is_file():
        raise InputError(
            f"there is an adapter beside the model ({ADAPTER}), which is not merged into it",
            where=str(path),
            hint=f"merge it (merge_and_unload of peft), or take {ADAPTER} away to compile without",
        )
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers validates with many types
        raise InputError(f"config.json is not valid ({_said(error)})", where=str(path)) from error


def _said(error: Exception) -> str:
    """What is wrong, without where in transformers' own checks it was found."""
    said = " ".join(str(error).split())
    said = re.sub(r"^(Class v|V)alidation error for .*?: \w+: ", "", said)
    return said.partition(". Errors: ")[0]


def build_model(checkpoint: Checkpoint, context: int | None = None) -> EmptyModel:
    """The model without weights, once its checkpoint has been seen to be able to fill it.

    Args:
        context: as for `build_empty`.

    Raises:
        InputError: as `build_empty`, for damaged files, and for sizes beyond the checkpoint's.
    """
    where = str(checkpoint.path)
    if checkpoint.file is not None:
        shapes = {name: tensor.shape for name, tensor in checkpoint.file.tensors.items()}
    else:
        source = checkpoint.source = _open_files(checkpoint)
        shapes = {name: source.shape(name) for name in source.names()}
    check_sizes(checkpoint.config, shapes, where)
    return build_empty(checkpoint.config, context)


def open_weights(checkpoint: Checkpoint, model: EmptyModel) -> WeightStore:
    """The weights that the model asks for, none of them kept in memory.

    Weights that the configuration ties and the checkpoint holds apart are untied in `model`.
    What the person should know is added to the checkpoint's notes.

    Raises:
        InputError: for damaged files, tensors that are missing or too many, and shapes that do
            not fit.
    """
    source = _source(checkpoint, model)
    where = str(checkpoint.path)
    buffers = model.buffers
    if isinstance(source, gguf.GgufSource):
        refuse_unused(source.unused(), where, "the GGUF file is of a model that is not known here")
        buffers = source.rotary_buffers(buffers)
    names = match_names(model, source, checkpoint.path)
    checkpoint.notes.extend(names.notes)
    stored = {name: model.buffers[name] for name in model.persistent if name in names.known}
    floats = {name: b.shape for name, b in stored.items() if b.dtype.kind == "f"}
    keys = match_keys(model.shapes() | floats, source, names.known, where)
    keys |= {name: names.known[name] for name in stored}
    return WeightStore(source, keys, buffers, model.aliases)


def _source(checkpoint: Checkpoint, model: EmptyModel) -> TensorSource:
    if checkpoint.file is not None:
        return gguf.GgufSource(checkpoint.file, model.module)
    return checkpoint.source or _open_files(checkpoint)


def _open_files(checkpoint: Checkpoint) -> TensorSource:
    path = checkpoint.path
    files = find_weights(path)
    note = other_files(path, files)
    if note:
        checkpoint.notes.append(note)
    if files[0].suffix == ".safetensors":
        from .safetensors_file import SafetensorsSource

        return SafetensorsSource(files)
    from .torch_file import TorchSource

    return TorchSource(files)
