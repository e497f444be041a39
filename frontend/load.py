"""A model by path or name: a Hugging Face directory, a hub id, a .gguf or an .onnx file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .context import UNKNOWN_CONTEXT, context_of
from .weights import WeightStore

if TYPE_CHECKING:
    import tvm

    from .generation import Generation
    from .tokenizer import ModelTokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model as the compiler gets it.

    Attributes:
        module: raw Relax, main(input_ids, position_ids, *weights) -> logits; see `torch_export`.
        weights: its weights, read when asked for.
        name: directory, hub id or file, without the folders above it.
        architecture: Hugging Face's model type, such as "llama".
        vocabulary: number of logits.
        context: tokens that the model's positions reach.
        tokenizer: None when the model comes without.
        bos: id of the token that texts start with, None when there is none.
        eos: id of the token that ends a text, None when there is none.
        stop: all ids at which generation ends: eos, those of the generation configuration, and
            the chat template's end of a turn.
        add_bos: a text's ids start with bos.
        generation: how tokens are drawn where nothing else is asked for.
        notes: what the person should know, such as tensors that are not part of the model.
    """

    module: tvm.IRModule
    weights: WeightStore
    name: str
    architecture: str
    vocabulary: int
    context: int
    tokenizer: ModelTokenizer | None
    bos: int | None
    eos: int | None
    stop: tuple[int, ...]
    add_bos: bool
    generation: Generation
    notes: tuple[str, ...] = ()


def load_model(model: str | Path, context: int | None = None) -> LoadedModel:
    """Import a model; its weights stay in their files.

    Args:
        model: Hugging Face directory, hub id (read from the local cache when it is there), .gguf
            or .onnx file, or a folder with an .onnx file.
        context: longest text, for rotary frequencies that depend on it; by default the one that an
            artifact has by default.

    Raises:
        InputError: in one line, for whatever is missing, damaged or not supported.
    """
    # torch and transformers take seconds and 300 MB to import: not before they are needed
    from .locate import ONNX, locate

    notes: list[str] = []
    path = locate(str(model), notes)
    if path.suffix == ONNX:
        return _load_onnx(path, notes)
    from . import checkpoint, families, torch_export
    from .tokenizer import load_tokenizer

    with quiet():
        opened = checkpoint.open_checkpoint(path)
        families.check_config(opened.config, str(path))
        vocabulary = int(opened.config.vocab_size)
        tokenizer = load_tokenizer(path, vocabulary, opened.file)
    empty = checkpoint.build_model(opened, context)
    weights = checkpoint.open_weights(opened, empty)
    bos, eos, stop = _special_ids(
        opened.config.bos_token_id, opened.eos, tokenizer, vocabulary, notes
    )
    return LoadedModel(
        module=torch_export.export(empty),
        weights=weights,
        name=path.name if Path(model).expanduser().exists() else str(model),
        architecture=opened.config.model_type,
        vocabulary=vocabulary,
        context=context_of(opened.config),
        tokenizer=tokenizer,
        bos=bos,
        eos=eos,
        stop=stop,
        add_bos=tokenizer is not None and tokenizer.add_bos,
        generation=opened.generation,
        notes=(
            *notes,
            *opened.notes,
            *opened.generation.notes(),
            *(tokenizer.notes() if tokenizer is not None else ()),
            *empty.notes,
            *families.untested(opened.config.model_type),
        ),
    )


def _load_onnx(path: Path, notes: list[str]) -> LoadedModel:
    from .onnx.folder import read_facts
    from .onnx.importer import import_onnx
    from .tokenizer import load_tokenizer

    facts = read_facts(path)
    found = import_onnx(path, facts.context or UNKNOWN_CONTEXT)
    with quiet():
        tokenizer = load_tokenizer(facts.folder, found.vocabulary)
    if not facts.context and found.longest == UNKNOWN_CONTEXT:
        notes.append(
            f"no file beside {path.name} says how many tokens the model takes: give --context"
        )
    bos, eos, stop = _special_ids(facts.bos, facts.eos, tokenizer, found.vocabulary, notes)
    return LoadedModel(
        module=found.module,
        weights=found.weights,
        name=path.name,
        architecture=facts.architecture,
        vocabulary=found.vocabulary,
        context=found.longest,
        tokenizer=tokenizer,
        bos=bos,
        eos=eos,
        stop=stop,
        add_bos=tokenizer is not None and tokenizer.add_bos,
        generation=facts.generation,
        notes=(
            *notes,
            *facts.generation.notes(),
            *(tokenizer.notes() if tokenizer is not None else ()),
        ),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers only reports errors: what is wrong with a model is ours to say."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def write_tokenizer(model: LoadedModel, directory: Path) -> None:
    """Write the model's tokenizer.json, and chat_template.jinja when it has one."""
    if model.tokenizer is not None:
        model.tokenizer.write(directory)


def _special_ids(
    bos: int | None,
    ends: Iterable[int],
    tokenizer: ModelTokenizer | None,
    vocabulary: int,
    notes: list[str],
) -> tuple[int | None, int | None, tuple[int, ...]]:
    """(bos, eos, all ids that end a text); the tokenizer knows better than the configuration.

    Ids that the model has no logit for are left out, with a note.
    """
    own, turn_ends = None, ()
    if tokenizer is not None:
        bos, own, turn_ends = tokenizer.bos, tokenizer.eos, tokenizer.turn_ends
    found = [i for i in (own, *ends, *turn_ends) if i is not None]
    outside = [i for i in (bos, *found) if i is not None and not 0 <= i < vocabulary]
    if outside:
        listed = ", ".join(str(i) for i in dict.fromkeys(outside))
        notes.append(f"special ids outside the vocabulary of {vocabulary}, left out: {listed}")
        bos = None if bos in outside else bos
        found = [i for i in found if i not in outside]
    return bos, (found[0] if found else None), tuple(dict.fromkeys(found))
