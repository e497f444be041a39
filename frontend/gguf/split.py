"""A model in one .gguf file, or in several as llama.cpp's gguf-split writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morendo.ir.errors import InputError

from .header import Header, TensorInfo, read_header

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_KEYS = {"split.no", "split.count", "split.tensors.count"}


@dataclass(frozen=True)
class GgufFile:
    """A model's metadata and tensors, from all of its files.

    Attributes:
        path: the file that was asked for.
        architecture: llama.cpp's name for it, such as "llama".
        metadata: all keys.
        tensors: by llama.cpp's name.
    """

    path: Path
    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def open_gguf(path: Path) -> GgufFile:
    """Read the headers of a model; any part of a split model stands for all of them.

    Raises:
        InputError: for damaged files, something that is not a model, missing parts, and parts of
            different models.
    """
    first = read_header(path)
    parts = _parts(first)
    metadata = parts[0].metadata
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for info in part.tensors:
            if info.name in tensors:
                raise _disagree(part, f"tensor {info.name} is in another part too")
            tensors[info.name] = info
    if len(parts) > 1:
        _check_total(parts, len(tensors))
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise InputError(
            "the GGUF file has no general.architecture",
            where=str(path),
            hint="give the file of a model",
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise InputError(
            f"the GGUF file holds no model (general.type is {kind!r})",
            where=str(path),
            hint="give the model's own file; an adapter has to be merged into it first",
        )
    return GgufFile(path, architecture, metadata, tensors)


def part_paths(path: Path) -> list[Path]:
    """Where the files of a model are, by the name of one of them."""
    name = _PART.fullmatch(path.name)
    if name is None:
        return [path]
    count = int(name["count"])
    names = (f"{name['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1))
    return [path.with_name(n) for n in names]


def _number(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise InputError(
            f"GGUF key {key} is {value!r}, need a number of parts", where=str(header.path)
        )
    return value


def _parts(first: Header) -> list[Header]:
    """The headers of all parts, in order."""
    count = _number(first, "split.count", 1)
    if count <= 1:
        return [first]
    own = _number(first, "split.no", 0) + 1
    name = _PART.fullmatch(first.path.name)
    if name is None or (int(name["number"]), int(name["count"])) != (own, count):
        raise InputError(
            f"part {own} of a model in {count} files has another name than its header says",
            where=str(first.path),
            hint=f"name it ...-{own:05d}-of-{count:05d}.gguf, beside the other parts",
        )
    paths = part_paths(first.path)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"parts of the model are missing (got {count - len(missing)} of {count} files; "
            f"missing: {missing[0]}{more})",
            where=str(first.path),
            hint="put all parts into one folder",
        )
    parts = [first if i + 1 == own else read_header(path) for i, path in enumerate(paths)]
    for i, part in enumerate(parts):
        _check_part(parts[0], part, i, count)
    return parts


def _check_part(lead: Header, part: Header, number: int, count: int) -> None:
    """A part knows its place; what it repeats of the first part's metadata is the same."""
    found = _number(part, "split.no", 0), _number(part, "split.count", 1)
    if found != (number, count):
        raise _disagree(part, f"it says part {found[0] + 1} of {found[1]}")
    for key, value in part.metadata.items():
        if key not in _KEYS and lead.metadata.get(key, value) != value:
            raise _disagree(part, f"{key} differs from the first part's")


def _check_total(parts: list[Header], found: int) -> None:
    for part in parts:
        total = _number(part, "split.tensors.count", found)
        if total != found:
            raise _disagree(part, f"the parts have {found} tensors, it says {total}")


def _disagree(part: Header, why: str) -> InputError:
    return InputError(
        f"the parts are not of one model ({why})",
        where=str(part.path),
        hint="download all parts again, of one revision",
    )
