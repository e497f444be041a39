"""Where a model is: a directory, a .gguf file, or a name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from morendo.ir.errors import InputError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]


def locate(model: str) -> Path:
    """The directory or .gguf file that holds the model; a hub id is fetched unless it is cached.

    Raises:
        InputError: when there is nothing there, or not a model.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked_directory(path)
    if path.is_file():
        return _checked_file(path)
    looks_like_file = path.suffix == ".gguf" or model.startswith((".", "/", "~"))
    if looks_like_file or not _HUB_ID.fullmatch(model):
        raise InputError("no such file or directory", where=model, hint=_WHAT)
    return _from_hub(model)


_WHAT = "give a Hugging Face model directory, a .gguf file or a hub id such as owner/name"


def _checked_directory(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    found = sorted(path.glob("*.gguf"))
    hint = f"give the file {found[0]}" if found else _WHAT
    raise InputError("not a model directory (it has no config.json)", where=str(path), hint=hint)


def _checked_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return path
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            return path
    hint = f"give its directory {path.parent}" if path.suffix in (".safetensors", ".bin") else _WHAT
    raise InputError("a single file that is not GGUF", where=str(path), hint=hint)


def _from_hub(model: str) -> Path:
    """The hub model's files in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    wanted = [*_SMALL_FILES, "*.safetensors"]
    try:
        cached = Path(snapshot_download(model, allow_patterns=wanted, local_files_only=True))
        if (cached / "config.json").is_file() and _has_weights(cached):
            return cached
    except Exception:  # not in the cache, or cached in part: ask the hub
        pass
    try:
        path = Path(snapshot_download(model, allow_patterns=wanted))
        if not _has_weights(path):
            path = Path(snapshot_download(model, allow_patterns=[*_SMALL_FILES, "*.bin"]))
    except RepositoryNotFoundError:
        raise InputError(
            "no such file or directory here, and no such public model on the hub",
            where=model,
            hint=_WHAT,
        ) from None
    except Exception as error:  # httpx, OSError and the hub's own types
        raise InputError(
            f"no such file or directory, and the hub cannot be reached ({type(error).__name__})",
            where=model,
            hint="check the name and the network, or give a local directory",
        ) from None
    return _checked_directory(path)


def _has_weights(path: Path) -> bool:
    return any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
