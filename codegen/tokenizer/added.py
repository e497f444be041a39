"""Added tokens (<|im_start|> and the like), which are found before a text is split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import UnsupportedTokenizer
from .tables import Fact, Section

_STRIPS_BEFORE, _STRIPS_BEHIND = 1, 2


class _Node:
    def __init__(self) -> None:
        self.edges: dict[int, _Node] = {}
        self.added = -1


def added_sections(
    tokens: Sequence[Mapping[str, Any]], normalize: Callable[[str], str]
) -> tuple[dict[Fact, int], dict[Section, np.ndarray]]:
    """Two tries over bytes: tokens found in the text as it is, and in the normalized text.

    Raises:
        UnsupportedTokenizer: for tokens that have to be whole words, or are nothing once they are
            normalized: the library finds those between all characters.
    """
    roots = {False: _Node(), True: _Node()}
    rows = []
    for index, token in enumerate(tokens):
        if token.get("single_word"):
            raise UnsupportedTokenizer(f"the added token {token['content']!r} with single_word")
        text = normalize(token["content"]) if token["normalized"] else token["content"]
        if not text and token["content"]:
            raise UnsupportedTokenizer(
                f"the added token {token['content']!r}, normalized to nothing"
            )
        node = roots[bool(token["normalized"])]
        for byte in text.encode():
            node = node.edges.setdefault(byte, _Node())
        if text:
            node.added = index
        flags = _STRIPS_BEFORE * token["lstrip"] + _STRIPS_BEHIND * token["rstrip"]
        rows.append((token["id"], flags))
    nodes: list[_Node] = []
    facts = {
        Fact.RAW_TRIE: _number(roots[False], nodes),
        Fact.NORMALIZED_TRIE: _number(roots[True], nodes),
    }
    return facts, {Section.ADDED: np.array(rows, np.int32).reshape(-1, 2), **_arrays(nodes)}


def _number(root: _Node, nodes: list[_Node]) -> int:
    """Append a trie's nodes, the root first; its number, -1 for an empty one."""
    if not root.edges:
        return -1
    first = len(nodes)
    nodes.append(root)
    at = first
    while at < len(nodes):
        nodes.extend(nodes[at].edges.values())
        at += 1
    return first


def _arrays(nodes: list[_Node]) -> dict[Section, np.ndarray]:
    numbers = {id(node): i for i, node in enumerate(nodes)}
    edges = [sorted(node.edges.items()) for node in nodes]
    return {
        Section.NODE_STARTS: np.cumsum([0, *map(len, edges)]).astype(np.uint32),
        Section.NODE_IDS: np.array([node.added for node in nodes], np.int32),
        Section.EDGE_BYTES: np.array([b for e in edges for b, _ in e], np.uint8),
        Section.EDGE_NODES: np.array([numbers[id(n)] for e in edges for _, n in e], np.uint32),
    }
