"""A pattern's program as a table: one row a state, one column a class of characters.

A state is the list of places in the program where a match may go on, most wanted first: the
simulation of a backtracking matcher that Thompson and Pike describe, worked out for every class of
characters beforehand. Characters that all sets of all patterns treat alike are one class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .code_points import COUNT
from .errors import UnsupportedTokenizer
from .pattern import Program

_MOST_CLASSES, _MOST_STATES = 254, 4096
_PAGE = 256


def partition(programs: Sequence[Program]) -> tuple[np.ndarray, np.ndarray]:
    """Classes of characters that no set of the programs tells apart.

    Returns:
        the class of each code point, uint8 [0x110000], and a code point of each class.
    """
    classes = np.zeros(COUNT, np.int64)
    for program in programs:
        for members in program.sets:
            _, classes = np.unique(2 * classes + members, return_inverse=True)
    count = int(classes.max()) + 1
    if count > _MOST_CLASSES:
        raise UnsupportedTokenizer(f"a pattern with {count} kinds of characters")
    _, samples = np.unique(classes, return_index=True)
    return classes.astype(np.uint8), samples


def pages(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table of code points in pages of 256, equal pages once: page numbers and pages."""
    found, numbers = np.unique(classes.reshape(-1, _PAGE), axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.uint16), found


def tabulate(program: Program, samples: np.ndarray) -> np.ndarray:
    """The transitions, uint16 [states, classes + 1]; the last column is the end of the text.

    An entry is 2 * next state + whether a match ends before this character. State 0 is where
    nothing can match any more, state 1 the start.
    """
    ends = len(samples)
    numbers: dict[tuple[int, ...], int] = {(): 0, (0,): 1}
    rows = [[0] * (ends + 1)]
    waiting: list[tuple[int, ...]] = [(0,)]
    while waiting:
        state = waiting.pop(0)
        row = []
        for kind in range(ends + 1):
            sample = None if kind == ends else int(samples[kind])
            following, matched = _step(program, state, sample)
            if following not in numbers:
                numbers[following] = len(numbers)
                waiting.append(following)
            row.append(2 * numbers[following] + matched)
        rows.append(row)
        if len(numbers) > _MOST_STATES:
            raise UnsupportedTokenizer("a pattern with too many states")
    if rows[1][ends] & 1 or any(entry & 1 for entry in rows[1]):
        raise UnsupportedTokenizer("a pattern that matches an empty text")
    return np.array(rows, np.uint16)


def _step(
    program: Program, state: tuple[int, ...], character: int | None
) -> tuple[tuple[int, ...], bool]:
    """The state behind `character` (None: the end of the text), and whether a match ends here."""
    following: dict[int, None] = {}  # in order, each once
    seen: set[int] = set()
    stack = list(reversed(state))
    while stack:
        place = stack.pop()
        if place in seen:
            continue
        seen.add(place)
        operation, a, b = program.code[place]
        if operation == "match":
            return tuple(following), True  # what is wanted less cannot win any more
        if operation == "split":
            stack += [b, a]
        elif operation == "jump":
            stack.append(a)
        elif character is None:
            if operation == "ahead" and b:
                stack.append(place + 1)
        elif program.sets[a][character]:
            if operation == "ahead":
                stack.append(place + 1)
            else:
                following[place + 1] = None
    return tuple(following), False
