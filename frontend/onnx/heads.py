"""Where the queries, keys or values of an attention come from, and how they were rotated.

Between a projection (or a norm) and the product of an attention, exporters reshape, transpose, cut,
rotate, scale, repeat heads and append to an empty cache. All of it is linear, so running that part
of the graph on a few numbers tells which features of its source each head reads, and by which
angles they are turned, however it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .graph import MICROSOFT, Node
from .lengths import PROBES, Lengths
from .regions import Region, region_before
from .rotary import Frequencies, frequencies_of

_MOVES = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Neg", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_ROTATIONS = {"RotaryEmbedding", f"{MICROSOFT}::RotaryEmbedding"}
_TABLE_ROWS = 256


@dataclass(frozen=True)
class Layout:
    """How an operand is laid out: its axes are (heads..., tokens, channels).

    Attributes:
        heads: number of heads.
        size: channels of a head.
        order: "htd" head-major, "hdt" with tokens last, "thd" token-major with all heads in a row.
    """

    heads: int
    size: int
    order: str

    def split(self, array: np.ndarray, tokens: int) -> np.ndarray:
        """The operand as (heads, tokens, channels)."""
        if self.order == "thd":
            return array.reshape(tokens, self.heads, self.size).transpose(1, 0, 2)
        if self.order == "hdt":
            return array.reshape(self.heads, self.size, tokens).transpose(0, 2, 1)
        return array.reshape(self.heads, tokens, self.size)


@dataclass(frozen=True)
class HeadMap:
    """An operand of an attention in terms of the activation that it is made of.

    Attributes:
        source: name of the activation.
        token_axis: of the source; its other axes, flattened, are its features. The first axis that
            is not 1 may hold several rows of each token.
        heads: distinct heads; each is read by as many query heads as the others.
        size: channels of a head.
        start: feature of the first head's first channel.
        stride: features from one head to the next.
        factor: of all values.
        rotary: angles by which channels are turned, None for none.
        rotary_dim: leading channels that are turned.
        interleaved: channel 2i turns with 2i + 1, not i with i + rotary_dim / 2.
        longest: positions that the graph's tables have.
    """

    source: str
    token_axis: int
    heads: int
    size: int
    start: int
    stride: int
    factor: float
    rotary: Frequencies | None = None
    rotary_dim: int = 0
    interleaved: bool = False
    longest: int = 1 << 30


class HeadReader:
    """Head maps of a graph's attention operands.

    Args:
        lengths: of the graph.
        longest: tokens that the graph's tables reach.
    """

    def __init__(self, lengths: Lengths, longest: int) -> None:
        self.lengths = lengths
        self.longest = longest

    def read(self, name: str, layout: Layout, label: str) -> HeadMap:
        """The map of an operand.

        Args:
            label: the attention's node, for messages.

        Raises:
            InputError: when the operand is not made of one activation in a known way.
        """
        region = region_before(self.lengths, name, self._enters)
        axis = self._token_axis(region.source)
        if axis is None:
            raise self._unknown(label, f"{region.source!r} has no axis of tokens")
        tokens = PROBES[0]
        features = int(np.prod(self._shape(region, tokens, axis)[1:], dtype=np.int64))
        ones = self._run(region, layout, axis, np.ones((tokens, features)))
        factor = float(ones[0, 0, 0])
        if factor == 0 or not np.allclose(ones[:, 0], factor, rtol=1e-5):
            raise self._unknown(label, "its channels have different factors")
        index = self._run(region, layout, axis, np.tile(np.arange(features) + 1.0, (tokens, 1)))
        places = index[:, 0] / factor - 1
        picked = np.rint(places).astype(np.int64)
        if np.abs(places - picked).max() > 0.01:
            raise self._unknown(label, "its channels mix features")
        heads, start, stride = self._regular(picked, label)
        plain = HeadMap(region.source, axis, heads, layout.size, start, stride, factor)
        return self._with_rotation(plain, region, layout, picked, features, label)

    def _enters(self, node: Node) -> bool:
        """Whether a node moves, rotates or scales."""
        if node.kind in _MOVES or node.kind in _ROTATIONS:
            return True
        dynamic = [name for name in node.inputs if name and name not in self.lengths.static]
        if node.kind in ("Add", "Sub"):
            return len(dynamic) == 2
        if node.kind not in ("Mul", "Div") or len(dynamic) != 1:
            return False
        other = next(name for name in node.inputs if name != dynamic[0])
        return other in self.lengths.varying or self.lengths.scalar(other) is not None

    def _token_axis(self, name: str) -> int | None:
        dims = self.lengths.dims(name)
        axes = [axis for axis, (slope, _) in enumerate(dims) if slope]
        slope, start = dims[axes[0]] if len(axes) == 1 else (0, 0)
        first = slope > 0 and all(dim == (0, 1) for dim in dims[: axes[0]])
        return axes[0] if start == 0 and (slope == 1 or first) else None

    def _shape(self, region: Region, tokens: int, axis: int) -> tuple[int, ...]:
        """The source's dimensions with the tokens in front, rows of one token after them."""
        shape = self.lengths.at(tokens).shape(region.source)
        return (tokens, shape[axis] // tokens, *shape[:axis], *shape[axis + 1 :])

    def _run(self, region: Region, layout: Layout, axis: int, features: np.ndarray) -> np.ndarray:
        """The operand (heads, tokens, channels) for features (tokens, F) of the source."""
        tokens = len(features)
        _, rows, *rest = self._shape(region, tokens, axis)
        source = np.moveaxis(features.reshape(tokens * rows, *rest), 0, axis)
        return layout.split(region.run(self.lengths, tokens, source), tokens)

    def _regular(self, picked: np.ndarray, label: str) -> tuple[int, int, int]:
        """(distinct heads, start, stride) of the features [heads, channels] that heads read."""
        starts = picked[:, 0]
        if not (picked == starts[:, None] + np.arange(picked.shape[1])).all():
            raise self._unknown(label, "a head's channels are not in order")
        kept = starts[np.concatenate([[True], np.diff(starts) != 0])]
        strides = np.unique(np.diff(kept))
        repeats = len(starts) // len(kept)
        same = len(starts) == repeats * len(kept) and (starts == np.repeat(kept, repeats)).all()
        if len(strides) > 1 or not same or (len(strides) and strides[0] < picked.shape[1]):
            raise self._unknown(label, "its heads are not in order")
        stride = int(strides[0]) if len(strides) else picked.shape[1]
        return len(kept), int(starts[0]), stride

    def _with_rotation(
        self, plain: HeadMap, region: Region, layout: Layout, picked: np.ndarray,
        features: int, label: str,
    ) -> HeadMap:  # fmt: skip
        """The map with its rotation, checked against the graph on random numbers."""
        longest = min(self.longest, self._rows(region))
        tokens = min(_TABLE_ROWS, longest)
        random = np.random.default_rng(0).uniform(0.5, 1.5, (tokens, features))
        got = self._run(region, layout, plain.token_axis, random) / plain.factor
        x = random[:, picked].transpose(1, 0, 2)  # (heads, tokens, channels)
        changed = np.nonzero(np.abs(got - x).max(axis=(0, 1)) > 1e-4)[0]
        if not len(changed):
            return plain
        width = int(changed[-1]) + 1
        stored = self._vectors(region)
        for interleaved in (False, True):
            for size in dict.fromkeys((width + width % 2, layout.size)):
                found = _rotation(x, got, size, interleaved, stored)
                if found is not None:
                    return replace(
                        plain, rotary=found, rotary_dim=size, interleaved=interleaved,
                        longest=longest,
                    )  # fmt: skip
        raise self._unknown(label, "it is changed by position, but not by a rotation")

    def _rows(self, region: Region) -> int:
        """Positions that the stored tables behind a region's static operands have."""
        shapes = map(self.lengths.graph.initializers.shape, self.lengths.leaves(region.operands))
        rows = [shape[0] for shape in shapes if len(shape) == 2 and min(shape) > 1]
        return min(rows, default=1 << 30)

    def _vectors(self, region: Region) -> list[np.ndarray]:
        """Small stored tensors behind a region's static operands, one of which may be inv_freq."""
        stored = self.lengths.graph.initializers
        names = {n for n in self.lengths.leaves(region.operands) if stored.is_float(n)}
        small = sorted(n for n in names if 1 <= np.prod(stored.shape(n)) <= 1024)
        return [np.asarray(stored.read(n), np.float32).reshape(-1) for n in small]

    def _unknown(self, label: str, why: str) -> Exception:
        return self.lengths.graph.error(
            f"an operand of the attention {label} is not understood ({why})",
            hint="export the model with another attention implementation",
        )


def _rotation(
    x: np.ndarray, y: np.ndarray, width: int, interleaved: bool, stored: list[np.ndarray]
) -> Frequencies | None:
    """The rotation of the first `width` channels that takes x to y, None when none does."""
    first, second = slice(0, width // 2), slice(width // 2, width)
    if interleaved:
        first, second = slice(0, width, 2), slice(1, width, 2)
    a, b, c, d = x[..., first], x[..., second], y[..., first], y[..., second]
    if a.shape != b.shape or not np.allclose(y[..., width:], x[..., width:], atol=1e-4):
        return None
    norm = a * a + b * b
    cos, sin = (a * c + b * d) / norm, (a * d - b * c) / norm
    alike = np.abs(cos - cos[:1]).max() < 1e-3 and np.abs(sin - sin[:1]).max() < 1e-3
    found = frequencies_of(cos[0], sin[0], stored) if alike else None
    # One factor of all channels is the map's own: here only turns are left.
    return found if found is not None and found.scaling == 1 else None
