"""From an .onnx file to a module and a store of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tvm

from morendo.frontend.weights import WeightStore
from morendo.ir.errors import MorendoError

from .attention import AttentionFinder
from .graph import OnnxGraph, read_graph
from .lengths import IDS, Lengths
from .plan import plan_steps
from .translate import LOGITS, Translation, Translator
from .weights import OnnxSource

_KNOWN_INPUTS = (IDS, "attention_mask", "position_ids", "cache_position")


@dataclass(frozen=True)
class ImportedOnnx:
    """A graph as the compiler gets it.

    Attributes:
        module: raw Relax, main(input_ids, position_ids, *weights) -> logits.
        weights: read when asked for.
        vocabulary: number of logits.
        longest: tokens up to which masks and tables of the graph hold.
    """

    module: tvm.IRModule
    weights: WeightStore
    vocabulary: int
    longest: int


def import_onnx(path: Path, longest: int) -> ImportedOnnx:
    """Import a causal language model; its weights stay in their files.

    Args:
        path: the .onnx file.
        longest: tokens that the model is to take.

    Raises:
        InputError: in one line, for whatever is damaged or cannot be compiled.
    """
    graph = read_graph(path)
    try:
        return _imported(graph, longest)
    except MorendoError:
        raise
    except Exception as error:  # of numpy, TVM and what a damaged graph lets go wrong
        said = (str(error).strip().splitlines() or [""])[0]
        raise graph.error(
            f"the graph cannot be imported ({type(error).__name__}: {said[:120]})",
            hint="it is damaged, or written in a way that this importer does not know",
        ) from error


def _imported(graph: OnnxGraph, longest: int) -> ImportedOnnx:
    _check_interface(graph)
    lengths = Lengths(graph)
    finder = AttentionFinder(lengths, longest)
    _check_logits(lengths)
    translator = Translator(graph, lengths, finder)
    found = translator.run(plan_steps(lengths, finder))
    return ImportedOnnx(
        module=tvm.IRModule({"main": found.function}),
        weights=_store(lengths, found),
        vocabulary=lengths.dims(LOGITS)[2][1],
        longest=found.longest,
    )


def _store(lengths: Lengths, found: Translation) -> WeightStore:
    source = OnnxSource(lengths, found.recipes)
    return WeightStore(source, {name: name for name in found.recipes}, found.buffers)


def _check_interface(graph: OnnxGraph) -> None:
    hint = "export a causal language model from input_ids to logits"
    if IDS not in graph.inputs:
        raise graph.error(f"the model has no input {IDS} (got {', '.join(graph.inputs)})", hint)
    other = [n for n in graph.inputs if n not in _KNOWN_INPUTS and not _is_cache(graph, n)]
    if other:
        raise graph.error(f"the model has the input {other[0]!r}, which is not supported", hint)
    if LOGITS not in graph.outputs:
        got = ", ".join(graph.outputs[:4])
        raise graph.error(f"the model has no output {LOGITS} (got {got})", hint)
    if len(graph.inputs[IDS][1]) != 2:
        raise graph.error(f"{IDS} has {len(graph.inputs[IDS][1])} dimensions, need 2", hint)


def _is_cache(graph: OnnxGraph, name: str) -> bool:
    return "past" in name and len(graph.inputs[name][1]) == 4


def _check_logits(lengths: Lengths) -> None:
    if LOGITS not in lengths.activations:
        raise lengths.graph.error("the logits do not depend on input_ids")
    dims = lengths.dims(LOGITS)
    if len(dims) != 3 or dims[:2] != [(0, 1), (1, 0)] or dims[2][0]:
        shape = [f"{a}n+{b}" if a else str(b) for a, b in dims]
        raise lengths.graph.error(
            f"logits have the shape ({', '.join(shape)}), need (1, n, vocabulary)",
            hint="export the model so that it gives the logits of every token",
        )
