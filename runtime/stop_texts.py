"""Texts that end a generation, wherever the borders of tokens and of pieces are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from morendo.ir.errors import InputError
from morendo.runtime.tokenizer import Tokenizer


def split_stop(stop: str | int | Sequence[str | int]) -> tuple[set[int], list[str]]:
    """Token ids and texts of a `stop` argument.

    Raises:
        InputError: for an empty text, and for what is neither text nor token id.
    """
    ids: set[int] = set()
    texts: list[str] = []
    for item in stop if isinstance(stop, Iterable) and not isinstance(stop, str) else [stop]:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, int | np.integer) and not isinstance(item, bool):
            ids.add(int(item))
        else:
            raise InputError(f"stop must be texts or token ids (got {item!r})")
    if "" in texts:
        raise InputError("a stop text must not be empty")
    return ids, texts


def cut_before(
    pieces: Iterator[str], texts: list[str], stopped: Callable[[], None]
) -> Iterator[str]:
    """The text before that one of `texts` which is complete first.

    What may be the start of one is held back until it turns out to be none.

    Args:
        pieces: of the whole text.
        texts: none of them empty.
        stopped: is called when one was found.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.find(text) + len(text), held.find(text)) for text in texts if text in held]
        if found:
            stopped()
            _, start = min(found)
            if start:
                yield held[:start]
            return
        keep = max((_overlap(held, text) for text in texts), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def before_text(
    tokens: Iterator[int], texts: list[str], tokenizer: Tokenizer, stopped: Callable[[], None]
) -> Iterator[int]:
    """Tokens before those of the character that completes one of `texts`.

    Args:
        tokens: of the whole text.
        texts: none of them empty.
        tokenizer: decodes them.
        stopped: is called when one was found.
    """
    ids: list[int] = []
    given = 0
    seen = ""

    def feed() -> Iterator[int]:
        for token in tokens:
            ids.append(token)
            yield token

    for piece in tokenizer.stream(feed()):
        seen += piece
        if any(text in seen for text in texts):
            stopped()
            yield from _up_to_text(ids, given, texts, tokenizer)
            return
        seen = seen[-max(map(len, texts)) :]
        yield from ids[given:]
        given = len(ids)
    yield from ids[given:]


def _up_to_text(ids: list[int], given: int, texts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Of `ids`, which contain one of `texts`, those from `given` to the last whole character."""
    decoded = [tokenizer.decode(ids[:count]) for count in range(given, len(ids) + 1)]
    end = next(i for i, whole in enumerate(decoded) if any(text in whole for text in texts))
    kept = [i for i in range(end) if decoded[end].startswith(decoded[i])]
    return ids[given : given + max(kept, default=0)]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` starts with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
