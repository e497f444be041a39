"""A page's data as graphs for Google's Model Explorer: the format that its JSON adapter opens.

    {"label": ..., "graphs": [...], "graphSorting": "name_asc"}

A graph is one function after one stage, its layers are namespaces. Figures of ops are files beside
it, "node data", one for each kind of figure, which Model Explorer colors its nodes with. The names
of fields are those of graph_builder.py and node_data_builder.py in the package
ai-edge-model-explorer, which writing does not need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .op_graph import INPUT, Op

Figures = dict[str, float]
"""A number for each of some variables."""

_LOW, _HIGH = "#e8f0fe", "#c5221f"


def graph_id(stage: Mapping[str, Any], function: str) -> str:
    """Sorts as the stages do."""
    return f"{stage['number']:02d} {stage['name']}: {function}"


def export_graphs(data: Mapping[str, Any]) -> dict[str, Any]:
    """The graphs of all stages, for one file.

    Args:
        data: as `collect.gather` gives them.
    """
    last = _last_stage(data)
    graphs = []
    for stage in data["stages"]:
        for function, ops in stage["ops"].items():
            steps = data["steps"].get(function, {}) if stage is last else {}
            calls = data["calls"].get(function, [])
            kernels = {var: calls[first:end] for var, (first, end) in steps.items()}
            graphs.append(_graph(stage, function, ops, kernels))
    return {"label": data["title"], "graphs": graphs, "graphSorting": "name_asc"}


def export_node_data(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Node data by the kind of figure; only kinds that there are figures of.

    Bits are those of every stage: stored for each weight of an op's matrices, scales included. The
    others are of the last IR, see `figures_of`.

    Args:
        data: as `collect.gather` gives them.
    """
    found: dict[str, dict[str, Figures]] = {}
    for stage in data["stages"]:
        for function, ops in stage["ops"].items():
            bits = {op.var: round(op.bits, 2) for op in ops if op.bits is not None}
            kinds = {"bits": bits}
            if stage is _last_stage(data):
                kinds |= figures_of(data, function, ops)
            for kind, figures in kinds.items():
                if figures:
                    found.setdefault(kind, {})[graph_id(stage, function)] = figures
    return {
        kind: {graph: _node_data(kind, figures) for graph, figures in graphs.items()}
        for kind, graphs in found.items()
    }


def figures_of(data: Mapping[str, Any], function: str, ops: Sequence[Op]) -> dict[str, Figures]:
    """Figures of the ops of a function in the last IR, by their kind.

    bytes     of weights that a call for one token reads at the most precise level
    rounding  part of a matrix's output that is lost by the codes that a text made
    microseconds, lost, drift: see `measured.py`
    """
    variables = {op.var for op in ops}
    found = {kind: functions.get(function, {}) for kind, functions in data["measured"].items()}
    found |= {"bytes": _bytes(data, function), "rounding": _rounding(data, ops)}
    return {
        kind: {var: value for var, value in figures.items() if var in variables}
        for kind, figures in found.items()
    }


def last_figures(data: Mapping[str, Any]) -> dict[str, dict[str, Figures]]:
    """`figures_of` each function of the last IR."""
    stage = _last_stage(data) or {"ops": {}}
    return {name: figures_of(data, name, ops) for name, ops in stage["ops"].items()}


def write_explorer(data: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the graphs to a file, and node data beside it: `x.json`, `x.bits.json`, ...

    Returns:
        The files, that of the graphs first.
    """
    files = {out: export_graphs(data)}
    for kind, graphs in export_node_data(data).items():
        files[out.with_name(f"{out.stem}.{kind}{out.suffix}")] = graphs
    for path, content in files.items():
        path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    return list(files)


def _last_stage(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The last one that has IR, which the plan is made of."""
    return next((stage for stage in reversed(data["stages"]) if stage["ops"]), None)


def _graph(
    stage: Mapping[str, Any],
    function: str,
    ops: Sequence[Op],
    kernels: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    nodes = [_node(op, [call["kernel"] for call in kernels.get(op.var, [])]) for op in ops]
    report = {"": _facts(stage)}
    return {"id": graph_id(stage, function), "nodes": nodes, "groupNodeAttributes": report}


def _node(op: Op, kernels: Sequence[str]) -> dict[str, Any]:
    attrs = [*(("weight", name) for name in op.weights), *op.attrs.items()]
    if op.bits is not None:
        attrs.append(("bits a weight", f"{op.bits:.2f}"))
    attrs += [("kernel", name) for name in kernels]
    outputs = [
        {"id": str(part), "attrs": _pairs([("tensor_shape", text), ("__tensor_tag", op.var)])}
        for part, text in enumerate(op.types)
    ]
    edges = [
        {"sourceNodeId": var, "sourceNodeOutputId": str(part), "targetNodeInputId": str(index)}
        for index, (var, part) in enumerate(op.inputs)
    ]
    return {
        "id": op.var,
        "label": op.var if op.op == INPUT else op.op,
        "namespace": _namespace(op),
        "attrs": _pairs(attrs),
        "incomingEdges": edges,
        "outputsMetadata": outputs,
    }


def _namespace(op: Op) -> str:
    return "" if op.layer is None else f"layer {op.layer}"


def _pairs(items: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in items]


def _facts(stage: Mapping[str, Any]) -> dict[str, str]:
    """What the side panel shows of a graph: the stage's report."""
    facts = {"pass": stage["spec"]} if "spec" in stage else {}
    if stage["seconds"] is not None:
        facts["seconds"] = str(stage["seconds"])
    facts |= {what: str(count) for what, count in stage.get("counts", {}).items()}
    size = stage.get("size", {})
    if size.get("weights"):
        facts["bytes of weights"] = str(size["bytes"])
        facts["bits a weight"] = f"{8 * size['bytes'] / size['weights']:.2f}"
    missed = stage.get("missed", [])
    if missed:
        facts["left alone"] = "; ".join(f"{each['where']}: {each['why']}" for each in missed)
    return facts


def _bytes(data: Mapping[str, Any], function: str) -> Figures:
    calls = data["calls"].get(function, [])
    found = {
        var: sum(call["reads"][0] for call in calls[first:end])
        for var, (first, end) in data["steps"].get(function, {}).items()
    }
    return {var: count for var, count in found.items() if count}


def _rounding(data: Mapping[str, Any], ops: Sequence[Op]) -> Figures:
    """The largest loss of an op's matrices, none where they were rounded to nearest."""
    losses = {
        name: figures["feedback"]
        for matrix in data["weights"]
        for name, figures in zip(matrix["names"], matrix["figures"], strict=True)
        if figures and figures.get("feedback") is not None
    }
    found = {op.var: [losses[name] for name in op.weights if name in losses] for op in ops}
    return {var: max(each) for var, each in found.items() if each}


def _node_data(kind: str, figures: Figures) -> dict[str, Any]:
    colors = [{"stop": 0, "bgColor": _LOW}, {"stop": 1, "bgColor": _HIGH}]
    results = {var: {"value": value} for var, value in figures.items()}
    return {"name": kind, "results": results, "gradient": colors}
