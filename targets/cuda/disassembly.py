"""Machine code of GPUs as instructions, counted: NVIDIA's disassembler comes from PyPI.

An instruction's class is the unit of a multiprocessor that makes it, so that counts can be held
against the rates of these units (`cost.py`).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TOOL = "cu13/bin/nvdisasm"
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
_LABEL = re.compile(r"(\.L_x_\d+):")
_JUMP = re.compile(r"`\((\.L_x_\d+)\)")
CLASSES = (  # the first that fits counts
    ("tensor", re.compile(r"[HI]G?MMA")),
    ("async copy", re.compile(r"LDGSTS|LDGDEPBAR|DEPBAR")),
    ("global", re.compile(r"LDG|STG|RED|ATOMG|LDC\b")),
    ("shared", re.compile(r"LDS|STS|ATOMS|SHFL")),
    ("spill", re.compile(r"LDL|STL")),
    ("dot", re.compile(r"IDP")),
    ("fp32", re.compile(r"FFMA|FMUL|FADD|HFMA2|HADD2|HMUL2")),
    ("multiply", re.compile(r"IMAD|IMUL")),
    ("convert", re.compile(r"I2F|F2I|F2F|I2I|MUFU|POPC")),
    ("uniform", re.compile(r"U[A-Z]|R2UR|S2UR|VOTEU")),
    ("control", re.compile(r"WARPGROUP|FENCE")),
    ("control", re.compile(r"BRA|BSSY|BSYNC|EXIT|BAR|CALL|RET|WARPSYNC|NOP|BREAK|YIELD")),
)
WARP = 32
IMMA, HMMA = "IMMA.16832", "HMMA.16816"
_TENSOR = {IMMA: 16 * 8 * 32, HMMA: 16 * 8 * 16}
HGMMA = "HGMMA"
"""Of a warpgroup: 64 rows, its own number of tokens, 16 channels."""
_TOKENS = re.compile(HGMMA + r"\.64x(\d+)x16\.")
_BYTE_FLOAT = re.compile(r"\b0x(744[0-3]|4b000000)\b")  # a permutation makes a float of a byte
_TO_FLOAT = ".FLOAT"
_REST = "integer"  # logic, shifts, sums, comparisons, permutations, moves


@dataclass(frozen=True)
class Instruction:
    """One line of a listing: `label` is the place that it jumps to or is at."""

    opcode: str
    at: str = ""
    to: str = ""

    @property
    def unit(self) -> str:
        """The class."""
        return next((name for name, found in CLASSES if found.match(self.opcode)), _REST)


@dataclass(frozen=True)
class Loop:
    """An innermost loop.

    Attributes:
        body: its instructions, in order.
    """

    body: tuple[Instruction, ...]

    def count(self, opcode: str) -> int:
        """Instructions whose opcode begins so."""
        return sum(one.opcode.startswith(opcode) for one in self.body)

    @property
    def products(self) -> int:
        """Of a weight and an activation, of a lane each time round."""
        tensor = sum(self.tensor.values()) // WARP
        return tensor + 4 * self.count("IDP.4A") + self.count("PRMT" + _TO_FLOAT)

    @property
    def tensor(self) -> dict[str, int]:
        """The products that a warp makes by each kind of matrix instruction."""
        made = {kind: each * self.count(kind) for kind, each in _TENSOR.items()}
        return made | {HGMMA: 16 * 16 * self.warpgroup_tokens}

    @property
    def warpgroup_tokens(self) -> int:
        """Of all products of warpgroups, which read them from shared memory once for four warps."""
        found = (_TOKENS.match(one.opcode) for one in self.body)
        return sum(int(one[1]) for one in found if one)

    @property
    def units(self) -> dict[str, int]:
        """Instructions by class, the most frequent first."""
        return dict(Counter(one.unit for one in self.body).most_common())

    @property
    def moved_bytes(self) -> int:
        """Between registers or matrix units and shared memory or first cache, of a lane each time
        round.
        """
        own = sum(_width(one.opcode) for one in self.body if one.unit in ("shared", "global"))
        return own + self.warpgroup_tokens * 16 * 2 // (4 * WARP)

    @property
    def copied_bytes(self) -> int:
        """To shared memory in the background, of a lane each time round, if all lanes copied."""
        return sum(_width(one.opcode) for one in self.body if one.opcode.startswith("LDGSTS"))

    def alternatives(self) -> list[tuple[int, int]]:
        """(first, end) of the parts that a jump passes over, without those that have one inside."""
        places = {one.at: i for i, one in enumerate(self.body) if one.at}
        jumps = [(i, places.get(one.to, 0)) for i, one in enumerate(self.body) if one.to]
        spans = [(i + 1, end) for i, end in jumps if end > i + 1]
        return [
            a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)
        ]

    def taking(self, chosen: int, marks: str) -> Loop:
        """The loop as it runs where of several parts one is passed through.

        Args:
            chosen: which one.
            marks: an opcode that only these parts have.
        """
        parts = [
            (first, end) for first, end in self.alternatives()
            if any(one.opcode.startswith(marks) for one in self.body[first:end])
        ]  # fmt: skip
        left_out = {i for n, part in enumerate(parts) if n != chosen for i in range(*part)}
        return Loop(tuple(one for i, one in enumerate(self.body) if i not in left_out))


def _width(opcode: str) -> int:
    """Bytes that a lane moves; a narrow one takes as long as a word."""
    parts = opcode.split(".")
    return 16 if "128" in parts else 8 if "64" in parts else 4


def find_disassembler() -> Path | None:
    """The program, if it is installed."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((p / _TOOL for p in map(Path, places) if (p / _TOOL).exists()), None)


def disassemble(tool: Path, cubin: bytes) -> list[Instruction]:
    """The instructions of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-c", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(listing: str) -> list[Instruction]:
    """The instructions of a listing; those behind the last way out are padding."""
    found, label = [], ""
    for line in listing.splitlines():
        at, is_one = _LABEL.match(line), _INSTRUCTION.match(line)
        if at:
            label = at[1]
        elif is_one:
            jump = _JUMP.search(is_one[2]) if is_one[1].startswith("BRA") else None
            opcode = is_one[1]
            if opcode == "PRMT" and _BYTE_FLOAT.search(is_one[2]):
                opcode += _TO_FLOAT
            found.append(Instruction(opcode, label, jump[1] if jump else ""))
            label = ""
    return found


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """The innermost loops that multiply, in the order of the code."""
    places = {one.at: i for i, one in enumerate(code) if one.at}
    back = [(places.get(one.to, i + 1), i) for i, one in enumerate(code) if one.to]
    spans = [(first, last) for first, last in back if first < last]
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    found = (Loop(tuple(code[first : last + 1])) for first, last in inner)
    return [loop for loop in found if loop.products]
