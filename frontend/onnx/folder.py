"""What lies beside an .onnx file: the model's kind, its context, ids of special tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from morendo.frontend.generation import GENERATION_CONFIG, Generation, from_config
from morendo.frontend.model_files import read_json
from morendo.ir.errors import InputError

GENAI = "genai_config.json"


@dataclass(frozen=True)
class FolderFacts:
    """What the configuration files of a model's folder say.

    Attributes:
        folder: where they and the tokenizer are.
        architecture: "onnx" when no file says it.
        context: tokens; 0 when no file says it.
        bos: None when no file says it.
        eos: ids that end a text.
        generation: how tokens are drawn.
    """

    folder: Path
    architecture: str
    context: int
    bos: int | None
    eos: tuple[int, ...]
    generation: Generation


def onnx_file(folder: Path) -> Path | None:
    """The .onnx file of a folder without a checkpoint; None when it holds none.

    Raises:
        InputError: when it cannot be told which of several it is.
    """
    named = _section(_section(read_json(folder / GENAI), "model"), "decoder").get("filename")
    if isinstance(named, str) and (folder / named).is_file():
        return folder / named
    for place in (folder, folder / "onnx"):
        found = sorted(place.glob("*.onnx"))
        if (place / "model.onnx").is_file() or len(found) == 1:
            return place / "model.onnx" if (place / "model.onnx").is_file() else found[0]
        if found:
            raise InputError(
                f"the folder holds {len(found)} .onnx files, none called model.onnx",
                where=str(place),
                hint=f"give one of them, such as {found[0]}",
            )
    return None


def read_facts(path: Path) -> FolderFacts:
    """Read the files in the folder of an .onnx file, or in the one above, as optimum has it.

    Raises:
        InputError: for a file that is no JSON object.
    """
    folder = path.parent
    known = ("config.json", GENAI, "tokenizer.json")
    if not any((folder / name).is_file() for name in known) and folder.name == "onnx":
        folder = folder.parent
    genai = _section(read_json(folder / GENAI), "model")
    config = read_json(folder / "config.json")
    generation = read_json(folder / GENERATION_CONFIG)
    eos = [i for facts in (genai, config, generation) for i in _ids(facts.get("eos_token_id"))]
    bos = _ids(genai.get("bos_token_id")) or _ids(config.get("bos_token_id"))
    kind = config.get("model_type") or genai.get("type")
    return FolderFacts(
        folder=folder,
        architecture=kind if isinstance(kind, str) else "onnx",
        context=_context(genai, config),
        bos=bos[0] if bos else None,
        eos=tuple(dict.fromkeys(eos)),
        generation=_generation(folder, generation),
    )


def _generation(folder: Path, facts: dict[str, Any]) -> Generation:
    """What generation_config.json says, or else the search settings of onnxruntime-genai."""
    if facts:
        return from_config(facts, folder)
    search = _section(read_json(folder / GENAI), "search")
    return replace(from_config(search, folder), source=GENAI)


def _section(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found = facts.get(name)
    return found if isinstance(found, dict) else {}


def _context(genai: dict[str, Any], config: dict[str, Any]) -> int:
    names = ("max_position_embeddings", "n_positions", "seq_length")
    values = [genai.get("context_length"), *(config.get(name) for name in names)]
    return next((v for v in values if isinstance(v, int) and v > 0), 0)


def _ids(value: Any) -> list[int]:
    """One id, a list of ids or nothing, as a list."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
