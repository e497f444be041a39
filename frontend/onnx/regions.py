"""Parts of a graph between one activation and another, to be run on numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .graph import Node
from .lengths import Lengths


@dataclass(frozen=True)
class Region:
    """Nodes that compute one activation from another and static values.

    Attributes:
        nodes: in order.
        source: the activation that goes in; the result's own name when there are no nodes.
        result: the activation that comes out.
        operands: the static values that are read.
    """

    nodes: tuple[Node, ...]
    source: str
    result: str
    operands: frozenset[str]

    def run(self, lengths: Lengths, tokens: int, array: np.ndarray) -> np.ndarray:
        """The result for this source, at a number of tokens."""
        given = {self.source: array.astype(np.float32)}
        return lengths.at(tokens).run(self.nodes, given, self.result)


def region_before(
    lengths: Lengths, result: str, enter: Callable[[Node], bool], source: str = ""
) -> Region:
    """The largest region that ends in a value, of nodes that may be entered.

    Where it would start at several activations, or at another than `source`, it is empty.
    """
    graph = lengths.graph
    found: dict[int, Node] = {}
    sources: set[str] = set()
    operands: set[str] = set()
    stack, seen = [result], set()
    while stack:
        name = stack.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        node = graph.producers.get(name)
        if name in lengths.static:
            operands.add(name)
        elif name == source or node is None or not enter(node):
            sources.add(name)
        else:
            found[node.index] = node
            stack.extend(node.inputs)
    if len(sources) != 1 or (source and source not in sources):
        return Region((), result, result, frozenset())
    nodes = tuple(found[index] for index in sorted(found))
    return Region(nodes, sources.pop(), result, frozenset(operands))
