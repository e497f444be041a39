"""What bits cost in quality, and what each pass buys: quantized weights in torch against float.

    python benchmarks/quantization.py MODEL curve --calibrate self --text GLOSSARY.txt --text news
    python benchmarks/quantization.py MODEL passes --calibrate self --text GLOSSARY.txt
    python benchmarks/quantization.py MODEL readings --calibrate self --text GLOSSARY.txt
    python benchmarks/quantization.py MODEL elsewhere --calibrate self --text kinds
    python benchmarks/quantization.py MODEL sizes --text encyclopedia --text news

Every variant is calibrated on the same windows and scored on the same others, of one kind of text
or several: `kinds` are all those of held_out.py, each has a name there, anything else is a file.
results/NAME.json keeps what is done, so that an interrupted run goes on.
`curve` and `sizes` also draw results/NAME.svg, by bits of the linears and the first text, and by
bytes of all weights and every text; `--draw` draws it again without measuring.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from held_out import KINDS, held_out_text
from llama_cpp import bits_of, rounded
from variants import WHAT, Variant

import morendo
from morendo.calibration_text import WINDOWS, CalibrationText, calibration_text, spread
from morendo.frontend import LoadedModel, load_model
from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of
from morendo.ir.formats import WeightFormat
from morendo.ir.input_analysis import InputAnalysis
from morendo.ir.invariants import calls, readings_of
from morendo.ir.reference import dequantize, quantize
from morendo.ir.weight_overlay import WeightOverlay, tuned_name
from morendo.passes.analyze_group_ranges import AnalyzeGroupRanges
from morendo.passes.base import Calibration, Context, Pass, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.promotion.limits import bytes_of_others
from morendo.progress import Progress, make_progress
from morendo.quality.reference import Reference, torch_logits
from morendo.quality.scores import compare, cut_windows, summarize

ALL_KINDS = "kinds"
DRAWN = ("curve", "sizes")
LLAMA_CPP_HEAD = "Q8_0"
"""What llama.cpp gives a head that K-quants do not divide."""


class Bench:
    """Quantizes and scores variants of one model.

    Args:
        model: directory, hub id or .gguf.
        text: to calibrate on.
        held_out: texts to score on, by name.
        count: windows of each, 512 tokens each.
    """

    def __init__(
        self,
        model: str,
        loaded: LoadedModel,
        text: CalibrationText,
        held_out: dict[str, str],
        count: int,
    ) -> None:
        self.loaded, self.text = loaded, text
        self.analyses: dict[str, Sequence[InputAnalysis]] = {}
        self.reference = Reference(model, True, Progress())
        self.held_out = {
            name: spread(self._windows(content), count) for name, content in held_out.items()
        }

    def _windows(self, text: str) -> np.ndarray:
        """All of a text: int64 [W, 512]."""
        assert self.loaded.tokenizer is not None
        ids = self.loaded.tokenizer.library.encode(text, add_special_tokens=False).ids
        bos = self.loaded.bos if self.loaded.add_bos else None
        return cut_windows(ids, 512, None, bos).astype(np.int64)

    def run(self, variant: Variant, progress: Progress) -> dict[str, Any]:
        """Figures of one variant."""
        start = time.monotonic()
        with TemporaryDirectory(prefix="morendo-") as scratch:
            folder = Path(scratch)
            (folder / "codes").mkdir()
            weights = WeightOverlay(self.loaded.weights, CodeStore(folder / "codes"))
            calibration = Calibration(self.text.rounding, folder, tuning=self.text.tuning)
            context = Context(weights, calibration=calibration, track=progress.task)
            recipe = self._without_known(parse_spec(variant.spec, known_passes()), weights)
            module, _ = run_passes(self.loaded.module, recipe, context)
            for index, step in enumerate(recipe):
                if isinstance(step, AnalyzeGroupRanges):
                    prefix = ",".join(each.spec for each in recipe[: index + 1])
                    self.analyses[prefix] = weights.analyses
            seconds = time.monotonic() - start
            bits = readings_of(module)
            read = [
                _Matrices(module, weights, variant.peer, index) for index in range(len(bits) or 1)
            ]
            texts = {
                f"{text}, {bits[index]} bits read" if bits else text: score
                for index, matrices in enumerate(read)
                for text, score in self._scores(matrices).items()
            }
        return {
            "name": variant.name,
            "spec": variant.spec,
            "bits": read[0].bits,
            "megabytes": read[0].nbytes / 1e6,
            "texts": texts,
            "seconds": seconds,
        }

    def _scores(self, matrices: _Matrices) -> dict[str, dict[str, float | None]]:
        """The scores of a model of these matrices on every text."""
        torch_model = self.reference.model.build(lambda name, part: matrices.get(name))
        return {name: self._score(torch_model, each) for name, each in self.held_out.items()}

    def _score(self, torch_model: Any, windows: np.ndarray) -> dict[str, float | None]:
        """How far a torch model is from the float one on windows of a text."""
        scores, float_scores = [], []
        for ids in windows:
            want = self.reference.logits(ids)
            scores.append(compare(torch_logits(torch_model, ids), ids[1:], want))
            float_scores.append(compare(want, ids[1:]))
        score, ideal = summarize(scores), summarize(float_scores)
        return {
            "kl": score.kl_mean,
            "kl_se": score.kl_error,
            "kl_p99": score.kl_p99,
            "perplexity": score.perplexity,
            "float_perplexity": ideal.perplexity,
            "top1": score.top1,
        }

    def _without_known(self, recipe: list[Pass], weights: WeightOverlay) -> list[Pass]:
        """The recipe, without an analysis that an earlier variant made."""
        for index, step in enumerate(recipe):
            known = self.analyses.get(",".join(each.spec for each in recipe[: index + 1]))
            if isinstance(step, AnalyzeGroupRanges) and known:
                weights.analyses = known
                return recipe[:index] + recipe[index + 1 :]
        return recipe


class _Matrices:
    """The weights of a quantized module as floats, by name; 4-bit ones in a peer's type.

    Args:
        reading: of matrices that have several, and of their norms.
    """

    def __init__(
        self,
        module: Any,
        weights: WeightOverlay,
        peer: str = "",
        reading: int = 0,
    ) -> None:
        self.module, self.weights, self.reading, self.peer = module, weights, reading, peer
        self.linears: dict[str, dict[str, Any]] = {}
        for name, value in calls(module):
            if name in ("linear", "embedding"):
                attrs = attrs_of(value)
                self.linears[attrs["weight"]] = {**self.linears.get(attrs["weight"], {}), **attrs}

    def get(self, name: str) -> np.ndarray:
        """A weight as it would be stored."""
        original, attrs = self.weights.get(name), self.linears.get(name)
        if attrs is None:
            tuned = tuned_name(name, self.reading)
            return self.weights.get(tuned if tuned in self.weights else name)
        fmt = WeightFormat.parse(attrs["format"])
        columns = attrs.get("in_features") or attrs["features"]
        if self.peer and fmt.kind == "q4":
            return rounded(original, self.peer)
        made = self.weights.codes_of(name, fmt)
        order = attrs.get("order")
        if made is None:
            return dequantize(quantize(original, fmt), fmt, columns)
        at = min(self.reading, fmt.reading_count - 1)
        values = dequantize(made, fmt, columns, at=at)
        return values[:, np.argsort(self.weights.get(order))] if order else values

    @property
    def bits(self) -> float:
        """Bits of a weight of the kind that most linears have, or of the peer's type, with all that
        belongs to it.
        """
        if self.peer:
            return bits_of(self.peer)
        nbytes, count = sum(self._orders().values()), 0
        formats = [WeightFormat.parse(attrs["format"]) for attrs in self.linears.values()]
        ((most, _),) = Counter(fmt.kind for fmt in formats).most_common(1)
        for attrs, fmt in zip(self.linears.values(), formats, strict=True):
            if fmt.kind == most:
                rows, columns = attrs["out_features"], attrs["in_features"]
                bounds = fmt.bounds(columns, min(self.reading, fmt.reading_count - 1))
                nbytes += fmt.bytes_read(rows, columns, bounds)
                count += rows * columns
        return 8 * nbytes / count

    @property
    def nbytes(self) -> int:
        """Of all weights, as they are stored."""
        if not self.peer:
            return bytes_of_others(self.module, ()) + sum(self._orders().values())
        total = bytes_of_others(self.module, self.linears)
        for attrs in self.linears.values():
            nested = WeightFormat.parse(attrs["format"]).kind == "q4"
            bits = bits_of(self.peer if nested else LLAMA_CPP_HEAD)
            total += round(attrs["out_features"] * attrs["in_features"] * bits / 8)
        return total

    def _orders(self) -> dict[str, int]:
        """Bytes of each order of channels, by its name."""
        found = self.linears.values()
        return {a["order"]: 2 * a["in_features"] for a in found if a.get("order")}


def draw(results: list[dict[str, Any]], path: Path, by_size: bool) -> None:
    """KL divergence by bits on the first text, or by megabytes on each; llama.cpp's as squares."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    texts = list(results[0]["texts"])[: None if by_size else 1]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for index, text in enumerate(texts):
        color = f"C{index}"
        points = [
            (r["megabytes" if by_size else "bits"], r["texts"][text], r["name"]) for r in results
        ]
        on_line = sorted((x, s["kl"], s["kl_se"]) for x, s, name in points if _on_line(name))
        if on_line:
            sizes, divergences, errors = zip(*on_line, strict=True)
            label = text if by_size else "--average-bits"
            axes.errorbar(sizes, divergences, errors, marker="o", color=color, label=label)
        for size, score, name in points:
            if not _on_line(name):
                label = "_" if by_size else name  # lines that begin with _ are in no legend
                axes.plot(size, score["kl"], "s", color=color if by_size else None, label=label)
                if by_size:
                    axes.annotate(name.removeprefix("llama.cpp "), (size, score["kl"]), fontsize=7)
    unit = "MB of all weights" if by_size else "bits per weight, everything counted"
    axes.set(yscale="log", xlabel=unit, ylabel="KL divergence from float, nats")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _on_line(name: str) -> bool:
    """Whether a variant is one of a budget's, not something it is compared with."""
    return name.endswith((" bits", " MB", "head of 6"))


def main() -> None:
    """Measure what is not measured yet, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("--calibrate", action="append", help="as of `morendo compile`")
    parser.add_argument("--calibration-windows", type=int, default=WINDOWS)
    parser.add_argument("--text", action="append", required=True, help="a file, a kind, or `kinds`")
    parser.add_argument("--windows", type=int, default=12, help="of each text")
    parser.add_argument("--only", help="variants whose name has this in it")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--draw", action="store_true", help="draw without measuring")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{arguments.what}.json"
    if not arguments.draw:
        _measure(arguments, file)
    results = json.loads(file.read_text("utf-8"))
    for r in results:
        print(f"{r['bits']:5.2f} bits {r['megabytes']:6.1f} MB  {r['seconds']:4.0f} s  {r['name']}")
        for name, s in r["texts"].items():
            print(f"    KL {s['kl']:.4f} +- {s['kl_se']:.4f}  same token {s['top1']:.3f}  "
                  f"perplexity {s['perplexity']:6.2f} (float {s['float_perplexity']:.2f})  "
                  f"on {name}")  # fmt: skip
        if len(r["texts"]) > 1:
            worst = max(r["texts"], key=lambda name: r["texts"][name]["kl"])
            mean = sum(s["kl"] for s in r["texts"].values()) / len(r["texts"])
            print(f"    KL {mean:.4f} on average, most on {worst}")
    if arguments.what in DRAWN:
        draw(results, arguments.out / f"{arguments.what}.svg", by_size=arguments.what == "sizes")


def _measure(arguments: argparse.Namespace, file: Path) -> None:
    results = json.loads(file.read_text("utf-8")) if file.exists() else []
    with make_progress() as progress:
        loaded = load_model(arguments.model)
        text = _text(arguments, loaded, progress)
        named = [n for each in arguments.text for n in (KINDS if each == ALL_KINDS else [each])]
        held_out = {Path(each).stem: held_out_text(each) for each in named}
        bench = Bench(arguments.model, loaded, text, held_out, arguments.windows)
        for variant in WHAT[arguments.what]():
            known = any((r["name"], r["spec"]) == (variant.name, variant.spec) for r in results)
            if known or (arguments.only and arguments.only not in variant.name):
                continue
            with progress.task(variant.name):
                results.append(bench.run(variant, progress))
            file.write_text(json.dumps(results, indent=1), "utf-8")


def _text(
    arguments: argparse.Namespace, loaded: LoadedModel, progress: Progress
) -> CalibrationText:
    """What to calibrate on, kept beside the results."""
    file = arguments.out / "text.npz"
    if not file.exists():
        sources = arguments.calibrate or ["pydoc"]

        def compile_writer(folder: Path) -> Path:
            return morendo.compile(arguments.model, bits=8, out=folder)

        windows = arguments.calibration_windows
        text = calibration_text(loaded, sources, compile_writer, progress, windows)
        np.savez(file, rounding=text.rounding, tuning=text.tuning)
    with np.load(file) as kept:
        return CalibrationText(kept["rounding"], kept["tuning"])


if __name__ == "__main__":
    main()
