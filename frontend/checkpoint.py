"""Opening a model's files: configuration first, then weights for the shapes it asks for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.integrations.gguf.reader import GgufHeader

from morendo.ir.errors import InputError

from . import gguf
from .torch_export import SUPPORTED, EmptyModel
from .weights import TensorSource, WeightStore, match_keys

# What older releases of transformers stored besides weights: rotary frequencies, causal masks.
_HARMLESS = (r"\binv_freq$", r"\b(attn|attention)\.(masked_)?bias$")


@dataclass
class Checkpoint:
    """A model's configuration and where its weights are.

    Attributes:
        path: a directory, or a .gguf file.
        config: as transformers reads it.
        eos: ids that end a text.
        header: of a .gguf file.
    """

    path: Path
    config: PreTrainedConfig
    eos: list[int] = field(default_factory=list)
    header: GgufHeader | None = None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the configuration.

    Raises:
        InputError: when it is damaged or of an unknown architecture.
    """
    if path.is_file():
        header = gguf.read_header(path)
        config = gguf.read_config(path, header.architecture)
        return Checkpoint(path, config, _ids(config.eos_token_id), header)
    config = _read_config(path)
    eos = _ids(config.eos_token_id)
    generation = _read_json(path / "generation_config.json")
    eos += [i for i in _ids(generation.get("eos_token_id")) if i not in eos]
    return Checkpoint(path, config, eos)


def _ids(value: Any) -> list[int]:
    """One id, a list of ids or nothing, as a list."""
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        found = None
    if not isinstance(found, dict):
        raise InputError("not a JSON object", where=str(path), hint="the file is damaged")
    return found


def _read_config(path: Path) -> PreTrainedConfig:
    facts = _read_json(path / "config.json")
    kind = facts.get("model_type")
    if not isinstance(kind, str):
        raise InputError("config.json names no model_type", where=str(path))
    if kind not in SUPPORTED:
        raise InputError(
            f"architecture {kind!r} is not supported",
            where=str(path),
            hint=f"supported: {', '.join(SUPPORTED)}",
        )
    if "quantization_config" in facts:
        raise InputError(
            "the checkpoint is quantized already",
            where=str(path),
            hint="give the original float checkpoint",
        )
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers validates with many types
        said = " ".join(str(error).split())
        raise InputError(f"config.json is not valid ({said})", where=str(path)) from error


def open_weights(checkpoint: Checkpoint, model: EmptyModel) -> WeightStore:
    """The weights that the model asks for, none of them read yet.

    Raises:
        InputError: for damaged files, tensors that are missing or too many, and shapes that do
            not fit.
    """
    source = _source(checkpoint, model)
    known = _known_names(model.module, source.names())
    for alias, name in model.aliases.items():
        if name not in known and alias in known:
            known[name] = known[alias]
    keys = match_keys(model.shapes(), source, known, str(checkpoint.path))
    keys |= {name: known[name] for name in model.persistent if name in known}
    _refuse_unused(_unused(model, source, known), str(checkpoint.path))
    buffers = model.buffers
    if isinstance(source, gguf.GgufSource):
        buffers = source.rotary_buffers(buffers)
    return WeightStore(source, keys, buffers, model.aliases)


def _known_names(module: PreTrainedModel, stored: list[str]) -> dict[str, str]:
    """The model's name of each tensor -> the checkpoint's name.

    Checkpoints may leave out the base model's prefix (gpt2, bloom) or use older names; transformers
    keeps the rules.
    """
    state = module.state_dict()
    rules = [r for r in get_model_conversion_mapping(module) if isinstance(r, WeightRenaming)]
    known = {
        rename_source_key(name, rules, [], module.base_model_prefix, state)[0]: name
        for name in stored
        if name not in state
    }
    return known | {name: name for name in stored if name in state}


def _unused(model: EmptyModel, source: TensorSource, known: dict[str, str]) -> list[str]:
    """Tensors of the checkpoint that belong to a module of the model, which has no place for them.

    Other tensors, such as those of a vision tower, are no business of a text model's.
    """
    if isinstance(source, gguf.GgufSource):
        owners = {_owner(info.name) for info in source.tensors.values()}
        return [name for name in source.others if _owner(name) in owners]
    used = {*model.shapes(), *model.aliases, *model.buffers}
    owners = {_owner(name) for name in used - set(model.buffers)}
    # Whatever lies in a layer's module is the layer's: self_attn.q_norm, q_proj.lora_A.
    parts = {n for n, _ in model.module.named_modules() if re.search(r"\.\d+(\.|$)", n)}
    harmless = [*_HARMLESS, *(model.module._keys_to_ignore_on_load_unexpected or ())]
    base = model.module.base_model_prefix
    left = []
    for name, stored in known.items():
        owner = {_owner(name), f"{base}.{_owner(name)}"}
        inside = {_owner(o) for o in owner} if name.endswith(".weight") else set()
        if name in used or not (owner & owners or inside & parts):
            continue
        if not any(re.search(pattern, name) for pattern in harmless):
            left.append(stored)
    return left


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _refuse_unused(names: list[str], where: str) -> None:
    if names:
        tensors = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
        raise InputError(
            f"checkpoint has {tensors} that the configuration does not use (first: {names[0]})",
            where=where,
            hint="config.json does not fit the weights",
        )


def _source(checkpoint: Checkpoint, model: EmptyModel) -> TensorSource:
    path = checkpoint.path
    if checkpoint.header is not None:
        return gguf.GgufSource(path, checkpoint.header, model.module)
    safetensors = _shards(path, "model.safetensors", "*.safetensors")
    if safetensors:
        from .safetensors_file import SafetensorsSource

        return SafetensorsSource(safetensors)
    torch_files = _shards(path, "pytorch_model.bin", "pytorch_model*.bin")
    if torch_files:
        from .torch_file import TorchSource

        return TorchSource(torch_files)
    raise InputError(
        "the directory holds no weights (*.safetensors or pytorch_model*.bin)",
        where=str(path),
        hint="download the whole model",
    )


def _shards(path: Path, single: str, pattern: str) -> list[Path]:
    """The files of one kind of checkpoint: those that its index names, or all that are there."""
    index = path / f"{single}.index.json"
    if not index.is_file():
        return [path / single] if (path / single).is_file() else sorted(path.glob(pattern))
    shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
    missing = [name for name in shards if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"a shard of the checkpoint is missing (got {len(shards) - len(missing)} of "
            f"{len(shards)} files)",
            where=str(path / missing[0]),
            hint="download the whole model",
        )
    return [path / name for name in shards]
