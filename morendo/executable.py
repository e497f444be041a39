"""What an artifact's executable has to know of the model's text, found when it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from morendo import __version__
from morendo.chat_form import find_chat_form
from morendo.codegen.build_cache import BuildCache
from morendo.codegen.text_facts import ChatForm, SamplingDefaults, TextFacts
from morendo.codegen.tokenizer import UnsupportedTokenizer, kept_tokenizer
from morendo.frontend import LoadedModel
from morendo.ir.plan import TOKENIZER_TABLES, Plan
from morendo.ir.printable import printable
from morendo.runtime.artifact import TOKENIZER
from morendo.runtime.step_cost import StepCost
from morendo.runtime.tokenizer import Tokenizer


def describe_text(
    loaded: LoadedModel, facts: dict[str, Any], directory: Path, note: Callable[[str], None]
) -> TextFacts:
    """Write the tables of the tokenizer; the rest is compiled into the executable.

    Args:
        loaded: the model.
        facts: "tokenizer" of the manifest.
        directory: the artifact in the making, with the tokenizer's files.
        note: told what the executable cannot do.
    """
    missing = _write_tables(directory)
    if missing:
        note(f"note: the executable takes token ids only ({missing})")
    form = _chat_form(facts, directory) if not missing else ""
    if isinstance(form, str) and form:
        note(f"note: the executable continues plain texts only, {form}")
    return TextFacts(
        name=printable(loaded.name),
        version=__version__,
        bos=loaded.bos if loaded.add_bos else None,
        stops=loaded.stop,
        missing_tokenizer=missing,
        chat=form if isinstance(form, ChatForm) else None,
        missing_chat=form if isinstance(form, str) else "",
        sampling=SamplingDefaults(**loaded.generation.sampling),
    )


def with_step_cost(facts: TextFacts, plan: Plan) -> TextFacts:
    """The same, and what a decode step reads at each level."""
    cost = StepCost.of(plan)
    return replace(facts, level_bytes=cost.level_bytes, weights=cost.weights)


def _write_tables(directory: Path) -> str:
    """Why there are none; "" when there are."""
    source = directory / TOKENIZER
    if not source.exists():
        return "the model has no tokenizer"
    try:
        tables = kept_tokenizer(source.read_text(encoding="utf-8"), BuildCache())
    except UnsupportedTokenizer as error:
        return f"there are no tables for {error}"
    (directory / TOKENIZER_TABLES).write_bytes(tables)
    return ""


def _chat_form(facts: dict[str, Any], directory: Path) -> ChatForm | str:
    tokenizer = Tokenizer(directory, facts)
    if not tokenizer.has_chat_template:
        return ""
    return find_chat_form(tokenizer.render_chat)
