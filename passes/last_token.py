"""Leaving out of a prefill what only the logits of other tokens than the last would need.

Tokens meet in attentions alone, and what an attention reads of other tokens is their keys and
values. So whatever no attention reads is needed for the last token alone: the output projection and
the feed-forward block of the last layer, the last norm, the head; in models whose blocks lie side
by side the feed-forward block beside the last attention as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from morendo.ir.dialect import call, op_name, shape_of
from morendo.ir.text import bindings_of

from .rewrite import Rebuilder, operands

ATTENTIONS = ("attention", "stacked_attention")


class LastToken(Rebuilder):
    """Rebuilds `main` so that it computes the last token alone where it can.

    Attributes:
        single: the old variables that are computed of the last token alone. An attention among them
            still reads all tokens.
    """

    def __init__(self, function: relax.Function) -> None:
        tokens = shape_of(function.params[0].ty)[1]
        super().__init__(function, {tokens: tvm.tirx.IntImm(str(tokens.ty.dtype), 1)})
        whole = _whole(function)
        self.single = {binding.var for binding in bindings_of(function)} - whole
        self._last: dict[relax.Var, relax.Var] = {}

    def replaced(self, value: Any) -> Any:
        """The expression with new operands, of the last token where it is computed for this one."""
        new = super().replaced(value)
        whole = isinstance(value, relax.Var) and value not in self.single and _has_tokens(value)
        if not whole or not self._is_single():
            return new
        if value not in self._last:
            self._last[value] = self.emit(call("last_token", new))
        return self._last[value]

    def returned(self, result: relax.Var) -> Any:
        """The last token of what the function returns."""
        return result if self.result in self.single else call("last_token", result)

    def _is_single(self) -> bool:
        """Whether the expression that is being rebuilt reads and gives one token alone."""
        attends = op_name(self.values.get(self.current)) in ATTENTIONS
        return self.current in self.single and not attends

    def _dim(self, dim: Any) -> Any:
        return super()._dim(dim) if self._is_single() else dim


def _whole(function: relax.Function) -> set[relax.Var]:
    """The variables of which all tokens are computed: those that attentions read, and those that
    read something whose last token cannot be taken out, such as parts of a tuple or positions.
    """
    bindings = bindings_of(function)
    whole: set[relax.Var] = set(function.params)
    stuck: list[relax.Var] = []
    while True:
        whole.update(stuck)
        for binding in reversed(bindings):
            if binding.var in whole or op_name(binding.value) in ATTENTIONS:
                whole.update(operands(binding.value))
        single = [binding for binding in bindings if binding.var not in whole]
        stuck = [binding.var for binding in single if _is_stuck(binding.value, whole)]
        if not stuck:
            return whole


def _is_stuck(value: Any, whole: set[relax.Var]) -> bool:
    if op_name(value) in ATTENTIONS:
        return False
    read = [var for var in operands(value) if var in whole and _has_tokens(var)]
    return not all(_has_rows(var) for var in read)


def _dims(var: relax.Var) -> Sequence[Any]:
    types = var.ty.fields if isinstance(var.ty, relax.TupleType) else [var.ty]
    return [dim for ty in types if isinstance(ty, relax.TensorType) for dim in shape_of(ty)]


def _has_tokens(var: relax.Var) -> bool:
    """Whether a variable has something for each token."""
    return any(not isinstance(dim, int) for dim in _dims(var))


def _has_rows(var: relax.Var) -> bool:
    """Whether a variable is a float32 row for each token (1, n, ...)."""
    dims = _dims(var)
    plain = isinstance(var.ty, relax.TensorType) and str(var.ty.dtype) == "float32"
    fixed = [isinstance(dim, int) for dim in dims]
    return plain and len(dims) > 2 and fixed == [i != 1 for i in range(len(dims))]
