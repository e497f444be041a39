"""Attention that an exporter wrote in primitive ops, found from its last product backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Node
from .heads import HeadMap, HeadReader, Layout
from .lengths import PROBES, Lengths
from .masks import Mask, read_mask

_KEEPS = ("Cast", "Identity", "Dropout")
_PASSED = (*_KEEPS, "Reshape", "Squeeze", "Unsqueeze")
_ON_SCORES = ("Add", "Sub", "Where", "Max", "Min")


@dataclass(frozen=True)
class Attention:
    """A causal attention.

    Attributes:
        node: the node whose first result it is.
        q, k, v: where its operands come from.
        heads: query heads.
        scale: of scores, factors of the operands not among it.
        softcap: 0 for none.
        mask: what is visible.
    """

    node: Node
    q: HeadMap
    k: HeadMap
    v: HeadMap
    heads: int
    scale: float
    softcap: float
    mask: Mask


class AttentionFinder:
    """Attentions of a graph, whichever way they are written.

    Args:
        lengths: of the graph.
        longest: tokens that the model is to take.
    """

    def __init__(self, lengths: Lengths, longest: int) -> None:
        self.lengths = lengths
        self.longest = longest
        self.reader = HeadReader(lengths, longest)
        self._masks: dict[Any, Mask | str] = {}

    def product(self, node: Node) -> Attention:
        """The attention whose last product of probabilities and values is a node.

        Raises:
            InputError: when the product is none of an attention, or not of a causal one.
        """
        softmax = self._softmax(node)
        chain = self._chain(softmax, node)
        product, steps = chain[0], chain[1:]
        scale, softcap = self._scale(steps, node)
        mask = self._mask(product, steps, node)
        heads = self._extents(product.outputs[0])[:-2]
        count = int(np.prod(heads))
        q = self.reader.read(product.inputs[0], self._layout(product.inputs[0], "htd"), node.label)
        k = self.reader.read(product.inputs[1], self._layout(product.inputs[1], "hdt"), node.label)
        v = self.reader.read(node.inputs[1], self._layout(node.inputs[1], "htd"), node.label)
        for name in (product.inputs[1], node.inputs[1]):
            self._check_groups(self._extents(name)[:-2], heads, node)
        return Attention(node, q, k, v, count, scale, softcap, mask)

    def known_mask(
        self, key: Any, operands: Iterable[str], added: Callable[[int], np.ndarray]
    ) -> Mask | str:
        """`read_mask`, once for masks of the same key."""
        if key not in self._masks:
            self._masks[key] = read_mask(self.lengths, operands, added, self.longest)
        return self._masks[key]

    def _extents(self, name: str) -> tuple[int, ...]:
        return self.lengths.at(PROBES[0]).shape(name)

    def _layout(self, name: str, order: str) -> Layout:
        shape = self._extents(name)
        return Layout(int(np.prod(shape[:-2])), shape[-1 if order == "htd" else -2], order)

    def _check_groups(self, shape: tuple[int, ...], heads: tuple[int, ...], node: Node) -> None:
        """Broadcast heads of keys have to be read by query heads side by side."""
        own, count = int(np.prod(shape)), int(np.prod(heads))
        read = np.broadcast_to(np.arange(own).reshape(shape), heads).reshape(-1)
        if (read != np.arange(count) // (count // own)).any():
            raise self._not_known(node, "its heads are grouped in an unknown way")

    def _not_known(self, node: Node, why: str) -> Exception:
        return self.lengths.graph.error(
            f"{node.label} is no causal attention that can be compiled: {why}",
            hint="export a causal language model, with its usual attention",
        )

    def _softmax(self, node: Node) -> Node:
        """The softmax of the first operand, behind casts and what replaces NaN in empty rows."""
        producers = self.lengths.graph.producers
        found = producers.get(node.inputs[0])
        while found is not None and found.op != "Softmax":
            if found.op == "Where":
                guard = producers.get(found.inputs[0])
                guarded = guard is not None and guard.op == "IsNaN"
                found = producers.get(found.inputs[2]) if guarded else None
            else:
                found = producers.get(found.inputs[0]) if found.op in _PASSED else None
        if found is None:
            raise self._not_known(node, "it multiplies two activations, none from a softmax")
        rank = len(self._extents(found.outputs[0]))
        default = -1 if self.lengths.graph.opsets.get("", 0) >= 13 else 1
        if found.attrs.get("axis", default) not in (-1, rank - 1):
            raise self._not_known(node, "its softmax is not over keys")
        return found

    def _chain(self, softmax: Node, node: Node) -> list[Node]:
        """The product of queries and keys, and what is done with scores after it."""
        chain: list[Node] = []
        name = softmax.inputs[0]
        while True:
            found = self.lengths.graph.producers.get(name)
            if found is None:
                raise self._not_known(node, "its scores are no product")
            chain.insert(0, found)
            active = [n for n in found.inputs if n in self.lengths.activations]
            if found.kind == "MatMul" and len(active) == 2:
                return chain
            if len(active) != 1:
                raise self._not_known(node, f"its scores come from {found.label}")
            name = active[0]

    def _scale(self, steps: list[Node], node: Node) -> tuple[float, float]:
        """(scale, softcap) of what is done with scores; masks are looked at elsewhere."""
        scale, softcap, capped, masked = 1.0, 0.0, False, False
        for step in steps:
            factor = self._factor(step)
            if factor is not None and not masked and not softcap:
                scale, softcap = (scale * factor, factor) if capped else (scale * factor, 0.0)
            elif step.kind == "Tanh" and not capped and not masked:
                capped = True
            elif step.kind in _ON_SCORES and (softcap or not capped):
                masked = True
            elif step.kind not in _PASSED:
                raise self._not_known(node, f"{step.label} changes its scores")
        return scale, softcap

    def _factor(self, step: Node) -> float | None:
        """What a node multiplies scores by; None when it does something else."""
        if step.kind not in ("Mul", "Div"):
            return None
        other = [i for i in (0, 1) if step.inputs[i] not in self.lengths.activations]
        value = self.lengths.scalar(step.inputs[other[0]])
        if value is None or (step.kind == "Div" and other[0] == 0):
            return None
        return 1 / value if step.kind == "Div" else value

    def _mask(self, product: Node, steps: list[Node], node: Node) -> Mask:
        operands = [n for s in steps for n in s.inputs if n and n not in self.lengths.activations]
        reshaped = any(s.kind in ("Reshape", "Squeeze", "Unsqueeze") for s in steps)
        rank = len(self._extents(product.outputs[0]))

        def added(tokens: int) -> np.ndarray:
            lead = self.lengths.at(tokens).shape(product.outputs[0])[:-2]
            lead = lead if reshaped else (1,) * (rank - 2)
            zeros = np.zeros((*lead, tokens, tokens), np.float32)
            if not steps:
                return zeros.reshape(-1, tokens, tokens)
            given = {product.outputs[0]: zeros}
            scores = self.lengths.once(tokens).run(steps, given, steps[-1].outputs[0])
            return scores.reshape(-1, tokens, tokens)

        key = tuple((s.kind, *(n for n in s.inputs if n in operands)) for s in steps)
        mask = self.known_mask((key, rank, reshaped), operands, added)
        if isinstance(mask, str):
            raise self._not_known(node, mask)
        return mask
