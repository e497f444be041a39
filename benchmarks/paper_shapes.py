"""The shapes of PMPD's NPU figure (arXiv 2410.13461) on a described machine, beside its bars.

    python benchmarks/paper_shapes.py targets/*/npu.toml

Nothing is executed: `morendo simulate`'s model is given the matrices of the paper's three models.
The paper's machine is an accelerator for language models, its bars are of the whole figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from morendo.simulate import (
    Answer,
    DeviceDescription,
    LinearWork,
    Prediction,
    StepWork,
    float16_work,
    predict,
    read_device,
)
from morendo.terminal import table

HEAD_BITS, TILE, TILES_AT_A_TIME, CHUNK = 8, 32, 2, 256
SCALES = 8 / 32  # bits of a weight: compact scale and zero of a group of 32
SWITCHES = (0.5, 0.25)
"""Parts of an answer that are read with the higher bits."""

PAPER = {"uniform": "3.5-5.3", "scheduled": "3.8-8.0"}
TASKS = {"CNN/DM-like": (900, 128), "DialogSum-like": (250, 64), "IWSLT-like": (60, 60)}
"""Tokens of prompt and answer, our guess of what such texts have."""


@dataclass(frozen=True)
class Shape:
    """A decoder: square attention matrices, a gated or a plain MLP, and the paper's bits."""

    layers: int
    hidden: int
    mlp: int
    gated: bool
    heads: int
    vocabulary: int
    bits: tuple[int, int]

    def matrices(self) -> Iterator[tuple[int, int]]:
        """(rows, columns) of those of a layer."""
        yield 3 * self.hidden, self.hidden
        yield self.hidden, self.hidden
        yield (2 if self.gated else 1) * self.mlp, self.hidden
        yield self.hidden, self.mlp

    def work(self, bits: int) -> StepWork:
        """A token's work with the layers read in so many bits, the cache in 8."""
        layer = [_linear(rows, columns, bits) for rows, columns in self.matrices()]
        head = _linear(self.vocabulary, self.hidden, HEAD_BITS)
        elements = self.layers * (9 * self.hidden + 1.25 * self.mlp)
        attended = self.layers * 2 * self.hidden
        cached = self.layers * 2 * (self.hidden + 4 * self.heads)
        return StepWork((*(layer * self.layers), head), elements, attended, cached)


def _linear(rows: int, columns: int, bits: int) -> LinearWork:
    nbytes = rows * (columns * (bits + SCALES) / 8 + 2)
    piece = nbytes * min(TILES_AT_A_TIME * TILE / rows, 1)
    return LinearWork({str(bits): rows * columns}, nbytes, piece)


SHAPES = {
    "Vicuna-7B": Shape(32, 4096, 11008, True, 32, 32000, (3, 2)),
    "MobileLLaMA-1.4B": Shape(24, 2048, 5632, True, 16, 32000, (4, 3)),
    "Phi-1.5": Shape(24, 2048, 8192, False, 32, 51200, (4, 3)),
}


def compare(device: DeviceDescription, shape: Shape, prompt: int, tokens: int) -> list[Prediction]:
    """float16, the higher bits, and each switch to the lower ones."""
    high, low = (shape.work(bits) for bits in shape.bits)
    half, answer = float16_work(high, 1), Answer(prompt, tokens, CHUNK)
    found = [predict(device, lambda _: half, answer), predict(device, lambda _: high, answer)]
    for part in SWITCHES:
        last = round(part * tokens)
        found.append(predict(device, lambda t, last=last: high if t < last else low, answer))
    return found


def main() -> None:
    """Print the table in Markdown's form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npu", type=Path, help="a description for morendo simulate")
    device = read_device(parser.parse_args().npu)
    rows = []
    for name, shape in SHAPES.items():
        for task, (prompt, tokens) in TASKS.items():
            half, *others = compare(device, shape, prompt, tokens)
            speedups = [f"{half.decode / one.decode:.2f}" for one in others]
            gain = f"{others[0].decode / others[-1].decode:.2f}"
            whole = f"{half.seconds / others[-1].seconds:.2f}"
            arrow = "{} -> {}".format(*shape.bits)
            rows.append((name, arrow, task, f"{others[0].tokens_per_second:.1f}",
                         *speedups, gain, whole))  # fmt: skip
    switches = [f"x, {part:.0%} high" for part in SWITCHES]
    header = ("", "bits", "lengths", "tokens/s", "x, uniform", *switches, "over uniform", "answer")
    print(table(rows, header))
    print(f"\nThe paper's bars over float16: uniform {PAPER['uniform']}, scheduled "
          f"{PAPER['scheduled']}. x: of decoding; answer: with the prompt.")  # fmt: skip


if __name__ == "__main__":
    main()
