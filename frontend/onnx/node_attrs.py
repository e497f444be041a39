"""Attributes of nodes: each is known, or the node is refused by its name."""

from __future__ import annotations

from typing import Any

from .graph import Node, OnnxGraph


def checked_attrs(graph: OnnxGraph, node: Node, **known: Any) -> dict[str, Any]:
    """A node's attributes with defaults filled in.

    Args:
        known: attribute -> its default; a type when it has to be given; a list of the only values
            that can be compiled, the default first; None when it changes nothing here.

    Raises:
        InputError: for an attribute that is not known, missing, or has another value.
    """
    found: dict[str, Any] = {}
    for name, value in node.attrs.items():
        if name not in known:
            raise graph.error(f"{node.label} has the attribute {name}, which is not supported")
        if isinstance(known[name], list) and value not in known[name]:
            raise graph.error(
                f"{node.label} with {name} = {value} cannot be compiled (need {known[name][0]})"
            )
    for name, default in known.items():
        if isinstance(default, type) and name not in node.attrs:
            raise graph.error(f"{node.label} lacks the attribute {name}")
        fallback = default[0] if isinstance(default, list) else default
        found[name] = node.attrs.get(name, fallback)
    return found
