"""Prompts by which schedules are found: a text file, one prompt a line."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morendo.ir.errors import InputError
from morendo.runtime.session import Session


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts, in two halves.

    Attributes:
        tuning: by which a schedule is found: the first prompt of the file, the third and so on.
        held_out: by which it is checked: the second, the fourth and so on.
        sha256: of the texts.
    """

    tuning: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]
    sha256: str


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        InputError: when there are fewer than two, or the file is no UTF-8 text.
    """
    where = str(path)
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError("there is no such file of prompts", where=where) from None
    except UnicodeDecodeError as error:
        message = f"the prompts are not UTF-8 (byte {error.start})"
        raise InputError(message, where=where, hint="convert the file first") from None
    except OSError as error:
        raise InputError(f"cannot read the prompts ({error.strerror})", where=where) from None
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line]
    if len(found) < 2:
        raise InputError(
            f"too few prompts (got {len(found)}, need 2 or more)",
            where=where,
            hint="write one a line: half of them find a schedule, the others check it",
        )
    return found


def encode_prompts(session: Session, texts: Sequence[str], max_tokens: int) -> Prompts:
    """Token ids, in the model's chat template where it has one.

    Raises:
        InputError: when the context has no room for a prompt and its answer.
    """
    encode = session.encode_chat if session.has_chat_template else session.encode
    ids = [tuple(encode(text)) for text in texts]
    for number, (text, tokens) in enumerate(zip(texts, ids, strict=True), 1):
        if len(tokens) + max_tokens > session.context:
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            raise InputError(
                f"prompt {number} and its answer do not fit into the context "
                f"(got {len(tokens)} + {max_tokens} tokens, context {session.context})",
                where=repr(shown),
                hint="shorten it, or give a smaller --max-tokens",
            )
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return Prompts(tuple(ids[::2]), tuple(ids[1::2]), digest)
