"""IR text that a person can read and that parses again.

It is TVMScript, with the calls of our ops written `M.linear(x, weight="...", ...)`: TVM's own
printing of an op registered from Python does not parse.
"""

from __future__ import annotations

import ast
import re
from typing import TypeVar

import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from .dialect import OPS, PREFIX, M
from .errors import InputError

_CALL = re.compile(r'T\.Call\("' + re.escape(PREFIX) + r'(\w+)", \[')
_HEADER = (
    "from tvm.script import ir as I, relax as R, tirx as T\nfrom morendo.ir.dialect import M\n\n"
)


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one just before `start`; strings are skipped."""
    depth, quoted = 1, False
    for i in range(start, len(text)):
        if text[i] == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and text[i] in "([{":
            depth += 1
        elif not quoted and text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i
    raise ValueError("unbalanced brackets")


def _literal(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)


def _rewrite_call(text: str, match: re.Match[str]) -> tuple[str, int]:
    """Our spelling of the call at `match`, and where the original one ends."""
    end_args = _closing(text, match.end())
    end_call = _closing(text, match.start() + len("T.Call("))
    args, rest = text[match.end() : end_args], text[end_args + 1 : end_call]
    found = re.search(r"attrs=\{", rest)
    attrs = {}
    if found:
        literal = rest[found.end() - 1 : _closing(rest, found.end()) + 1]
        attrs = ast.literal_eval(re.sub(r"T\.\w+\(([^()]*)\)", r"\1", literal))
    name = match.group(1)
    shown = {k: attrs[k] for k in OPS[name].attrs if k in attrs and attrs[k] != OPS[name].attrs[k]}
    parts = ([args] if args else []) + [f"{k}={_literal(v)}" for k, v in shown.items()]
    return f"M.{name}({', '.join(parts)})", end_call + 1


def print_module(module: tvm.IRModule) -> str:
    """The module as text that `parse_module` reads back."""
    raw = module.script()
    body = raw[raw.index("\n\n") + 2 :] if raw.startswith("#") else raw
    header = "".join(re.findall(r"^\w+ = TypeVar\(.*\)\n", body, re.M))
    body = body.split("\n\n# Metadata omitted")[0]
    pieces, position = [], 0
    for match in _CALL.finditer(body):
        text, end = _rewrite_call(body, match)
        pieces += [body[position : match.start()], text]
        position = end
    text = "".join([*pieces, body[position:]])
    typing = "from typing import TypeVar\n" if header else ""
    return typing + _HEADER + text.rstrip() + "\n"


def parse_module(text: str, where: str = "IR text") -> tvm.IRModule:
    """Read IR text.

    Raises:
        InputError: when it does not parse, with the parser's own words.
    """
    hint = "print a module with `morendo opt` or `--dump-ir` to see the syntax"
    names = re.findall(r"^(\w+) = TypeVar\(", text, re.M)
    symbols = {name: TypeVar(name) for name in names}  # pyright: ignore[reportGeneralTypeIssues]
    body = re.sub(r"^(from|import) .*\n|^\w+ = TypeVar\(.*\n", "", text, flags=re.M)
    try:
        return tvm.script.from_source(body, extra_vars={"I": I, "R": R, "T": T, "M": M, **symbols})
    except Exception as error:  # the parser raises many types, its own and Python's
        if "No result exists in IRBuilder" in str(error):
            raise InputError("there is no @I.ir_module in it", where=where, hint=hint) from None
        words = [line for line in str(error).splitlines() if line.strip()]
        said = next((line for line in words if line.startswith("error:")), (words or [""])[0])
        raise InputError(
            f"IR text does not parse ({said.removeprefix('error:').strip()})",
            where=where,
            hint=hint,
        ) from error


def bindings_of(function: relax.Function) -> list[relax.VarBinding]:
    """All bindings of a function in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]
