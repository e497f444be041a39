"""What bits cost in quality, and what each pass buys: quantized weights in torch against float.

    python benchmarks/quantization.py MODEL curve --calibrate self --text GLOSSARY.txt --text news
    python benchmarks/quantization.py MODEL passes --calibrate self --text GLOSSARY.txt
    python benchmarks/quantization.py MODEL readings --calibrate self --text GLOSSARY.txt
    python benchmarks/quantization.py MODEL elsewhere --calibrate self --text kinds

Every variant is calibrated on the same windows and scored on the same others, of one kind of text
or several: `kinds` are all those of held_out.py, each has a name there, anything else is a file.
results/NAME.json keeps what is done, so that an interrupted run goes on.
`curve` also draws results/curve.svg by the first text, `--draw` draws it again without measuring.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from held_out import KINDS, held_out_text
from llama_cpp import bits_of, rounded

import morendo
from morendo.budget import Budget
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
from morendo.progress import Progress, make_progress
from morendo.quality.reference import Reference, torch_logits
from morendo.quality.scores import compare, cut_windows, summarize

ALL_KINDS = "kinds"
CURVE_BITS = (2.35, 2.6, 2.9, 3.0, 3.5, 4.0, 4.25, 4.55)
LLAMA_CPP = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0")
"""K-quants have blocks of 256 channels, which does not divide the width of every model."""
PLAIN = "normalize,quantize-weights"
COMPACT = "normalize,quantize-weights{compact=True}"
BUDGET = (
    "normalize,quantize-weights{{{scales}}},analyze-group-ranges,"
    "promote-groups{{average_bits={bits:g}{options}}},{more}calibrate-weights"
)


@dataclass(frozen=True)
class Variant:
    """One way to quantize.

    Attributes:
        spec: of passes.
        peer: a type of llama.cpp that takes the place of every 4-bit format.
    """

    name: str
    spec: str
    peer: str = ""


def curve() -> list[Variant]:
    """The budget from its least to its most, and what it is compared with."""
    budget = [Budget.of(4, bits, None, None) for bits in CURVE_BITS]
    by_budget = [
        Variant(f"{b.average_bits:g} bits", b.passes(True).split(",fuse-")[0]) for b in budget
    ]
    return [
        *by_budget,
        Variant("4 bit, compact scales, error feedback", COMPACT + ",calibrate-weights"),
        Variant("4 bit, 8-bit scales, error feedback", PLAIN + ",calibrate-weights"),
        Variant("4 bit, 8-bit scales, searched", PLAIN + ",search-scales"),
        Variant("4 bit, compact scales, searched", COMPACT + ",search-scales"),
        Variant("4 bit, compact scales, to nearest", COMPACT),
        Variant("4 bit, 8-bit scales, to nearest", PLAIN),
        *(Variant(f"llama.cpp {name}", PLAIN, name) for name in LLAMA_CPP),
    ]


def passes(bits: float = 2.9) -> list[Variant]:
    """What each step is worth: without it, at the same number of bytes."""

    def spec(
        options: str = "", more: str = "", scales: str = "compact=True", bits: float = bits
    ) -> str:
        return BUDGET.format(bits=bits, options=options, more=more, scales=scales)

    outliers = spec(",outliers=0.003", "split-outliers{fraction=0.003},")
    # 16-bit scales and zeros would take 32 bits for each group of 128 where 8-bit ones take 16
    first_order = spec(scales="group_size=128", bits=bits - 16 / 128)
    return [
        Variant("all", spec()),
        Variant("with tuned scales, the default", spec() + ",tune-scales"),
        Variant("with outliers, 0.3 %", outliers),
        Variant("without ranking of groups", spec(",ranked=False")),
        Variant("without order of channels", spec().replace("ranges", "ranges{sort=False}", 1)),
        Variant("without error feedback", spec() + "{feedback=False}"),
        Variant("without compensation", spec() + "{compensation=0}"),
        Variant("8-bit scales of 64 channels", spec(scales="group_size=64")),
        Variant("16-bit scales of 128 channels", first_order),
    ]


def readings() -> list[Variant]:
    """Codes made for several readings, scored at each, and for 4 bits alone."""
    alone = Variant("4 bits alone", Budget.of(4, None, None, None).passes(True).split(",fuse-")[0])
    several = [Budget.of(4, None, None, None, readings=each) for each in ("4,3", "4,3,2", "3,2")]
    return [alone, *(Variant(b.label, b.passes(True).split(",fuse-")[0]) for b in several)]


def elsewhere() -> list[Variant]:
    """What keeps 3 bits from learning their text by heart, seen on other kinds of text."""
    spec = curve()[CURVE_BITS.index(3.0)].spec
    options = ("damping=0.1", "compensation=0.25", "shrinkage=0.1")
    return [
        Variant("3 bits, the default", spec),
        Variant("not tuned", spec.removesuffix(",tune-scales")),
        *(Variant(o, spec.replace("te-weights", f"te-weights{{{o}}}")) for o in options),
    ]


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
        self.weights, self.reading, self.peer = weights, reading, peer
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
        """Bits of a linear's nested weight, or of the peer's type, with all that belongs to it."""
        if self.peer:
            return bits_of(self.peer)
        nbytes, count, orders = 0, 0, {}
        for attrs in self.linears.values():
            fmt = WeightFormat.parse(attrs["format"])
            if fmt.kind == "q4":
                rows, columns = attrs["out_features"], attrs["in_features"]
                bounds = fmt.bounds(columns, min(self.reading, fmt.reading_count - 1))
                nbytes += fmt.bytes_read(rows, columns, bounds)
                count += rows * columns
                orders[attrs["order"]] = 2 * columns if attrs["order"] else 0
        return 8 * (nbytes + sum(orders.values())) / count


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """KL divergence by bits, the budget as a line and the others as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores = [(r["name"], r["bits"], next(iter(r["texts"].values()))) for r in results]
    line = sorted((b, s["kl"], s["kl_se"]) for name, b, s in scores if name.endswith(" bits"))
    figure, axes = plt.subplots(figsize=(7, 4.2))
    if line:
        bits, divergences, errors = zip(*line, strict=True)
        axes.errorbar(bits, divergences, errors, marker="o", label="--average-bits")
    for name, each, score in scores:
        if not name.endswith(" bits"):
            axes.plot(each, score["kl"], "s", label=name)
    axes.set(yscale="log", xlabel="bits per weight, everything counted",
             ylabel="KL divergence from float, nats")  # fmt: skip
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


WHAT = {"curve": curve, "passes": passes, "readings": readings, "elsewhere": elsewhere}


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
        print(f"{r['bits']:5.2f} bits  {r['seconds']:4.0f} s  {r['name']}")
        for name, s in r["texts"].items():
            print(f"    KL {s['kl']:.4f} +- {s['kl_se']:.4f}  same token {s['top1']:.3f}  "
                  f"perplexity {s['perplexity']:6.2f} (float {s['float_perplexity']:.2f})  "
                  f"on {name}")  # fmt: skip
        if len(r["texts"]) > 1:
            worst = max(r["texts"], key=lambda name: r["texts"][name]["kl"])
            mean = sum(s["kl"] for s in r["texts"].values()) / len(r["texts"])
            print(f"    KL {mean:.4f} on average, most on {worst}")
    if arguments.what == "curve":
        draw(results, arguments.out / "curve.svg")


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
