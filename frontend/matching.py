"""Which tensor of a checkpoint is which weight of the model, and what is left over.

Nothing is left over in silence. A tensor that lies in the text model and is not used means that
the model computes something else than what was trained: it is refused. Tensors of other parts,
such as a vision tower, are named in a note.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from morendo.ir.errors import InputError

from .model_files import listed_names
from .prequantized import refuse_quantized_tensors
from .torch_export import EmptyModel
from .weights import TensorSource

# Adapters change the layers that they belong to, wherever their tensors are kept.
_ADAPTERS = re.compile(r"(^|[._])(lora|hada|lokr|vera|oft|ia3)(_|\b)", re.IGNORECASE)
_LAYER = re.compile(r"\blayers?\.(\d+)\.|\bh\.(\d+)\.")


@dataclass(frozen=True)
class Names:
    """The tensors of a checkpoint under the model's names.

    Attributes:
        known: the model's name -> the checkpoint's name; also of tensors that are not used.
        notes: what the person should know.
    """

    known: dict[str, str]
    notes: list[str]


def match_names(model: EmptyModel, source: TensorSource, path: Path) -> Names:
    """Find the model's names of all tensors; untie weights that the checkpoint holds apart.

    Checkpoints may leave out the base model's prefix (gpt2, bloom) or use older names; transformers
    keeps the rules.

    Raises:
        InputError: for tensors that the model would ignore although they change what it computes.
    """
    known = _known_names(model.module, source, str(path))
    notes = _tie_or_untie(model, source, known)
    left = {name: stored for name, stored in known.items() if name not in _used(model)}
    left = {n: s for n, s in left.items() if not _is_derived(n, source.shape(s), model)}
    strange = [stored for name, stored in left.items() if _changes_the_model(name, model)]
    taken = [source.dtype(known[name]) for name in model.shapes() if name in known]
    refuse_quantized_tensors(path, strange, taken)
    refuse_unused(strange, str(path))
    if left:
        notes.append(_note(model.module, source, left))
    return Names(known, notes)


def refuse_unused(
    names: list[str], where: str, hint: str = "config.json does not fit the weights"
) -> None:
    """Refuse tensors that the model has no place for.

    Args:
        hint: what to do about them; adapters have their own.

    Raises:
        InputError: when there are any.
    """
    if not names:
        return
    tensors = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    if any(_ADAPTERS.search(name) for name in names):
        hint = "merge the adapter into the model first (merge_and_unload of peft)"
    raise InputError(
        f"checkpoint has {tensors} that the configuration does not use (first: {names[0]})",
        where=where,
        hint=hint,
    )


def _known_names(module: PreTrainedModel, source: TensorSource, where: str) -> dict[str, str]:
    state = module.state_dict()
    rules = [r for r in get_model_conversion_mapping(module) if isinstance(r, WeightRenaming)]
    known = {name: name for name in source.names() if name in state}
    for stored in source.names():
        if stored in state:
            continue
        name = rename_source_key(stored, rules, [], module.base_model_prefix, state)[0]
        other = known.setdefault(name, stored)
        if other != stored and _digest(source, other) != _digest(source, stored):
            raise InputError(
                f"the checkpoint holds two tensors for {name} ({other} and {stored})",
                where=where,
                hint="remove the one that is not the model's",
            )
    return known


def _tie_or_untie(model: EmptyModel, source: TensorSource, known: dict[str, str]) -> list[str]:
    """Where both of two tied weights are stored and differ, neither is dropped."""
    notes = []
    for alias, name in list(model.aliases.items()):
        if alias not in known:
            continue
        if name not in known:
            known[name] = known[alias]
        elif _digest(source, known[alias]) != _digest(source, known[name]):
            model.untie(alias)
            notes.append(
                f"the configuration ties {alias} to {name}, but the checkpoint holds two tensors "
                f"({known[alias]}, {known[name]}): both are used, as transformers does"
            )
    return notes


def _digest(source: TensorSource, stored: str) -> tuple[tuple[int, ...], bytes]:
    """Of a tensor's values, so that no two large ones have to be in memory."""
    return source.shape(stored), sha256(np.ascontiguousarray(source.read(stored)).data).digest()


def _used(model: EmptyModel) -> set[str]:
    return {*model.shapes(), *model.aliases, *model.persistent}


def _is_derived(name: str, shape: tuple[int, ...], model: EmptyModel) -> bool:
    """Whether the model computes a tensor itself: masks and frequencies in older checkpoints.

    A mask has four dimensions; one dimension under the same name would be a bias.
    """
    if name in model.buffers or re.search(r"\b(inv_freq|position_ids)$", name):
        return True
    return bool(
        (re.search(r"\b(attn|attention)\.bias$", name) and len(shape) == 4)
        or (re.search(r"\b(attn|attention)\.masked_bias$", name) and shape in ((), (1,)))
    )


def _changes_the_model(name: str, model: EmptyModel) -> bool:
    """Whether a tensor without a place lies in the text model, or adapts it."""
    if _ADAPTERS.search(name):
        return True
    module = model.module
    if any(re.search(rule, name) for rule in module._keys_to_ignore_on_load_unexpected or ()):
        return False
    if _predicts_further_tokens(name, module):
        return False
    prefix = module.base_model_prefix
    base = getattr(module, prefix, module)
    own = {key for part in (base, module) for key, _ in part.named_children()} - {prefix}
    part, dot, _ = name.removeprefix(f"{prefix}.").partition(".")
    return part in own or not dot


def _predicts_further_tokens(name: str, module: PreTrainedModel) -> bool:
    """Whether a tensor is of a layer behind the last, which guesses the tokens after the next."""
    found = _LAYER.search(name)
    if not found or not getattr(module.config, "num_nextn_predict_layers", 0):
        return False
    return int(found[1] or found[2]) >= module.config.num_hidden_layers


def _note(module: PreTrainedModel, source: TensorSource, left: dict[str, str]) -> str:
    """Count and bytes of the tensors that are not used, and the parts that most belong to."""
    prefix = f"{module.base_model_prefix}."
    parts: Counter[str] = Counter()
    for name, stored in left.items():
        parts[name.removeprefix(prefix).partition(".")[0]] += source.nbytes(stored)
    tensors = "1 tensor" if len(left) == 1 else f"{len(left)} tensors"
    largest = listed_names([part for part, _ in parts.most_common()])
    size = f"{parts.total() / 1e6:.1f} MB"
    return f"not part of the text model and left out: {tensors}, {size}, of {largest}"
