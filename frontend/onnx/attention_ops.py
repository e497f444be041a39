"""Attention as one op: com.microsoft's GroupQueryAttention and MultiHeadAttention, ONNX's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .attention import Attention, AttentionFinder
from .graph import Node
from .heads import HeadMap, Layout
from .lengths import PROBES, widened
from .masks import Mask
from .node_attrs import checked_attrs
from .rotary import Frequencies, frequencies_of


def grouped_attention(finder: AttentionFinder, node: Node) -> Attention:
    """com.microsoft::GroupQueryAttention, with its rotation.

    Raises:
        InputError: for what it can do and morendo cannot.
    """
    attrs = checked_attrs(
        finder.lengths.graph, node,
        num_heads=int, kv_num_heads=int, do_rotary=0, rotary_interleaved=0, local_window_size=-1,
        softcap=0.0, scale=0.0, smooth_softmax=[0, -1], qk_output=[0], kv_cache_bit_width=[0],
        k_quant_type=["NONE"], v_quant_type=["NONE"], sliding_window_cache=None,
    )  # fmt: skip
    _refuse_inputs(finder, node, range(11, 20))
    heads, kv_heads = attrs["num_heads"], attrs["kv_num_heads"]
    if node.input(1):
        q = _operand(finder, node, 0, heads)
        k, v = (_operand(finder, node, i, kv_heads) for i in (1, 2))
    else:
        q, k, v = _packed(finder, node, heads, kv_heads)
    _check_lengths(finder, node)
    longest = finder.longest
    if attrs["do_rotary"]:
        turn, rows = _tables(finder, node, 7, 8)
        longest = min(longest, rows)
        q, k = (_turned(finder, node, x, turn, attrs["rotary_interleaved"]) for x in (q, k))
    mask = Mask(max(attrs["local_window_size"], 0), None, longest)
    if node.input(10):
        mask = _combined(mask, _bias(finder, node, node.input(10), mask))
    return Attention(
        node, q, k, v, heads, attrs["scale"] or q.size**-0.5, attrs["softcap"], mask
    )  # fmt: skip


def multi_head_attention(finder: AttentionFinder, node: Node) -> Attention:
    """com.microsoft::MultiHeadAttention that is causal by its attribute or its bias.

    Raises:
        InputError: for what it can do and morendo cannot.
    """
    attrs = checked_attrs(
        finder.lengths.graph, node,
        num_heads=int, scale=0.0, unidirectional=0, mask_filter_value=-10000.0,
    )  # fmt: skip
    _refuse_inputs(finder, node, (3, *range(8, 12)))
    if not node.input(1) or not node.input(2):
        raise _cannot(finder, node, "queries, keys and values in one tensor")
    if node.input(4) and not _all_ones(finder, node.input(4)):
        raise _cannot(finder, node, "a padding mask")
    heads = attrs["num_heads"]
    q, k, v = (_operand(finder, node, i, heads) for i in range(3))
    mask = _causal(finder, node, bool(attrs["unidirectional"]), node.input(5))
    return Attention(node, q, k, v, heads, attrs["scale"] or q.size**-0.5, 0.0, mask)


def onnx_attention(finder: AttentionFinder, node: Node) -> Attention:
    """ONNX's own Attention that is causal by its attribute or its mask.

    Raises:
        InputError: for what it can do and morendo cannot.
    """
    attrs = checked_attrs(
        finder.lengths.graph, node,
        q_num_heads=0, kv_num_heads=0, is_causal=0, scale=0.0, softcap=0.0,
        qk_matmul_output_mode=[0], softmax_precision=None,
    )  # fmt: skip
    _refuse_inputs(finder, node, range(6, 10))
    if attrs["softcap"] and node.input(3):
        raise _cannot(finder, node, "a soft cap together with a mask")
    q, k, v = (
        _operand(finder, node, i, attrs["kv_num_heads"] if i else attrs["q_num_heads"])
        for i in range(3)
    )
    shape = finder.lengths.at(PROBES[0]).shape(node.inputs[0])
    heads = attrs["q_num_heads"] or shape[1]
    mask = _causal(finder, node, bool(attrs["is_causal"]), node.input(3))
    return Attention(
        node, q, k, v, heads, attrs["scale"] or q.size**-0.5, attrs["softcap"], mask
    )  # fmt: skip


ATTENTION_OPS = {
    "com.microsoft::GroupQueryAttention": grouped_attention,
    "com.microsoft::MultiHeadAttention": multi_head_attention,
    "Attention": onnx_attention,
}


def _cannot(finder: AttentionFinder, node: Node, what: str) -> Exception:
    return finder.lengths.graph.error(
        f"{node.label} with {what} cannot be compiled",
        hint="export a causal language model, with its usual attention",
    )


def _refuse_inputs(finder: AttentionFinder, node: Node, unknown: range | tuple[int, ...]) -> None:
    given = [node.input(index) for index in unknown if node.input(index)]
    if given:
        raise _cannot(finder, node, f"the input {given[0]!r}")


def _operand(finder: AttentionFinder, node: Node, index: int, heads: int) -> HeadMap:
    shape = finder.lengths.at(PROBES[0]).shape(node.inputs[index])
    if len(shape) == 3 and heads:
        if shape[2] % heads:
            raise _cannot(finder, node, f"{shape[2]} channels in {heads} heads")
        layout = Layout(heads, shape[2] // heads, "thd")
    elif len(shape) == 4:
        layout = Layout(shape[1], shape[3], "htd")
    else:
        raise _cannot(finder, node, f"operands of shape {list(shape)}")
    return finder.reader.read(node.inputs[index], layout, node.label)


def _packed(
    finder: AttentionFinder, node: Node, heads: int, kv_heads: int
) -> tuple[HeadMap, HeadMap, HeadMap]:
    """Queries, keys and values that lie side by side in one tensor."""
    every = _operand(finder, node, 0, heads + 2 * kv_heads)
    if every.heads != heads + 2 * kv_heads:
        raise _cannot(finder, node, "heads that are repeated")
    starts = [every.start + every.stride * i for i in (0, heads, heads + kv_heads)]
    counts = (heads, kv_heads, kv_heads)
    q, k, v = (replace(every, start=s, heads=c) for s, c in zip(starts, counts, strict=True))
    return q, k, v


def _check_lengths(finder: AttentionFinder, node: Node) -> None:
    """The numbers of keys and the positions that the op is told have to be a whole text's."""
    for index, less in ((5, 1), (6, 0)):
        name = node.input(index)
        values = [finder.lengths.at(n).value(name).reshape(-1) for n in PROBES]
        want = [np.array([n - less]) for n in PROBES]
        if not all(np.array_equal(v, w) for v, w in zip(values, want, strict=True)):
            raise _cannot(finder, node, f"lengths of its own ({name!r})")
    if node.input(9):
        values = [finder.lengths.at(n).value(node.input(9)).reshape(-1) for n in PROBES]
        if not all(np.array_equal(v, np.arange(n)) for v, n in zip(values, PROBES, strict=True)):
            raise _cannot(finder, node, "positions of its own")


def _tables(
    finder: AttentionFinder, node: Node, cos: int, sin: int
) -> tuple[Frequencies, int]:  # fmt: skip
    """What rotary tables mean, and how many positions they have."""
    tables = [finder.lengths.constant(node.input(i)) for i in (cos, sin)]
    if any(table is None or table.ndim != 2 for table in tables):
        raise _cannot(finder, node, "rotary tables that are computed")
    values = [widened(table) for table in tables]
    found = frequencies_of(*values)
    if found is None:
        raise _cannot(finder, node, "rotary tables that are not of one frequency for each channel")
    return found, len(values[0])


def _turned(
    finder: AttentionFinder, node: Node, x: HeadMap, turn: Frequencies, interleaved: int
) -> HeadMap:
    if x.rotary is not None:
        raise _cannot(finder, node, "two rotations")
    width = 2 * len(turn.inv_freq)
    return replace(x, rotary=turn, rotary_dim=width, interleaved=bool(interleaved))


def _all_ones(finder: AttentionFinder, name: str) -> bool:
    if name not in finder.lengths.static:
        return False
    return all((finder.lengths.at(n).value(name) == 1).all() for n in PROBES)


def _causal(finder: AttentionFinder, node: Node, causal: bool, bias: str) -> Mask:
    """The mask of an op that is causal by an attribute, by what is added to scores, or by both."""
    mask = Mask(0, None, finder.longest)
    if bias:
        return _combined(mask, _bias(finder, node, bias, mask if causal else None))
    if not causal:
        raise _cannot(finder, node, "no causal mask")
    return mask


def _bias(finder: AttentionFinder, node: Node, name: str, causal: Mask | None) -> Mask:
    """What is added to scores, or says what is visible; under a causal mask it need not hide."""
    if name not in finder.lengths.static:
        raise _cannot(finder, node, "a mask that depends on the tokens")

    def added(tokens: int) -> np.ndarray:
        value = finder.lengths.once(tokens).value(name)
        value = np.where(value, 0.0, -np.inf) if value.dtype == bool else widened(value)
        scores = np.broadcast_to(value, np.broadcast_shapes(value.shape, (1, tokens, tokens)))
        scores = scores.reshape(-1, tokens, tokens)
        if causal is None:
            return scores
        window = causal.window or tokens
        query, key = np.arange(tokens)[:, None], np.arange(tokens)
        return np.where((key <= query) & (key > query - window), scores, -np.inf)

    mask = finder.known_mask((name, causal), [name], added)
    if isinstance(mask, str):
        raise _cannot(finder, node, f"a mask that is not causal ({mask})")
    return mask


def _combined(mask: Mask, bias: Mask) -> Mask:
    return replace(bias, longest=min(mask.longest, bias.longest))
