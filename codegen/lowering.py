"""From graph functions to kernel calls: the state that the lowering of every op works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tvm
from tvm import relax, tirx

from morendo.ir import plan_arguments
from morendo.ir.dialect import shape_of
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat, at_reading
from morendo.ir.layout import CACHE_DTYPES
from morendo.ir.level_reads import LevelRead, parse_levels
from morendo.ir.plan import ITEM_BYTES
from morendo.ir.plan_arguments import Const, Level
from morendo.ir.pruning import StagePosition, StageTokens

from .cpu.kernels.kv_cache import KVCache
from .memory import Storage
from .packed_matrix import Matrix
from .target import Target
from .touched import SCRATCH
from .weight_file import WeightFile

Scalar = plan_arguments.Scalar | StageTokens | StagePosition | Const | Level


@dataclass(frozen=True)
class LevelStorage:
    """Another storage at each precision level, all of one size."""

    at: tuple[Storage, ...]


Operand = Storage | LevelStorage | Scalar


@dataclass(frozen=True)
class KernelCall:
    """A step before buffers have offsets: dims of tensors come from the kernel's signature.

    Attributes:
        weights: how many a token is multiplied with.
        table_rows: rows of a table of which a token reads one; 0 where it reads all weights.
        tokens: what a symbolic dimension of its tensors is, where no argument says it.
    """

    kernel: str
    args: tuple[Operand, ...]
    note: str
    weights: int = 0
    table_rows: int = 0
    tokens: Literal["tokens"] | StageTokens = "tokens"


@dataclass(frozen=True)
class Options:
    """What the user may choose about the generated code.

    Attributes:
        chunk: most tokens of one prefill call.
        context: positions of the KV cache, a multiple of the layout's key tile.
        half_cache: whether the cache of keys and values is float16 where the graph leaves it open.
    """

    chunk: int
    context: int
    half_cache: bool


@dataclass
class Program:
    """What the functions of a model share: kernels, weights, caches.

    Attributes:
        levels: how many precision levels there are.
        heads: names of embedding tables and of the last linear's weights.
        unscheduled: what kernels were before they were scheduled, where they come from TVM.
        functions: the lowering of each function, once it is done.
        pruned: the parts of its tokens that each pruning of prefill drops.
        candidates: where decode leaves the likeliest tokens, if it does.
    """

    target: Target
    options: Options
    levels: int = 1
    heads: frozenset[str] = frozenset()
    kernels: dict[str, tirx.PrimFunc] = field(default_factory=dict)
    unscheduled: dict[str, tirx.PrimFunc] = field(default_factory=dict)
    functions: dict[str, FunctionLowering] = field(default_factory=dict)
    caches: dict[int, tuple[KVCache, list[Storage]]] = field(default_factory=dict)
    cache_bytes: int = 0
    pruned: tuple[int, ...] = ()
    candidates: Storage | None = None
    _built: dict[Any, tirx.PrimFunc] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = WeightFile(self.target.layout)

    def build(self, builder: Callable[..., tirx.PrimFunc], **options: Any) -> tirx.PrimFunc:
        """The kernel that `builder(isa=..., **options)` makes, built once for all layers.

        Where the target has a builder of its own in its place, that one makes it.
        """
        builder = self.target.builders.get(builder, builder)
        key = (builder, tuple(sorted(options.items())))
        if key not in self._built:
            self._built[key] = builder(isa=self.target.isa, **options)
        return self._built[key]

    def add_kernel(self, function: tirx.PrimFunc) -> str:
        """Keep a kernel once; its name says everything that its code depends on."""
        name = str(function.attrs["global_symbol"])
        self.kernels.setdefault(name, function)
        return name

    @property
    def cache_dtype(self) -> str:
        """What keys and values are stored as, "" without any."""
        return ", ".join(sorted({cache.dtype for cache, _ in self.caches.values()}))

    def cache(
        self, layer: int, kv_heads: int, head_dim: int, bits: int
    ) -> tuple[KVCache, list[Storage]]:
        """The KV cache of a layer and its arrays, placed when first asked for.

        Args:
            bits: 32, 16, 8, 4, or 0 for what the options say.
        """
        if layer not in self.caches:
            options, tile = self.options, self.target.layout.key_tile
            dtype = CACHE_DTYPES[bits or (16 if options.half_cache else 32)]
            cache = KVCache(kv_heads, head_dim, options.context, dtype, tile)
            places = []
            for array in cache.arrays:
                places.append(Storage("cache", array.nbytes, self.cache_bytes))
                self.cache_bytes += self.target.layout.aligned(array.nbytes)
            self.caches[layer] = (cache, places)
        return self.caches[layer]


class FunctionLowering:
    """Turns the bindings of one function into kernel calls.

    Attributes:
        values: where each variable's value is; a tuple's value is a list of storages.
        calls: the kernel calls so far, in order.
        steps: how many calls there were when each variable's value was complete.
        stages: the number of tokens of each stage of a prefill, as the IR has it.
    """

    def __init__(self, program: Program, function: relax.Function) -> None:
        self.program = program
        self.function = function
        self.build = program.build
        self.values: dict[relax.Var, Any] = {}
        self.calls: list[KernelCall] = []
        self.steps: dict[relax.Var, int] = {}
        self.arena: list[Storage] = []
        self.stages = [shape_of(function.params[0].ty)[1]]

    def max_tokens(self, rows: Any) -> int:
        """M for a dimension of tokens: itself when known, else the chunk."""
        return rows if isinstance(rows, int) else self.program.options.chunk

    def token_count(self, rows: Any) -> Scalar:
        """The kernel argument for a dimension of tokens."""
        return Const(rows) if isinstance(rows, int) else self.stage_tokens(self.stage(rows))

    def stage(self, rows: Any) -> int:
        """The stage of a prefill that has so many tokens; 0 for a number."""
        equal = tvm.sym.Analyzer().can_prove_equal
        later = range(1, len(self.stages))
        return next(
            (s for s in later if not isinstance(rows, int) and equal(rows, self.stages[s])), 0
        )

    def stage_tokens(self, stage: int) -> Literal["tokens"] | StageTokens:
        """The kernel argument for the tokens of a stage."""
        return StageTokens(stage) if stage else "tokens"

    def rows(self, var: relax.Expr) -> tuple[int, Scalar]:
        """(M, tokens argument) of a (1, n, ...) tensor."""
        rows = shape_of(var.ty)[1]
        return self.max_tokens(rows), self.token_count(rows)

    def storage(self, var: relax.Expr) -> Storage:
        """Where an operand's value is.

        Raises:
            CompileError: for something that is no computed tensor.
        """
        found = self.values.get(var)
        if not isinstance(found, Storage):
            raise CompileError(f"operand is no tensor in memory (got {var})", where="lowering")
        return found

    def new(self, dtype: str, *dims: int) -> Storage:
        """A new arena buffer.

        Raises:
            CompileError: for a type that buffers of a plan cannot have.
        """
        if dtype not in ITEM_BYTES:
            raise CompileError(
                f"the model computes {dtype} values (need one of {', '.join(ITEM_BYTES)})",
                where=str(self.function.attrs["global_symbol"]),
                hint="see where with --dump-ir; compile a model that computes in float32",
            )
        nbytes = ITEM_BYTES[dtype]
        for dim in dims:
            nbytes *= dim
        storage = Storage("arena", nbytes)
        self.arena.append(storage)
        return storage

    def new_for(self, ty: Any) -> Any:
        """A new buffer for a value of a Relax type, a list of them for a tuple."""
        if isinstance(ty, relax.TupleType):
            return [self.new_for(part) for part in ty.fields]
        dims = [self.bound(dim) for dim in shape_of(ty)]
        return self.new(str(ty.dtype), *dims)

    def new_like(self, buffers: Sequence[Any]) -> list[Storage]:
        """New buffers of the types and shapes that a kernel's parameters have."""
        return [
            self.new(str(buffer.ty.dtype), *map(int, buffer.ty.shape)) for buffer in buffers
        ]  # fmt: skip

    def bound(self, dim: Any) -> int:
        """The largest value of a dimension: the chunk for the number of tokens n."""
        if isinstance(dim, int):
            return dim
        analyzer = tvm.sym.Analyzer()
        for var in self.symbols:
            analyzer.bind(var, tirx.IntImm(str(var.ty.dtype), self.program.options.chunk))
        value = analyzer.simplify(dim)
        if not isinstance(value, tirx.IntImm):
            raise CompileError(f"dimension has no bound (got {dim})", where="lowering")
        return int(value)

    @property
    def symbols(self) -> list[Any]:
        """The symbolic dimensions of the function's parameters."""
        dims = [dim for param in self.function.params for dim in shape_of(param.ty)]
        return [dim for dim in dims if not isinstance(dim, int)]

    def call(
        self,
        function: tirx.PrimFunc,
        args: Sequence[Operand],
        note: str = "",
        weights: int = 0,
        table_rows: int = 0,
        stage: int = 0,
    ) -> None:
        """Append a kernel call; `weights` and `table_rows` as `KernelCall` has them.

        Args:
            stage: whose tokens a symbolic dimension of its tensors counts.
        """
        step, args = len(self.calls), self._with_scratch(function, args)
        for arg in args:
            if isinstance(arg, Storage):
                arg.used_at(step)
        kernel = self.program.add_kernel(function)
        tokens = self.stage_tokens(stage)
        self.calls.append(KernelCall(kernel, tuple(args), note, weights, table_rows, tokens))

    def _with_scratch(self, function: tirx.PrimFunc, args: Sequence[Operand]) -> list[Operand]:
        """The arguments of a kernel, with new buffers for what it wants for itself."""
        names, given = set(map(str, (function.attrs or {}).get(SCRATCH, ()))), iter(args)
        return [
            self.new_like([param])[0] if str(param.name) in names else next(given)
            for param in function.params
        ]

    def matrix(self, attrs: dict[str, Any]) -> list[Storage | LevelStorage]:
        """The packed arrays of a fused linear's weights, scales of the level's reading."""
        matrix = Matrix(
            tuple(attrs["weights"]),
            tuple(attrs["out_features"]),
            attrs["in_features"],
            WeightFormat.parse(attrs["format"]),
            attrs["transposed"],
            bool(attrs["gate"]),
            attrs["order"],
            bool(attrs["codes"]),
        )
        names = [array.name for array in matrix.arrays]
        places = dict(zip(names, self.program.weights.matrix(matrix), strict=True))
        operands: dict[str, Storage | LevelStorage] = dict(places)
        further = range(1, matrix.format.reading_count)
        for name in matrix.format.scale_names() if further else ():
            for reading in further:
                del operands[at_reading(name, reading)]
            read = [places[at_reading(name, each.reading)] for each in self.reads(attrs)]
            operands[name] = LevelStorage(tuple(read))
        return list(operands.values())

    def reads(self, attrs: dict[str, Any]) -> list[LevelRead]:
        """What is read of a nested matrix at every level."""
        fmt = WeightFormat.parse(attrs["format"])
        all_of_it = LevelRead(fmt.bounds(attrs["in_features"]))
        return parse_levels(attrs["levels"]) or [all_of_it] * self.program.levels

    def vector_at_levels(
        self, names: Sequence[str], size: int, levels: Sequence[int]
    ) -> Storage | LevelStorage:
        """A float32 vector that is one of several at each level; the first without levels."""
        places = [self.program.weights.vector([name], [size]) for name in names]
        if len(places) == 1:
            return places[0]
        return LevelStorage(tuple(places[i] for i in levels or [0] * self.program.levels))

    def bias(self, attrs: dict[str, Any]) -> list[Storage]:
        """The concatenated bias of a fused linear, nothing when there is none."""
        if not attrs["biases"]:
            return []
        return [self.program.weights.vector(attrs["biases"], attrs["out_features"])]

    def level(self, attrs: dict[str, Any]) -> list[Scalar]:
        """The loop bounds n3, n4, ... at every precision level, then what is stored: groups P3,
        P4, ... of the planes, slots of outliers.
        """
        fmt = WeightFormat.parse(attrs["format"])
        if not fmt.nested:
            return []
        bounds = zip(*(read.bounds for read in self.reads(attrs)), strict=True)
        stored = fmt.plane_groups(attrs["in_features"])
        slots = [Const(fmt.slots)] if fmt.slots else []
        return [*map(Level, bounds), *map(Const, stored), *slots]
