"""Rebuilding a Relax function binding by binding: what the passes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import relax_functions
from morendo.ir.text import bindings_of

Visit = Callable[["Rebuilder", relax.Var, Any], Any]


class Rebuilder:
    """Copies a function; a visitor may replace the value of each binding.

    The visitor gets (rebuilder, the old variable, the value with operands already replaced) and
    returns the expression to bind. It may emit more bindings through `emit`.

    Args:
        function: in administrative normal form, as importers and passes make it.
        dims: new values (expressions) of symbolic dimensions.

    Attributes:
        new: the new variable of each old one that is done.
        uses: the old variables that read each old variable.
        values: what each old variable is bound to.
        current: the old variable that is being rebuilt, None while parameters are.
    """

    def __init__(self, function: relax.Function, dims: Mapping[Any, Any] | None = None) -> None:
        self.function = function
        self.builder = relax.BlockBuilder()
        self.new: dict[relax.Var, Any] = {}
        self.dims = dict(dims or {})
        self.analyzer = tvm.sym.Analyzer()
        for var, extent in self.dims.items():
            self.analyzer.bind(var, extent)
        self.current: relax.Var | None = None
        self.uses: dict[relax.Var, list[relax.Var]] = {}
        self.values: dict[relax.Var, Any] = {}
        for binding in bindings_of(function):
            self.values[binding.var] = binding.value
            for operand in operands(binding.value):
                self.uses.setdefault(operand, []).append(binding.var)
        self.uses.setdefault(self.result, []).append(self.result)

    @property
    def result(self) -> relax.Var:
        """The old variable that the function returns."""
        return self.function.body.body

    def single_use(self, var: relax.Var) -> bool:
        """Whether one binding (or the result) reads the old variable."""
        return len(self.uses.get(var, ())) == 1

    def emit(self, value: Any) -> relax.Var:
        """Bind a new expression."""
        return self.builder.emit(value)

    def replaced(self, value: Any) -> Any:
        """The expression with its old operands replaced by the new ones."""
        if isinstance(value, relax.Var):
            return self.new.get(value, value)
        if isinstance(value, relax.Call):
            args = [self.replaced(arg) for arg in value.args]
            types = [self._type(ty) for ty in value.ty_args]
            return relax.Call(value.op, args, value.attrs, types)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self.replaced(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.replaced(value.tuple_value), value.index)
        if isinstance(value, relax.ShapeExpr):
            return relax.ShapeExpr([self._dim(d) for d in value.values])
        if isinstance(value, tvm.ir.Expr) and tvm.ir.is_prim_expr(value):
            return self._dim(value)
        return value

    def _dim(self, dim: Any) -> Any:
        return dim if isinstance(dim, int) or not self.dims else self.analyzer.simplify(dim)

    def _type(self, ty: Any) -> Any:
        if isinstance(ty, relax.TensorType):
            return relax.TensorType([self._dim(d) for d in ty.shape.values], ty.dtype)
        if isinstance(ty, relax.TupleType):
            return relax.TupleType([self._type(field) for field in ty.fields])
        return ty

    def returned(self, result: relax.Var) -> Any:
        """What the rebuilt function returns, from its own result."""
        return result

    def run(self, visit: Visit, name: str = "main") -> relax.Function:
        """The rebuilt function; bindings that nothing reads any more are gone."""
        params = [relax.Var(p.name, self._type(p.ty)) for p in self.function.params]
        self.new.update(zip(self.function.params, params, strict=True))
        with self.builder.function(name, params):
            with self.builder.dataflow():
                for binding in bindings_of(self.function):
                    self.current = binding.var
                    value = visit(self, binding.var, self.replaced(binding.value))
                    bound = isinstance(value, relax.Var)
                    self.new[binding.var] = value if bound else self.builder.emit(value)
                out = self.builder.emit_output(self.returned(self.new[self.result]))
            self.builder.emit_func_output(out)
        built = self.builder.finalize()
        return relax.transform.DeadCodeElimination([name])(built)[name]


def operands(value: Any) -> list[relax.Var]:
    """The variables that a bound expression reads, each time it reads them."""
    if isinstance(value, relax.Var):
        return [value]
    if isinstance(value, relax.Call):
        return [var for arg in value.args for var in operands(arg)]
    if isinstance(value, relax.Tuple):
        return [var for field in value.fields for var in operands(field)]
    if isinstance(value, relax.TupleGetItem):
        return operands(value.tuple_value)
    return []


def map_functions(module: tvm.IRModule, visit: Visit) -> tvm.IRModule:
    """The module with the visitor run over each of its graph functions."""
    functions = {var.name_hint: function for var, function in module.functions_items()}
    for name, function in relax_functions(module).items():
        functions[name] = Rebuilder(function).run(visit, name)
    return tvm.IRModule(functions)


def mark_codes(module: tvm.IRModule, store: CodeStore, codes: str) -> tvm.IRModule:
    """Mark the linears and embeddings whose matrices are in a code store, by how they were made."""
    made = store.keys()

    def visit(_: Any, var: relax.Var, value: Any) -> Any:
        name = op_name(value)
        if name not in ("linear", "embedding"):
            return value
        attrs = attrs_of(value)
        if (attrs["weight"], WeightFormat.parse(attrs["format"])) not in made:
            return value
        return call(name, *value.args, **{**attrs, "codes": codes})

    return map_functions(module, visit)
