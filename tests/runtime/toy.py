"""A toy model without a compiler: hand-made plan, kernels in C, weights that numpy can check."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from morendo.codegen.link import Toolchain, link_model
from morendo.codegen.model_tables import ModelTables
from morendo.codegen.text_facts import ChatForm, SamplingDefaults, TextFacts
from morendo.ir.plan import SLOT_BYTES, Plan, Step, Tensor
from morendo.ir.plan_arguments import Const, Level, LevelTensor
from morendo.ir.pruning import StagePosition, StageTokens
from morendo.runtime.artifact import create_artifact

VOCABULARY, WIDTH, CHUNK, CONTEXT, LEVELS = 37, 5, 4, 19, 3
KERNELS = ("embed", "append", "mix", "head")
PARAMETERS = (
    ("ids", "table", "out", "tokens"),
    ("x", "v_cache", "tokens", "position"),
    ("v_cache", "out", "tokens", "position", "level"),
    ("x", "table", "out", "tokens", "all_rows"),
)
NOTHING = (0,) * LEVELS
SECOND_TABLE = 768  # bytes from the start of the weights: what the last level compares with
HERE = Path(__file__).resolve().parent
CHAT = ChatForm(("<u>", "<a>"), ("<s>", "<u>", "<a>"), trims=True)
TEXT = TextFacts(bos=0, stops=(1, 7), chat=CHAT, sampling=SamplingDefaults(0.5, 3))
TOOLCHAIN = Toolchain(f"{platform.machine()}-linux-gnu.2.17")


def toy_plan(context: int = CONTEXT) -> Plan:
    width_bytes = 4 * WIDTH
    arena_bytes = 128 * (1 + CHUNK * width_bytes // 128)
    tensors = (
        Tensor("ids", 0, "int32", ("tokens",)),
        Tensor("weights", 0, "float32", (VOCABULARY, WIDTH)),
        Tensor("arena", 0, "float32", ("tokens", WIDTH)),
        Tensor("cache", 0, "float32", (context, WIDTH)),
        Tensor("arena", arena_bytes, "float32", (CHUNK, WIDTH)),
        Tensor("logits", 0, "float32", (1, VOCABULARY)),
        Tensor("logits", 0, "float32", ("tokens", VOCABULARY)),
        Tensor("weights", SECOND_TABLE, "float32", (VOCABULARY, WIDTH)),
    )

    def steps(logits: int, all_rows: int) -> tuple[Step, ...]:
        level = Level(tuple(range(LEVELS)))
        row, table_bytes = (4 * WIDTH,) * LEVELS, (4 * WIDTH * VOCABULARY,) * LEVELS
        table = LevelTensor((*(1 for _ in range(LEVELS - 1)), 7))
        return (
            Step(0, (0, 1, 2, "tokens"), "embed_tokens", row),
            Step(1, (2, 3, "tokens", "position"), "layer.append", NOTHING),
            Step(2, (3, 4, "tokens", "position", level), "layer.mix", NOTHING),
            Step(
                3, (4, table, logits, "tokens", Const(all_rows)), "lm_head", table_bytes,
                VOCABULARY * WIDTH,
            ),
        )  # fmt: skip

    return Plan(
        chunk=CHUNK,
        context=context,
        vocabulary=VOCABULARY,
        levels=LEVELS,
        arena_bytes=2 * arena_bytes,
        cache_bytes=context * width_bytes,
        weights_bytes=SECOND_TABLE + VOCABULARY * width_bytes,
        kernels=KERNELS,
        parameters=PARAMETERS,
        tensors=tensors,
        functions={"prefill": steps(5, 0), "score": steps(6, 1), "decode": steps(5, 0)},
    )


def state_plan() -> Plan:
    """The same plan; tokens, position and level are read from memory by the kernel that mixes."""
    plan, level = toy_plan(), Level(tuple(range(LEVELS)))
    first = len(plan.tensors)
    slots = tuple(Tensor("state", SLOT_BYTES * i, "int32", (1,)) for i in range(3))
    mix = Step(2, (3, 4, first, first + 1, first + 2), "layer.mix", NOTHING)
    functions = {
        name: tuple(mix if step.kernel == 2 else step for step in steps)
        for name, steps in plan.functions.items()
    }
    state = ("tokens", "position", level)
    return replace(plan, tensors=plan.tensors + slots, functions=functions, state=state)


def staged_plan() -> Plan:
    """The same plan to read, not to run: prefill mixes and remembers three tokens of four."""
    plan, tokens = toy_plan(), StageTokens(1)
    staged: dict[Any, Any] = {"tokens": tokens, "position": StagePosition(1)}
    mixed = replace(plan.tensors[2], dims=(tokens, WIDTH))
    steps = tuple(
        replace(
            step,
            args=tuple(staged.get(a, a) for a in step.args),
        )
        if step.kernel == 2
        else step
        for step in plan.functions["prefill"]
    )
    tensors = (*plan.tensors[:2], mixed, *plan.tensors[3:])
    functions = {**plan.functions, "prefill": steps}
    return replace(plan, tensors=tensors, functions=functions, pruned=(4000,))


def toy_weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)


def toy_file() -> bytes:
    """weights.bin: the table, and the same from its last row to its first."""
    table = toy_weights()
    return table.tobytes().ljust(SECOND_TABLE, b"\0") + table[::-1].tobytes()


def toy_logits(ids: list[int], level: int = 0) -> np.ndarray:
    """What the toy model computes, [tokens, vocabulary]."""
    table = toy_weights()
    sums = np.cumsum(table[ids], axis=0)
    means = sums / np.arange(1, len(ids) + 1, dtype=np.float32)[:, None] * (1 + level)
    return means @ (table[::-1] if level == LEVELS - 1 else table).T


def toy_manifest() -> dict:
    return {
        "model": {"name": "toy", "architecture": "toy"},
        "target": {
            "name": "host",
            "triple": f"{platform.machine()}-linux-gnu",
            "machine": platform.machine(),
            "cpu_flags": [],
            "emulator": "",
        },
        "tokenizer": {"bos": 0, "eos": 1, "stop": [1, 7], "add_bos": False},
    }


def link_toy(
    out: Path,
    plan: Plan | None = None,
    toolchain: Toolchain = TOOLCHAIN,
    cpu_flags: Sequence[str] = (),
) -> None:
    link_model([], toy_tables(plan, cpu_flags), out, toolchain, sources=[HERE / "toy_kernels.c"])


def toy_tables(plan: Plan | None = None, cpu_flags: Sequence[str] = ()) -> ModelTables:
    return ModelTables(KERNELS, (plan or toy_plan()).to_json(), TEXT, cpu_flags)


def write_toy(
    out: Path, library: Path, manifest: dict, add: Callable[[Path], object] = lambda path: None
) -> None:
    """Write the toy artifact; `add` may put more files into it."""
    with create_artifact(out) as writer:
        (writer.path / "plan.json").write_text(toy_plan().to_json())
        (writer.path / "weights.bin").write_bytes(toy_file())
        (writer.path / "model.so").write_bytes(library.read_bytes())
        add(writer.path)
        writer.finish(manifest)


def write_with_plan(out: Path, library: Path, plan: Plan) -> None:
    """Write the toy artifact with another plan."""
    write_toy(out, library, toy_manifest(), lambda p: (p / "plan.json").write_text(plan.to_json()))
