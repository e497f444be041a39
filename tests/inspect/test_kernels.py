"""`morendo inspect --kernels`: what each kernel of an artifact moves and is made of."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace

import pytest

from morendo.cli import entry as cli
from morendo.codegen.kernel_code import KernelCode
from morendo.codegen.kernel_facts import KernelFacts
from morendo.debug.captured import open_kernels
from morendo.ir.errors import ArtifactError
from morendo.kernel_table import print_kernels
from morendo.runtime.artifact import GRAPH, MANIFEST, read_plan


@pytest.fixture(scope="module")
def kernels(compiled) -> dict[str, dict]:
    """What --json prints, by the names of the kernels."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(["inspect", str(compiled[0]), "--kernels", "--json"]) == 0
    return {one["kernel"]: one for one in json.loads(said.getvalue())}


def test_calls_and_bytes_are_those_of_the_plan(compiled, kernels):
    plan = read_plan(compiled[0])
    assert tuple(kernels) == plan.kernels
    for function, steps in plan.functions.items():
        assert sum(one["calls"].get(function, 0) for one in kernels.values()) == len(steps)
    for level in range(plan.levels):
        read = sum(
            one["calls"].get("decode", 0) * one["weight_bytes"][level] for one in kernels.values()
        )
        assert read == sum(step.reads[level] for step in plan.functions["decode"])


def test_a_linear_is_counted_by_the_weight(kernels):
    one = next(k for n, k in kernels.items() if n.startswith("qlinear_f32_i8_q4g32_256x128_m1_"))
    assert (one["weights"], one["tokens"], one["calls"]) == (256 * 128, 1, {"decode": 4})
    assert 0.5 < one["bytes_per_weight"] < 0.7
    assert one["read_bytes"] == 128 + 4 * 4 + 4 * 4, "codes, scales and sums"
    assert one["written_bytes"] == 4 * 256
    assert 0.01 < one["instructions_per_product"] < 2
    assert one["code"]["loop"]["dot"] >= 8
    many = next(k for n, k in kernels.items() if n.startswith("qlinear_f32_i8_q4g32_256x128_m32_"))
    assert many["tokens"] == 32
    assert many["instructions_per_byte"] > one["instructions_per_byte"]


def test_caches_and_tables_are_read_in_part(kernels):
    named = {name.partition("_m")[0]: one for name, one in kernels.items() if "_m1_" in name}
    per_position = 2 * 2 * 32 * 2  # keys and values of two heads, float16
    assert named["attention"]["cached_bytes"] == per_position
    rope = named["rope_append_kv"]
    assert rope["read_bytes"] == 4 * (128 + 2 * 2 * 32)
    assert rope["written_bytes"] == per_position + 4 * (128 + 2 * 32), "q and k in place, and both"
    assert named["attention"]["read_bytes"] == 4 * 128, "q, and not k and v beside it"
    (many,) = (one for name, one in kernels.items() if name.startswith("embedding_q8g32_m32"))
    assert many["weight_bytes"][0] == 32 * named["embedding_q8g32"]["weight_bytes"][0]


def test_a_target_may_have_columns_of_its_own():
    one = KernelFacts("k", {"decode": 1}, 1, 100, [50.0], 4, 4, 0, KernelCode(own={"packets": 7}))
    last = print_kernels([one]).splitlines()[-2:]
    assert [line.split() for line in last] == [["kernel", "packets"], ["k", "7"]]
    nothing = print_kernels([replace(one, code=None)])
    assert nothing.endswith("Its target knows nothing of the machine code.")
    counted = replace(one, code=KernelCode(9, {"dot": 2}, 4, {"packets": 7}))
    lines = [line.split() for line in print_kernels([counted]).splitlines()]
    assert ["k", "7", "9", "2", "0.50", "0.500", "1.00", "unknown", "dot", "2"] in lines


def test_tables_for_people(compiled, capsys):
    words = ["inspect", str(compiled[0]), "--kernels"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "bound by: unknown without --bandwidth and --rate of a machine" in said
    assert cli.main([*words, "--bandwidth", "25", "--rate", "0.001"]) == 0
    row = next(
        line for line in capsys.readouterr().out.splitlines()
        if line.startswith("qlinear_f32_i8_q4g32_256x128_m1_") and "dot" in line
    )  # fmt: skip
    assert "instructions (" in row


def test_kernels_of_another_version_are_refused(compiled, tmp_path, capsys):
    other = shutil.copytree(compiled[0], tmp_path / "other")
    manifest = (other / MANIFEST).read_text()
    name = json.loads(manifest)["target"]["name"]
    (other / MANIFEST).write_text(manifest.replace(f'"{name}"', '"arm"', 1))
    assert cli.main(["inspect", str(other), "--kernels"]) == cli.USER_ERROR
    assert "is not what this version of morendo makes of its graph" in capsys.readouterr().err
    (other / GRAPH).unlink()
    assert cli.main(["inspect", str(other), "--kernels"]) == cli.USER_ERROR
    assert "graph.py is missing" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match=r"cannot read graph.py .*compile it again"):
        open_kernels(other, json.loads(manifest))
