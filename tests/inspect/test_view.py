"""What `morendo view` writes, as data; tests/inspect/test_page.py opens it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.error
import urllib.request
import zlib
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from morendo.cli import entry as cli
from morendo.cli.view_command import handler_of
from morendo.ir.errors import CompileError, InputError, MorendoError
from morendo.view import Figures, collect, write, write_page
from morendo.view.texts import functions_of

ROOT = Path(__file__).resolve().parents[2]


def embedded(page: str) -> dict:
    """The data in a page."""
    found = re.search(r"window\.morendo = (.*?);</script>", page)
    assert found
    return json.loads(found.group(1))


def text_of(data: dict, number: int) -> str:
    return zlib.decompress(base64.b64decode(data["texts"][number])).decode()


def test_the_built_page_is_that_of_the_sources():
    """As page/build.mjs counts the digest."""
    names = ["build.mjs", "package.json", "package-lock.json"]
    names += [f"src/{path.name}" for path in (ROOT / "page" / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\n{(ROOT / 'page' / name).read_text(encoding='utf-8')}\n".encode())
    built = re.search(r'name="sources" content="(\w+)"', write.PAGE.read_text(encoding="utf-8"))
    assert built
    assert built.group(1) == digest.hexdigest(), "build it again: make page"


def test_the_page_asks_for_nothing_from_a_network():
    page = write.PAGE.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page)


def test_a_dump_becomes_data(compiled, tmp_path):
    out = tmp_path / "page.html"
    assert cli.main(["view", str(compiled[1]), "-o", str(out)]) == 0
    assert out.stat().st_size < 3_000_000
    data = embedded(out.read_text(encoding="utf-8"))
    kinds = [stage["kind"] for stage in data["stages"]]
    assert kinds[:2] == ["input", "pass"]
    assert kinds[-5:] == ["kernels", "plan", "memory", "assembly", "weights"]
    last = data["stages"][7]
    assert set(last["functions"]) == {"prefill", "score", "decode"}
    decode = text_of(data, last["functions"]["decode"])
    assert decode.startswith("@R.function\ndef decode(")
    linear = re.search(r"^ *(\w+): .* = M\.quantized_linear\(", decode, re.MULTILINE)
    assert linear
    first, end = data["steps"]["decode"][linear.group(1)]
    (call,) = data["calls"]["decode"][first:end]
    kernel = data["kernels"][call["kernel"]]
    assert kernel["calls"]["decode"] >= 1
    files = {name: number for stage in data["stages"] for name, number in stage["files"].items()}
    assert list(kernel["files"]) == ["TIR", "assembly"]
    assert "T.prim_func" in text_of(data, files[kernel["files"]["TIR"]])
    listing = text_of(data, files[kernel["files"]["assembly"]])
    assert f"__tvm_ffi_{call['kernel']}:" in listing
    matrix = next(m for m in data["weights"] if m["names"][0].endswith("down_proj.weight"))
    assert matrix["bits"] == [4] * 12
    assert matrix["level_bytes"] == sorted(matrix["level_bytes"], reverse=True)
    sample = matrix["samples"][0]
    assert sum(sample["before"]) == 16 * 384
    assert sample["before"] != sample["after"]
    levels = len(next(iter(data["decode_bytes"].values())))
    assert levels == 5


def test_an_artifact_becomes_data(compiled):
    data = collect(compiled[0])
    after = ["kernels", "plan", "memory", "assembly"]
    assert [stage["kind"] for stage in data["stages"]] == [*["pass"] * 7, *after]
    assert [stage["number"] for stage in data["stages"]] == list(range(1, 12))
    assert "M.quantized_linear" in text_of(data, data["stages"][6]["functions"]["decode"])
    dumped = {tuple(m["names"]): m for m in collect(compiled[1])["weights"]}
    for matrix in data["weights"]:
        other = dumped[tuple(matrix["names"])]
        assert matrix["bits"] == other["bits"]
        if len(other["level_bytes"]) > 1:
            assert matrix["level_bytes"] == other["level_bytes"]
    assert "not shown" not in data["facts"]
    dumped = collect(compiled[1])
    for same in ("decode_bytes", "kernels", "calls", "steps", "figures"):
        assert data[same] == dumped[same], same


def test_kernels_that_cannot_be_made_again_are_not_shown(compiled, monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise CompileError("no compiler")

    monkeypatch.setattr("morendo.codegen.cpu.target.CPUTarget.kernel_code", refuse)
    out = tmp_path / "page.html"
    assert cli.main(["view", str(compiled[0]), "-o", str(out)]) == 0
    assert "note: not shown are machine code: no compiler" in capsys.readouterr().err
    data = embedded(out.read_text(encoding="utf-8"))
    assert data["facts"]["not shown"] == "machine code: no compiler"
    assert [stage["kind"] for stage in data["stages"]][7:] == ["kernels", "plan", "memory"]
    kernel = next(iter(data["kernels"].values()))
    assert list(kernel["files"]) == ["TIR"]
    monkeypatch.setattr("morendo.debug.captured._alike", lambda *_: False)
    data = collect(compiled[0])
    assert data["facts"]["not shown"].startswith("kernels: its plan is not what this version")
    assert [stage["kind"] for stage in data["stages"]][7:] == ["plan"]
    linear = next(v for name, v in data["kernels"].items() if name.startswith("qlinear"))
    assert linear["files"] == {}
    assert linear["weight_bytes"][0] > 1000
    assert data["calls"] == collect(compiled[1])["calls"]
    assert data["steps"] == {}


def test_an_artifacts_page_lies_beside_it(compiled, capsys):
    assert cli.main(["view", str(compiled[0])]) == 0
    page = compiled[0].with_name("artifact.view.html")
    assert page.exists()
    assert cli.main(["verify", str(compiled[0]), "-q"]) == 0
    assert "not listed" not in capsys.readouterr().err


def test_no_text_ends_the_script():
    data = {"title": "</script><b>&", "texts": []}
    page = write_page(data)
    assert embedded(page) == data
    assert page.count("</script>") == write.PAGE.read_text(encoding="utf-8").count("</script>")
    assert "<title>&lt;/script&gt;&lt;b&gt;&amp; - morendo</title>" in page


def test_functions_are_told_apart():
    text = (
        'n = TypeVar("n")\n@I.ir_module\nclass Module:\n    @R.function\n    def a(x):\n        y\n'
    )
    text += "\n    @T.prim_func(private=True)\n    def b(x):\n        z\n"
    found = dict(functions_of(text))
    assert found["a"] == "@R.function\ndef a(x):\n    y\n"
    assert found["b"] == "@T.prim_func(private=True)\ndef b(x):\n    z\n"


def test_quality_is_shown_if_given(compiled, tmp_path):
    figures = tmp_path / "eval.json"
    rows = [{"kind": "artifact", "level": 0, "score": {"kl_mean": 0.1}, "bytes_per_token": 9}]
    figures.write_text(json.dumps({"rows": rows}))
    assert collect(compiled[1], Figures(figures))["quality"] == rows
    figures.write_text("{}")
    with pytest.raises(InputError, match="has no rows; write it with `morendo eval --json FILE`"):
        collect(compiled[1], Figures(figures))
    figures.write_text("[")
    with pytest.raises(InputError, match="is not JSON"):
        collect(compiled[1], Figures(figures))
    figures.write_text("[]")
    with pytest.raises(InputError, match="is no object of JSON"):
        collect(compiled[1], Figures(figures))


def test_what_cannot_be_shown_is_refused(tmp_path, monkeypatch, capsys):
    assert cli.main(["view", str(tmp_path / "nothing")]) == cli.USER_ERROR
    assert "there is no folder" in capsys.readouterr().err
    assert cli.main(["view", str(tmp_path)]) == cli.USER_ERROR
    stage = {"number": 0, "name": "plan", "kind": "plan", "files": ["00_plan.txt"]}
    index = {"version": 2, "facts": {}, "stages": [{**stage, "report": None, "seconds": None}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"cannot read .*00_plan\.txt .*write it again"):
        collect(tmp_path)
    monkeypatch.setattr(write, "PAGE", tmp_path / "page.html")
    with pytest.raises(MorendoError, match="the page was not built; run `make page`"):
        write_page({"title": "x", "texts": []})


def test_serving_answers_for_the_page_alone():
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of("page ä"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{address}/") as answer:
            assert answer.read().decode() == "page ä"
        for path, host in (("/etc/passwd", None), ("/", "elsewhere.example")):
            request = urllib.request.Request(address + path, headers={"Host": host} if host else {})
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(request)
    finally:
        server.shutdown()
        server.server_close()
