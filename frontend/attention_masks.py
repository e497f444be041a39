"""What a model's attention may see, asked of transformers' mask functions instead of built.

Transformers describes a mask by a function of two positions and lets its expansion be exchanged by
name. Ours expands nothing: it hands the model a token that says "causal, with this window", and the
function is asked about pairs of positions once the model has been traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import masking_utils

from morendo.ir.errors import InputError

MaskFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class CausalMask:
    """Stands in for an attention mask; a model may only pass it on to its attention.

    Attributes:
        window: how many positions a query sees, its own included; 0 = all up to its own.
        function: transformers' own description: (batch, head, query, key) -> whether it sees.
        tokens: which tokens are no padding, bool (1, n); None = all. Its values are known in the
            traced graph only.
    """

    window: int
    function: MaskFunction
    tokens: torch.Tensor | None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _used_otherwise()

    def __getitem__(self, index: Any) -> Any:
        raise _used_otherwise()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        marked = _REPLACED.get(function)
        if marked is None:
            raise _used_otherwise()
        return marked(*args, **(kwargs or {}))

    def check(self, where: str) -> None:
        """Ask the function about pairs of positions.

        Raises:
            InputError: when it sees anything else than a causal window.
        """
        query, key = _pairs(self.window)
        nobody = torch.zeros_like(query)
        want = key <= query
        if self.window:
            want &= key > query - self.window
        try:
            sees = [self.function(nobody, nobody + head, query, key) for head in (0, 1)]
            same = all(torch.equal(s.expand_as(want), want) for s in sees)
        except Exception:  # it looks into tensors that do not exist while a model is traced
            same = False
        if not same:
            kind = (
                f"a window of {self.window} positions" if self.window else "all earlier positions"
            )
            raise InputError(
                f"attention sees something else than {kind} (chunks, both directions, ...)",
                where=where,
                hint="only causal attention, with or without a sliding window, can be compiled",
            )


_REPLACED: dict[Any, Callable[..., torch.Tensor]] = {}


def replace_torch(function: Any, by: Callable[..., torch.Tensor]) -> None:
    """Call something else where a model gives a `CausalMask` to this function of torch."""
    _REPLACED[function] = by


def _used_otherwise() -> InputError:
    return InputError(
        "the model computes with its attention mask outside of the attention interface",
        hint="only attention that goes through transformers' interface can be compiled",
    )


def _pairs(window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (query, key), both int64 [P]: all small ones, and those around edges further on."""
    small = torch.arange(24)
    pairs = [torch.cartesian_prod(small, small)]
    for query in (window, window + 1, 2 * window + 3, 3 * window, 1000, 5000, 131072):
        edges = torch.tensor([0, 1, query - window - 1, query - window, query - window + 1])
        keys = torch.cat([edges, query + torch.arange(-20, 20)]).clamp(min=0)
        pairs.append(torch.stack([torch.full_like(keys, query), keys], 1))
    query, key = torch.cat(pairs).unbind(1)
    return query, key


def causal_mask(
    mask_function: MaskFunction,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **rest: Any,
) -> CausalMask:
    """Takes the place of transformers' expansion of a mask (`AttentionMaskInterface`)."""
    return CausalMask(local_size or 0, mask_function, attention_mask)


@contextmanager
def masks_are_tokens(names: Sequence[str]) -> Iterator[None]:
    """Within, models whose attention has one of these names get a `CausalMask` for a mask."""
    table = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    before = {name: table[name] for name in names if name in table}
    for name in names:
        table.register(name, causal_mask)
    try:
        yield
    finally:
        for name, function in before.items():
            table.register(name, function)
