"""C data that is generated for a model and linked with the C runtime: kernels, plan, facts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .text_facts import TextFacts


@dataclass(frozen=True)
class ModelTables:
    """What the C runtime knows of the model that it is linked with.

    Attributes:
        kernels: the names of the plan's kernels, in its order.
        plan: the text of plan.json, ASCII, which is executed: part of the program, as what it lets
            kernels read and write is.
        text: what is known of the model's texts.
        cpu_flags: what the CPU must have, as the toolchain's `cpu_check` knows them.
    """

    kernels: Sequence[str] = ()
    plan: str = ""
    text: TextFacts = field(default=TextFacts())
    cpu_flags: Sequence[str] = ()

    def c_source(self) -> str:
        """The definitions of what `runtime/c/internal.h` and `runtime/c/model.h` declare."""
        return self._kernels() + self._plan() + self.text.c_source()

    def _kernels(self) -> str:
        names = self.kernels
        lines = ['#include "internal.h"']
        lines += [f"int __tvm_ffi_{name}(void *, const Any *, int32_t, Any *);" for name in names]
        entries = [f'    {{"{name}", __tvm_ffi_{name}}},' for name in names]
        lines += ["const KernelEntry kernel_table[] = {", *entries, "    {0, 0},", "};"]
        lines += [f"const int kernel_count = {len(names)};"]
        flags = "".join(f'"{flag}", ' for flag in self.cpu_flags)
        lines += [f"const char *const needed_cpu_flags[] = {{{flags}0}};"]
        if not self.cpu_flags:
            lines += ["int cpu_has(const char *flag) { return !!flag; }"]
        return "\n".join(lines) + "\n"

    def _plan(self) -> str:
        escaped = re.sub(r'[\\"?]', r"\\\g<0>", self.plan)  # two question marks may be a trigraph
        pieces = re.findall(r"(?:\\.|[^\\]){1,1000}", escaped)
        lines = [f'    "{piece}"' for piece in pieces or [""]]
        return "\n".join(["const char plan_text[] =", *lines]) + ";\n"
