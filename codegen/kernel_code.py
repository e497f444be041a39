"""What people want to know of a kernel's machine code: its size and how its hot loop looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

PIPELINE = "morendo.pipeline"
"""The attribute of a kernel that says how deep its stages are, as a printed kernel shows them."""


@dataclass(frozen=True)
class KernelCode:
    """A kernel as machine code, without what checks its arguments.

    Attributes:
        instructions: of all of it; 0 where nobody counted.
        loop: instructions of its hot loop by class ("dot", "load"); {} where it has none.
        products: of a weight and an activation that the hot loop makes each time it goes round; 0
            where that is not known.
        own: what only its target knows, such as registers, by the name of a column.
        NOTES: what own columns and those of `Target.predicted` mean, as lines for people.
    """

    NOTES: ClassVar[str] = ""

    instructions: int = 0
    loop: Mapping[str, int] = field(default_factory=dict)
    products: int = 0
    own: Mapping[str, int | str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What every target has, for scripts."""
        return {
            "instructions": self.instructions,
            "loop": dict(self.loop),
            "products": self.products,
            "own": dict(self.own),
        }
