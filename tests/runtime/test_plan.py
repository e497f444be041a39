"""The plan: JSON there and back, every check, the printer."""

import dataclasses
import json

import pytest

from morendo.ir.errors import ArtifactError
from morendo.ir.plan import Plan, Step, Tensor
from morendo.ir.plan_arguments import Const, Level, LevelTensor, tensor_index
from morendo.ir.plan_text import print_plan
from morendo.ir.pruning import StagePosition, StageTokens


def small_plan() -> Plan:
    args = (0, 1, "tokens", "position", Level((4, 2)), Const(-3), LevelTensor((2, 3)))
    steps = (Step(0, args, "model.embed", (128, 64), 96),)
    return Plan(
        chunk=4,
        context=16,
        vocabulary=8,
        levels=2,
        arena_bytes=256,
        cache_bytes=0,
        weights_bytes=128,
        kernels=("embed",),
        parameters=(("ids", "out", "tokens", "position", "n3", "p3", "table"),),
        tensors=(
            Tensor("ids", 0, "int32", ("tokens",)),
            Tensor("arena", 64, "float32", (4, 8)),
            Tensor("weights", 0, "uint8", (16,)),
            Tensor("weights", 64, "uint8", (16,)),
        ),
        functions={"prefill": steps, "score": steps, "decode": ()},
        state=("position", Level((4, 2))),
    )


def test_json_round_trip():
    plan = small_plan()
    assert Plan.from_json(plan.to_json()) == plan


def test_print_plan_shows_calls():
    text = print_plan(small_plan())
    assert (
        "embed  (ids=ids:i32[tokens], out=arena+0x40:f32[4,8], tokens=tokens, position=position, "
        "n3=level[4, 2], p3=-3, table=level[weights+0x0:u8[16], weights+0x40:u8[16]])" in text
    )
    assert text.count("# model.embed") == 2


def test_which_tensor_an_argument_is_at_a_level():
    args = small_plan().functions["prefill"][0].args
    at_level = [[tensor_index(arg, level) for arg in args] for level in range(2)]
    assert at_level == [[0, 1, *[None] * 4, 2], [0, 1, *[None] * 4, 3]]


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["version"], 9, "another version .got 9, need 2."),
        (["chunk"], 0, "chunk must be 1 to 1048576 .got 0."),
        (["chunk"], (1 << 20) + 1, "chunk must be"),
        (["context"], 2**31, "context must be 1 to 2147483647"),
        (["vocabulary"], True, "vocabulary must be"),
        (["arena_bytes"], 2**63, "arena_bytes must be 0 to"),
        (["tensors", 1, 3], [2**30, 2**31], "bad dims"),
        (["tensors", 1, 3], [2**30, 2**29], "ends outside its arena .got 2305843009213694016,"),
        (["tensors", 1, 1], 2**64, "multiple of 64"),
        (["arena_bytes"], "12", "arena_bytes must be"),
        (["kernels", 0], "bad-name", "C identifier"),
        (["tensors", 1, 0], "moon", "unknown space 'moon' at tensor 1"),
        (["tensors", 1, 1], 63, "multiple of 64"),
        (["tensors", 1, 1], 192, "ends outside its arena .got 320, size 256. at tensor 1"),
        (["tensors", 1, 1], -64, "multiple of 64"),
        (["tensors", 1, 2], "float8", "unknown dtype"),
        (["tensors", 1, 3], [4, "n"], "bad dims"),
        (["tensors", 0, 1], 64, "ids must be int32 at offset 0"),
        (["tensors", 1], [1, 2], "malformed plan"),
        (["functions", "decode"], None, "malformed plan"),
        (["functions", "prefill", 0, "kernel"], 1, "kernel index out of range .got 1. at prefill"),
        (
            ["functions", "prefill", 0, "args", 0],
            4,
            "bad argument 4 at prefill step 0 .model.embed",
        ),
        (["functions", "prefill", 0, "args", 0], "wordcount", "bad argument 'wordcount'"),
        (["functions", "prefill", 0, "args", 0], {"level": [1]}, "bad argument Level"),
        (["functions", "prefill", 0, "args", 6], {"tensors": [2]}, "bad argument LevelTensor"),
        (["functions", "prefill", 0, "args", 6], {"tensors": [2, 4]}, "bad argument LevelTensor"),
        (["functions", "prefill", 0, "args", 6], {"tensors": [2, 1]}, "bad argument LevelTensor"),
        (["functions", "prefill", 0, "args", 6], {"tensors": [2, True]}, "bad argument LevelT"),
        (["functions", "prefill", 0, "args", 0], {"const": 2**31}, "bad argument Const"),
        (["functions", "prefill", 0, "args", 0], {"x": 1}, "unknown argument"),
        (["functions", "prefill", 0, "args"], [0, 1], "number of arguments .got 2, need 7."),
        (["functions", "prefill", 0, "reads"], [1], "reads must be 2 numbers"),
        (["functions", "prefill", 0, "reads"], [1, -1], "reads must be 2 numbers"),
        (["functions", "prefill", 0, "weights"], -1, "weights must be a count"),
        (["parameters"], [], "every kernel has a list"),
        (["parameters", 0, 0], 5, "every kernel has a list"),
        (["functions"], {}, "functions must be"),
        (["state"], [0], "bad state 0 at state 0"),
        (["state"], ["wordcount"], "bad state 'wordcount' at state 0"),
        (["tensors", 1, 0], "state", "ends outside its state .got 192, size 128."),
        (["pruned"], [5001], "pruned must be at most 8 numbers up to 5000 .got .5001,.."),
        (["pruned"], [1] * 9, "pruned must be at most 8 numbers"),
        (["pruned"], ["1"], "pruned must be at most 8 numbers"),
        (["candidates"], 1, "candidates must be a tensor .'arena', 'int64', .1, 257.. .got Tensor"),
        (["candidates"], 99, "candidates must be a tensor .* .got None."),
        (["cache_offset"], 256, "cache_offset must be 0 to 255 .got 256."),
        (["tensors", 1, 3], [{"tokens": 1}, 8], "bad dims"),
        (["functions", "prefill", 0, "args", 2], {"tokens": 1}, "bad argument StageTokens"),
        (["functions", "prefill", 0, "args", 3], {"position": 1}, "bad argument StagePosition"),
    ],
)
def test_damaged_plans_are_refused(path, value, match):
    data = json.loads(small_plan().to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match=match) as caught:
        Plan.from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


def pruned_plan() -> Plan:
    """A plan whose prefill drops two in ten tokens, then three."""
    plan = small_plan()
    args = (0, 1, StageTokens(2), StagePosition(1), *plan.functions["prefill"][0].args[4:])
    tensors = (
        plan.tensors[0],
        Tensor("arena", 0, "float32", (StageTokens(1), 8)),
        *plan.tensors[2:],
    )
    steps = (dataclasses.replace(plan.functions["prefill"][0], args=args),)
    return dataclasses.replace(
        plan,
        chunk=9,
        arena_bytes=256,
        pruned=(2000, 3000),
        tensors=tensors,
        functions={**plan.functions, "prefill": steps},
    )


def test_stages_have_counts_of_their_own():
    plan = pruned_plan()
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.counts("prefill", 9) == (9, 8, 6)  # 9 - 8 * 0.2, then 8 - 7 * 0.3, rounded up
    assert plan.counts("prefill", 2) == (2, 2, 2)
    assert plan.counts("prefill", 1) == (1, 1, 1)
    assert plan.counts("score", 9) == (9, 9, 9)
    assert plan.tensors[1].byte_size(plan.counts("prefill", 9)) == plan.arena_bytes
    text = print_plan(plan)
    assert "out=arena+0x0:f32[tokens of stage 1,8], tokens=tokens of stage 2" in text
    assert "position=position of stage 1" in text
    assert "later stages of a prefill of 9 tokens: 8, 6" in text


@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ([{"tokens": 3}, 8], "bad dims"),
        ([{"tokens": 0}, 8], "bad dims"),
        ([{"position": 1}, 8], "bad dims"),
        ([{"tokens": 1}, "tokens"], "bad dims"),  # a tensor is of one stage
        ([{"tokens": 1}, 9], "ends outside its arena .got 288, size 256."),
    ],
)
def test_damaged_stages_are_refused(dims, match):
    data = json.loads(pruned_plan().to_json())
    data["tensors"][1][3] = dims
    with pytest.raises(ArtifactError, match=match):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"version":1}', "\x00", "[" * 99999])
def test_other_texts_are_refused(text):
    with pytest.raises(ArtifactError, match="at plan.json"):
        Plan.from_json(text)


def test_a_plan_is_checked_when_made():
    with pytest.raises(ArtifactError, match="vocabulary must be"):
        dataclasses.replace(small_plan(), vocabulary=0)
