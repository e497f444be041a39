"""`morendo view --model-explorer`: graphs and figures as Model Explorer's classes know them."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

from morendo import cli
from morendo.ir.errors import InputError
from morendo.view import Figures, gather, write_explorer


def classes_of(name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A file of Model Explorer alone; importing the package starts with its web server."""
    package = importlib.util.find_spec("model_explorer")
    if package is None or package.origin is None:
        pytest.skip("missing: pip install --no-deps ai-edge-model-explorer")
    text = (Path(package.origin).parent / f"{name}.py").read_text(encoding="utf-8")
    module = types.ModuleType(f"model_explorer_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(text.replace("from .utils import remove_none\n", ""), module.__dict__)
    return module


def check(hint: typing.Any, value: typing.Any) -> None:
    """A value of JSON must be what a type says, no key unknown or missing."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        check_object(hint, value)
    elif origin is list:
        assert isinstance(value, list)
        for each in value:
            check(parts[0], each)
    elif origin is dict:
        assert all(isinstance(key, str) for key in value)
        for each in value.values():
            check(parts[1], each)
    elif origin is typing.Literal:
        assert value in parts
    elif origin in (typing.Union, types.UnionType):
        simple = tuple(part for part in parts if not is_dataclass(part) and part in SIMPLE)
        if not (simple and isinstance(value, simple)):
            rest = [part for part in parts if part not in (*SIMPLE, type(None))]
            assert rest, (hint, value)
            check(rest[0], value)
    else:
        assert isinstance(value, hint), (hint, value)


def check_object(kind: typing.Any, value: typing.Any) -> None:
    known = {field.name: field for field in fields(kind)}
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    assert set(value) <= set(known), (kind, set(value) - set(known))
    for name, field in known.items():
        needed = field.default is MISSING and field.default_factory is MISSING
        assert name in value or not needed, (kind, name)
        if name in value:
            check(hints[name], value[name])


SIMPLE = (str, int, float, bool)


@pytest.fixture(scope="module")
def written(compiled, tmp_path_factory) -> dict[str, typing.Any]:
    """What is written of a dump with errors and times, by the ends of the files' names."""
    folder = tmp_path_factory.mktemp("explorer")
    figures = Figures(errors=folder / "errors", times=folder / "times")
    data = gather(compiled[1])
    calls = data["calls"]["decode"]
    assert figures.errors
    assert figures.times
    kernel = calls[data["steps"]["decode"]["lv5"][0]]["kernel"]
    op = {"event": "op", "function": "decode", "var": "lv5", "kernel": kernel, "drift": None}
    lines = [{**op, "lost": 0.1}, {**op, "lost": 0.3}, {**op, "function": "graph", "lost": 9.0}]
    figures.errors.write_text("\n".join(json.dumps(line) for line in lines))
    steps = [{"kernel": call["kernel"], "seconds": 2e-6} for call in calls]
    figures.times.write_text(json.dumps({"function": "decode", "steps": steps}))
    data = gather(compiled[1], figures)
    assert sum(data["times"]["kernels"].values()) == pytest.approx(2.0 * len(calls))
    files = write_explorer(data, folder / "g.json")
    return {path.name: json.loads(path.read_text()) for path in files}


def test_model_explorer_knows_the_graphs(written, monkeypatch):
    builder = classes_of("graph_builder", monkeypatch)
    check(builder.GraphCollection, written["g.json"])


def test_model_explorer_knows_the_figures(written, monkeypatch):
    builder = classes_of("node_data_builder", monkeypatch)
    kinds = set(written) - {"g.json"}
    assert kinds == {"g.bits.json", "g.bytes.json", "g.lost.json", "g.microseconds.json"}
    for kind in kinds:
        check(dict[str, builder.GraphNodeData], written[kind])


def test_a_graph_for_each_function_after_each_pass(written):
    graphs = {graph["id"]: graph for graph in written["g.json"]["graphs"]}
    assert list(graphs) == sorted(graphs)
    assert len(graphs) == 5 + 3 * 3
    nodes = {node["id"]: node for node in graphs["07 choose-levels: decode"]["nodes"]}
    linear = nodes["lv5"]
    assert (linear["label"], linear["namespace"]) == ("quantized_linear", "layer 0")
    assert linear["incomingEdges"][1] == {
        "sourceNodeId": "lv1", "sourceNodeOutputId": "1", "targetNodeInputId": "1",
    }  # fmt: skip
    shown = [(each["key"], each["value"]) for each in linear["attrs"]]
    assert ("weight", "model.layers.0.self_attn.k_proj.weight") in shown
    assert any(key == "kernel" and value.startswith("qlinear") for key, value in shown)
    report = graphs["07 choose-levels: decode"]["groupNodeAttributes"][""]
    assert report["pass"] == "choose-levels"
    assert float(report["bits a weight"]) == pytest.approx(5.0)


def test_edges_join_nodes_and_results(written):
    for graph in written["g.json"]["graphs"]:
        outputs = {node["id"]: len(node["outputsMetadata"]) for node in graph["nodes"]}
        assert len(outputs) == len(graph["nodes"])
        for node in graph["nodes"]:
            for edge in node["incomingEdges"]:
                part, source = int(edge["sourceNodeOutputId"]), edge["sourceNodeId"]
                assert part < outputs[source], (graph["id"], edge)


def test_figures_are_those_of_the_ops(written):
    bits = written["g.bits.json"]
    assert bits["01 normalize: main"]["results"]["lv2"] == {"value": 32.0}
    assert bits["07 choose-levels: decode"]["results"]["lv5"] == {"value": 4.75}
    (lost,) = written["g.lost.json"].values()
    assert lost["results"] == {"lv5": {"value": 0.3}}, "the largest, and none of the graph alone"
    ((graph, times),) = written["g.microseconds.json"].items()
    assert graph == "07 choose-levels: decode"
    assert times["results"]["lv5"] == {"value": 2.0}
    assert times["results"]["lv6"]["value"] >= 4.0, "rope and attention"
    read = written["g.bytes.json"]["07 choose-levels: decode"]["results"]["lv5"]
    assert read == {"value": 256 * 128 * 4.75 / 8}


def test_an_artifact_has_its_last_graph(compiled, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert cli.main(["view", str(compiled[0]), "--model-explorer", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"open it: model-explorer {out} --node_data_paths {tmp_path / 'a.bits.json'}" in said
    ids = [graph["id"] for graph in json.loads(out.read_text())["graphs"]]
    assert ids == [f"07 choose-levels: {name}" for name in ("decode", "prefill", "score")]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["view", str(compiled[0]), "--model-explorer", str(out), "--serve"])
    assert "--model-explorer writes no page: leave out --out and" in capsys.readouterr().err
    for place in ("", str(tmp_path), str(tmp_path / "no" / "graphs.json")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["view", str(compiled[0]), "--model-explorer", place])
        assert "--model-explorer needs a file's name (got" in capsys.readouterr().err


def test_figures_of_something_else_are_refused(compiled, tmp_path):
    file = tmp_path / "file"
    file.write_text("{")
    with pytest.raises(InputError, match="line 1 of .*file is not JSON"):
        gather(compiled[1], Figures(errors=file))
    file.write_text('{"event": "stage"}\n[1]\n')
    with pytest.raises(InputError, match="has no errors of kernels; write it with `morendo debug"):
        gather(compiled[1], Figures(errors=file))
    line = {"event": "op", "function": "decode", "var": "lv5", "kernel": "k", "lost": 0.1}
    file.write_text(json.dumps(line))
    match = r"errors of other kernels \(got k for lv5\) at decode; debug the artifact that was"
    with pytest.raises(InputError, match=match):
        gather(compiled[1], Figures(errors=file))
    file.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        gather(compiled[1], Figures(times=file))
    file.write_text('{"function": "decode", "steps": [{"kernel": "k"}]}')
    with pytest.raises(InputError, match=r"has no times of steps: steps\[0\].seconds is missing"):
        gather(compiled[1], Figures(times=file))
    file.write_text('{"function": "decode", "steps": [{"kernel": "k", "seconds": 1}]}')
    with pytest.raises(InputError, match="has the times of other kernels than decode calls"):
        gather(compiled[1], Figures(times=file))
