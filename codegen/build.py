"""The end of lowering: graph functions to kernels and a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import relax, tirx

from morendo.ir.dialect import attrs_of, op_name, shape_of
from morendo.ir.errors import CompileError
from morendo.ir.invariants import calls, check_invariant, relax_functions
from morendo.ir.plan import CANDIDATES, FUNCTIONS, SLOT_BYTES, Plan, Step, Tensor
from morendo.ir.plan_arguments import Argument, Const, LevelTensor
from morendo.ir.text import bindings_of

from .cpu.kernels.token_rows import token_positions
from .lower_generic import lower_generic
from .lower_ops import lower_op
from .lowering import FunctionLowering, KernelCall, LevelStorage, Options, Program
from .memory import Storage, plan_arena
from .step_reads import bytes_read
from .target import Target

_PLACED = (Storage, LevelStorage)  # arguments that are tensors


def lower_module(
    module: tvm.IRModule,
    target: Target,
    options: Options,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Program, Plan]:
    """Kernels, weight layout and plan of a specialized module.

    Args:
        module: has the functions prefill, score and decode.
        advance: called after each function, for progress.

    Raises:
        CompileError: when an op has no kernel.
    """
    check_invariant("levels-agree", module, "before lowering")
    program = Program(target, options, _level_count(module), _heads(module), pruned=_pruned(module))
    for name, function in relax_functions(module).items():
        program.functions[name] = _lower_function(program, function)
        advance()
    return program, _plan(program, module, program.functions)


def _level_count(module: tvm.IRModule) -> int:
    """How many precision levels the calls of a module have; 1 where they have none."""
    return max((len(attrs_of(each).get("levels", [])) for _, each in calls(module)), default=0) or 1


def _pruned(module: tvm.IRModule) -> tuple[int, ...]:
    """The parts that each pruning drops, in prefill's order."""
    found = (attrs_of(call) for name, call in calls(module) if name == "prune_tokens")
    return tuple(attrs["dropped"] for attrs in found)


def _heads(module: tvm.IRModule) -> frozenset[str]:
    """Names of embedding tables and of what the last linear is made of."""
    found, last = set(), []
    for _, call in calls(module):
        attrs = attrs_of(call)
        if "weights" in attrs:
            last = attrs["weights"]
        elif op_name(call) == "embedding":
            found.add(attrs["weight"])
    return frozenset([*found, *last])


def _lower_function(program: Program, function: relax.Function) -> FunctionLowering:
    lowering = FunctionLowering(program, function)
    ids, positions = function.params
    lowering.values[ids] = Storage("ids", 0)
    if _computes_with(function, positions):
        tokens, count = lowering.rows(positions)
        lowering.values[positions] = lowering.new("int64", tokens)
        args = [lowering.values[positions], count, "position"]
        lowering.call(lowering.build(token_positions, max_tokens=tokens), args, "positions")
    for binding in bindings_of(function):
        value = binding.value
        lower = lower_op if op_name(value) else lower_generic
        lowering.values[binding.var] = lower(lowering, value)
        lowering.steps[binding.var] = len(lowering.calls)
    result = lowering.storage(function.body.body)
    if result.space != "arena":
        raise CompileError("the result is not computed by the model", where="lowering")
    result.space = "logits"
    if function.attrs["global_symbol"] == "decode":
        program.candidates = program.target.find_candidates(lowering, result)
    return lowering


def _computes_with(function: relax.Function, positions: relax.Var) -> bool:
    """Whether anything reads the positions but rope, which counts them itself where the slots of
    its cache are the positions.
    """
    for binding in bindings_of(function):
        value = binding.value
        if not isinstance(value, relax.Call) or op_name(value) == "rope":
            continue
        if op_name(value) == "cached_stacked_attention" and not attrs_of(value)["stage"]:
            continue
        if any(arg.same_as(positions) for arg in value.args):
            return True
    return False


def _plan(program: Program, module: tvm.IRModule, lowered: dict[str, FunctionLowering]) -> Plan:
    arena_bytes = max(
        plan_arena(_used(lowering.arena), program.target.layout) for lowering in lowered.values()
    )
    kernels = {name: index for index, name in enumerate(program.kernels)}
    found: dict[Tensor, int] = {}
    state: dict[Argument, int] = {}
    arguments = {
        name: [_arguments(call, program, found, state) for call in lowered[name].calls]
        for name in FUNCTIONS
    }
    tensors = tuple(found)
    functions = {
        name: tuple(
            _step(call, args, program, kernels, tensors)
            for call, args in zip(lowered[name].calls, arguments[name], strict=True)
        )
        for name in FUNCTIONS
    }
    return Plan(
        chunk=program.options.chunk,
        context=program.options.context,
        vocabulary=shape_of(relax_functions(module)["decode"].ret_ty)[-1],
        levels=program.levels,
        arena_bytes=arena_bytes,
        cache_bytes=program.cache_bytes,
        weights_bytes=program.weights.nbytes,
        kernels=tuple(kernels),
        parameters=tuple(map(_parameters, program.kernels.values())),
        tensors=tensors,
        functions=functions,
        state=tuple(state),
        pruned=program.pruned,
        candidates=_candidates(program.candidates, found),
        cache_offset=program.target.isa.signed_offset if program.cache_dtype == "int8" else 0,
    )


def _candidates(place: Storage | None, tensors: dict[Tensor, int]) -> int | None:
    """The tensor that the likeliest tokens are in."""
    if place is None:
        return None
    return tensors[Tensor(place.space, place.offset, "int64", (1, CANDIDATES + 1))]


def _used(buffers: Sequence[Storage]) -> list[Storage]:
    """Those that lie in the arena and that a step works on."""
    return [b for b in buffers if b.space == "arena" and b.first >= 0]


def _arguments(
    call: KernelCall, program: Program, tensors: dict[Tensor, int], state: dict[Argument, int]
) -> tuple[Argument, ...]:
    """What a step is given; a scalar that its kernel reads from memory gets a slot of the state.

    Args:
        tensors: index of each tensor of the plan; new ones are added.
        state: slot of each scalar that kernels read from memory; new ones are added.
    """
    args: list[Argument] = []
    pairs = list(zip(program.kernels[call.kernel].params, call.args, strict=True))
    scalars = [(param, arg) for param, arg in pairs if not isinstance(arg, _PLACED)]

    def index_of(param: Any, place: Storage) -> int:
        dims = tuple(_dim(dim, scalars, call) for dim in param.ty.shape)
        tensor = Tensor(place.space, place.offset, str(param.ty.dtype), dims)
        return tensors.setdefault(tensor, len(tensors))

    for param, arg in pairs:
        if isinstance(arg, LevelStorage):
            args.append(LevelTensor(tuple(index_of(param, place) for place in arg.at)))
        elif isinstance(arg, Storage):
            args.append(index_of(param, arg))
        elif _in_memory(param):
            slot = state.setdefault(arg, len(state))
            tensor = Tensor("state", SLOT_BYTES * slot, "int32", (1,))
            args.append(tensors.setdefault(tensor, len(tensors)))
        else:
            args.append(arg)
    return tuple(args)


def _step(
    call: KernelCall,
    args: tuple[Argument, ...],
    program: Program,
    kernels: dict[str, int],
    tensors: Sequence[Tensor],
) -> Step:
    """A call with its arguments and with what it reads of the plan's tensors at every level."""
    # What a level reads is told by the scalars, wherever the kernel finds them.
    meant: list[Argument] = [
        arg if isinstance(given, _PLACED) else given
        for arg, given in zip(args, call.args, strict=True)
    ]
    names = _parameters(program.kernels[call.kernel])
    reads = bytes_read(names, meant, tensors, program.levels)
    reads = tuple(nbytes // max(call.table_rows, 1) for nbytes in reads)
    return Step(kernels[call.kernel], args, call.note, reads, call.weights)


def _parameters(function: tirx.PrimFunc) -> tuple[str, ...]:
    """The names of a kernel's parameters."""
    return tuple(str(param.name) for param in function.params)


def _in_memory(param: Any) -> bool:
    """Whether a kernel reads a parameter from memory."""
    return hasattr(param.ty, "shape")


def _dim(dim: Any, scalars: Sequence[tuple[Any, Any]], call: KernelCall) -> Any:
    """A dimension of a kernel's buffer; its symbols are constant arguments or the tokens."""
    if isinstance(dim, tirx.IntImm | int):
        return int(dim)
    if tvm.ir.is_prim_var(dim):
        given = next((arg for param, arg in scalars if dim.same_as(param)), call.tokens)
        return given.value if isinstance(given, Const) else given
    raise CompileError(f"dimension depends on the tokens as {dim}", where=call.note)
