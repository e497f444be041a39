"""What TVM generates, run by both executors: parallel loops, scratch memory, refused arguments."""

# pyright: reportInvalidTypeForm=false

import numpy as np
import pytest
import toy

from morendo.codegen.link import link_model
from morendo.codegen.model_tables import ModelTables
from morendo.ir.errors import MorendoError
from morendo.ir.plan import Plan, Step, Tensor
from morendo.runtime.session import Session

CHUNK, WIDTH, VOCABULARY = 8, 1024, 512


def make_objects(folder):
    """A kernel with a parallel loop, scratch memory too large for the stack and run-time bounds."""
    tvm = pytest.importorskip("tvm")
    from tvm.script import tirx as T

    @T.prim_func
    def mix(
        ids: T.Buffer((CHUNK,), "int32"),
        table: T.Buffer((VOCABULARY, WIDTH), "float32"),
        logits: T.Buffer((CHUNK, VOCABULARY), "float32"),
        tokens: T.int32,
        position: T.int32,
    ):
        T.func_attr({"global_symbol": "mix", "tirx.noalias": True})
        for m in T.parallel(tokens):
            scratch = T.alloc_buffer((WIDTH,), "float32")
            for c in range(WIDTH):
                scratch[c] = T.exp(table[ids[m], c]) + T.Cast("float32", position + m)
            for v in range(VOCABULARY):
                logits[m, v] = scratch[v] * scratch[WIDTH - 1 - v]

    triple = toy.toy_manifest()["target"]["triple"]
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    module = tvm.compile(tvm.IRModule({"mix": mix}), target=target)
    getattr(module, "mod", module).write_to_file(str(folder / "mix.o"))
    return [folder / "mix.o"]


def make_plan(ids_dims=(CHUNK,)):
    tensors = (
        Tensor("ids", 0, "int32", ids_dims),
        Tensor("weights", 0, "float32", (VOCABULARY, WIDTH)),
        Tensor("logits", 0, "float32", (CHUNK, VOCABULARY)),
    )
    steps = (Step(0, (0, 1, 2, "tokens", "position"), "mix everything", (4 * VOCABULARY * WIDTH,)),)
    return Plan(
        chunk=CHUNK,
        context=64,
        vocabulary=VOCABULARY,
        levels=1,
        arena_bytes=0,
        cache_bytes=0,
        weights_bytes=4 * VOCABULARY * WIDTH,
        kernels=("mix",),
        parameters=(("ids", "table", "out", "tokens", "position"),),
        tensors=tensors,
        functions={"prefill": steps, "score": steps, "decode": steps},
    )


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("tvm")
    library = folder / "model.so"
    plan = make_plan().to_json()
    link_model(make_objects(folder), ModelTables(["mix"], plan), library, toy.TOOLCHAIN)

    def add(path):
        (path / "plan.json").write_text(plan)
        (path / "weights.bin").write_bytes(table.tobytes())

    toy.write_toy(folder / "artifact", library, toy.toy_manifest(), add)
    return folder / "artifact"


@pytest.mark.parametrize("executor", ["c", "python"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_parallel_loops_and_scratch(artifact, table, executor, threads):
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 2 * CHUNK + 3)
    rows = np.exp(table[ids]) + np.arange(len(ids), dtype=np.float32)[:, None]
    want = rows[:, :VOCABULARY] * rows[:, ::-1][:, :VOCABULARY]
    with Session(artifact, threads=threads, executor=executor) as session:
        np.testing.assert_allclose(session.logits(ids), want, rtol=1e-5)


@pytest.mark.parametrize("executor", ["c", "python"])
def test_a_kernel_refuses_a_wrong_shape(artifact, tmp_path, executor):
    plan, library = make_plan(ids_dims=("tokens",)).to_json(), tmp_path / "model.so"
    link_model(make_objects(tmp_path), ModelTables(["mix"], plan), library, toy.TOOLCHAIN)

    def add(path):
        (path / "plan.json").write_text(plan)
        (path / "weights.bin").write_bytes((artifact / "weights.bin").read_bytes())

    toy.write_toy(tmp_path / "a", library, toy.toy_manifest(), add)
    with Session(tmp_path / "a", executor=executor) as session:
        with pytest.raises(
            MorendoError, match="kernel mix failed .*mix everything.*shape"
        ) as caught:
            session.logits([1])
        assert "\n" not in str(caught.value)
