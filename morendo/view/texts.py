"""Texts of a page: each once, compressed, as its script wants them."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator

_FUNCTION = re.compile(r"^    @(?:R\.function|T\.prim_func).*$", re.MULTILINE)
_NAME = re.compile(r"^    def (\w+)\(", re.MULTILINE)


class Texts:
    """Collects texts and gives their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []

    def add(self, text: str) -> int:
        """The number of a text."""
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
        return number

    def __getitem__(self, number: int) -> str:
        return self._texts[number]

    def compressed(self) -> list[str]:
        """zlib streams in base64, by number."""
        return [
            base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")
            for text in self._texts
        ]


def functions_of(module: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each function in the text of a module."""
    starts = [match.start() for match in _FUNCTION.finditer(module)]
    for start, end in zip(starts, [*starts[1:], len(module)], strict=True):
        text = module[start:end].rstrip() + "\n"
        name = _NAME.search(text)
        if name:
            yield name.group(1), re.sub("^    ", "", text, flags=re.MULTILINE)
