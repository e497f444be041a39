"""Where a model is: a directory, a .gguf or .onnx file, or a name on the Hugging Face hub."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from morendo.ir.errors import InputError

from .model_files import ADAPTER, read_json, refuse_pointer, weight_files

ONNX = ".onnx"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def locate(model: str, notes: list[str]) -> Path:
    """The directory, .gguf or .onnx file that holds the model; a hub id is fetched unless cached.

    Args:
        model: a path or a hub id.
        notes: gets what the person should know of the copy in the cache.

    Raises:
        InputError: when there is nothing there, or not a model.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked_directory(path)
    if path.is_file():
        return _checked_file(path)
    looks_like_file = path.suffix in (".gguf", ONNX) or model.startswith((".", "/", "~"))
    if looks_like_file or not _HUB_ID.fullmatch(model):
        raise InputError("no such file or directory", where=model, hint=_WHAT)
    from .hub import fetch

    return _checked_directory(fetch(model, notes))


_WHAT = "give a Hugging Face model directory, a .gguf or .onnx file, or a hub id (owner/name)"


def _checked_directory(path: Path) -> Path:
    if (path / "config.json").is_file() and weight_files(path):
        return path
    from .onnx.folder import onnx_file

    found_onnx = onnx_file(path)
    if found_onnx is not None:
        return found_onnx
    if (path / "config.json").is_file():
        return path  # its weights are missing, which is said where they are looked for
    if (path / ADAPTER).is_file():
        raise _only_an_adapter(path)
    found = sorted(path.glob("*.gguf"))
    hint = f"give the file {shlex.quote(str(found[0]))}" if found else _WHAT
    raise InputError("not a model directory (it has no config.json)", where=str(path), hint=hint)


def _only_an_adapter(path: Path) -> InputError:
    base = read_json(path / ADAPTER).get("base_model_name_or_path")
    into = f"into its base model, {base[:80]}" if isinstance(base, str) else "into its base model"
    return InputError(
        f"an adapter without its model ({ADAPTER} and no config.json)",
        where=str(path),
        hint=f"merge it {into}, first (merge_and_unload of peft)",
    )


def _checked_file(path: Path) -> Path:
    refuse_pointer(path)
    if path.suffix in (".gguf", ONNX):
        return path
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            return path
    of_checkpoint = path.suffix in (".safetensors", ".bin")
    hint = f"give its directory {shlex.quote(str(path.parent))}" if of_checkpoint else _WHAT
    raise InputError("a single file that is neither GGUF nor ONNX", where=str(path), hint=hint)
