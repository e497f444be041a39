"""Which files of a folder hold a model's weights: those that transformers would load.

Folders hold other tensors too: adapters, optimizer states, variants in half precision, the same
weights in another tool's layout. Only the first of these that is there counts:

    the file or index that config.json names as transformers_weights
    model.safetensors
    model.safetensors.index.json and the shards that it names
    pytorch_model.bin
    pytorch_model.bin.index.json and the shards that it names
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from morendo.ir.errors import InputError

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
ADAPTER = "adapter_config.json"
_WHOLE = "download the whole model"
_POINTER = b"version https://git-lfs"


def refuse_pointer(path: Path) -> None:
    """Refuse what a clone has in the place of a large file that it was not given.

    Raises:
        InputError: for a pointer of git-lfs.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        raise InputError(
            "a git-lfs pointer, not the file itself",
            where=str(path),
            hint=f"fetch it: git -C {shlex.quote(str(path.parent))} lfs pull",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file.

    Raises:
        InputError: for anything else in it.
    """
    if not path.is_file():
        return {}
    refuse_pointer(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # ValueError: not UTF-8, not JSON
        found = None
    if not isinstance(found, dict):
        raise InputError("not a JSON object", where=str(path), hint="the file is damaged")
    return found


def weight_files(folder: Path, listed: Collection[str] | None = None) -> list[str]:
    """The names of the files that the weights are in, whether they are there or not.

    Args:
        folder: where config.json and the index are.
        listed: the files that the whole model has; by default those in the folder.

    Returns:
        Paths inside the folder; [] when none of the files that count is there.

    Raises:
        InputError: for an index that is damaged or leaves the folder.
    """
    named = read_json(folder / "config.json").get("transformers_weights")
    if named is not None:
        return _named_files(folder, named)
    for single in (SAFETENSORS, TORCH):
        for name in (single, f"{single}{INDEX}"):
            there = name in listed if listed is not None else (folder / name).is_file()
            if there:
                return [name] if name == single else _shards(folder / name, Path(single).suffix)
    return []


def _named_files(folder: Path, named: object) -> list[str]:
    name = _inside(named, (".safetensors", INDEX), folder / "config.json")
    if not name.endswith(INDEX):
        return [name]
    index = folder / name
    return _shards(index, ".safetensors") if index.is_file() else [name]


def _shards(index: Path, suffix: str) -> list[str]:
    """The files that an index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(
            "weight_map is not an object of tensors and their files", where=str(index), hint=_WHOLE
        )
    return sorted({_inside(name, (suffix,), index) for name in names.values()})


def _inside(name: object, suffixes: tuple[str, ...], where: Path) -> str:
    """A file's name that stays in its folder.

    Raises:
        InputError: for another one: a model must not choose what is read outside of it.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    safe = path and not path.is_absolute() and ".." not in path.parts
    if not safe or not str(path).endswith(suffixes) or any(c in str(path) for c in "\\\0"):
        raise InputError(
            f"a file of weights has a bad name (got {str(name)[:80]!r}, "
            f"need one in the folder that ends in {' or '.join(suffixes)})",
            where=str(where),
            hint="the file is damaged, or not to be trusted",
        )
    return str(path)


def missing_files(folder: Path, names: list[str]) -> list[str]:
    """Those of the weights' files that are not there."""
    return [name for name in names if not (folder / name).is_file()]


def find_weights(folder: Path) -> list[Path]:
    """The files that the weights are in.

    Raises:
        InputError: when there are none, or not all of them.
    """
    names = weight_files(folder)
    if not names:
        raise InputError(_no_weights(folder), where=str(folder), hint=_WHOLE)
    missing = missing_files(folder, names)
    if missing:
        raise InputError(
            f"a file of the checkpoint's weights is missing (got {len(names) - len(missing)} of "
            f"{len(names)} files)",
            where=str(folder / missing[0]),
            hint=_WHOLE,
        )
    for name in names:
        refuse_pointer(folder / name)
    return [folder / name for name in names]


def _no_weights(folder: Path) -> str:
    wanted = f"{SAFETENSORS}, {TORCH} or an index of their shards"
    others = _tensor_files(folder)
    beside = f", and {listed_names(others)} would not be loaded by transformers" if others else ""
    return f"the directory holds no weights (need {wanted}{beside})"


def other_files(folder: Path, used: list[Path]) -> str:
    """A note about safetensors files in the folder that are not the model's; "" without any."""
    others = [name for name in _tensor_files(folder) if folder / name not in used]
    others = [name for name in others if name.endswith(".safetensors")]
    return f"not read, since they are not the model's: {listed_names(others)}" if others else ""


def _tensor_files(folder: Path) -> list[str]:
    found = [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return sorted(path.name for path in found if path.is_file())


def listed_names(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
