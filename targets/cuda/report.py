"""What `morendo inspect --kernels` says of kernels for GPUs: machine code, and predicted times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tvm import tirx
from tvm_ffi import structural_walk

from morendo.codegen.kernel_code import PIPELINE, KernelCode

from .cost import Rates, Work, known_gpus, predict
from .device_code import COPIED_BYTES
from .disassembly import Instruction, Loop, disassemble, find_disassembler, loops
from .nvrtc import OWN, Image

if TYPE_CHECKING:
    from morendo.codegen.kernel_facts import KernelFacts

UNPACKING = "SHF.L.W"
"""Rotations, which only the parts of a loop have that unpack codes of some bits."""


@dataclass(frozen=True)
class Machine:
    """A kernel on one architecture: its image, instructions, and hot loop at all bits."""

    image: Image
    code: tuple[Instruction, ...] = ()
    loop: Loop | None = None

    @classmethod
    def of(cls, image: Image) -> Machine:
        """Of an image; without a disassembler it has no instructions."""
        tool = find_disassembler()
        if tool is None:
            return cls(image)
        code = disassemble(tool, image.cubin)
        found = loops(code)
        return cls(image, tuple(code), found[0].taking(0, UNPACKING) if found else None)


@dataclass(frozen=True)
class DeviceCode(KernelCode):
    """A kernel for GPUs.

    Attributes:
        machines: by architecture.
        grid: blocks of a launch, along x and y.
        threads: of a block.
        ahead: turns that copies are ahead.
        copied_bytes: to shared memory, of a block for a turn.
    """

    NOTES: ClassVar[str] = """\
registers, spilled bytes: of a thread; shared bytes: of a block. GPU us: microseconds of a call on
that GPU at the most precise level, predicted by a model and not measured, with what bounds it:
memory, latency (waiting for memory), or the busiest unit of a
multiprocessor (instructions: to issue all of them; shared: shared memory and first cache; ...)."""

    machines: Mapping[str, Machine] = field(default_factory=dict)
    grid: tuple[int, int] = (1, 1)
    threads: int = 32
    ahead: int = 1
    copied_bytes: int = 0

    def arch_for(self, gpu: Rates) -> str | None:
        """The architecture of the code that a GPU takes; None: there is none for just this GPU."""
        names = (gpu.arch + OWN, gpu.arch)
        return next((name for name in names if name in self.machines), None)

    def work(self, arch: str, products: float, moved: float) -> Work:
        """A launch that makes so many products and moves so many bytes."""
        one, blocks = self.machines[arch], self.grid[0] * self.grid[1]
        held = (one.image.registers, one.image.shared_bytes)
        return Work(
            moved, products, one.loop, blocks, self.threads, *held, self.ahead, self.copied_bytes
        )


def device_code(function: tirx.PrimFunc, images: Mapping[str, Image]) -> DeviceCode:
    """What is known of a kernel's machine code. The instructions are those of the first
    architecture; own columns have one number, or one for each where they differ.
    """
    machines = {arch: Machine.of(image) for arch, image in images.items()}
    columns = {
        "registers": {arch: image.registers for arch, image in images.items()},
        "shared bytes": {arch: image.shared_bytes for arch, image in images.items()},
        "spilled bytes": {arch: image.spilled_bytes for arch, image in images.items()},
    }
    own: dict[str, int | str] = {}
    for name, found in columns.items():
        first, *others = dict.fromkeys(found.values())
        listed = ", ".join(f"{arch} {count}" for arch, count in found.items())
        own[name] = listed if others else first
    one = next(iter(machines.values()))
    loop = one.loop.units if one.loop else {}
    products = one.loop.products if one.loop else 0
    grid, threads = launch_sizes(function)
    attrs = function.attrs or {}
    ahead, copied = int(attrs.get(PIPELINE, {}).get("fetch", 1)), int(attrs.get(COPIED_BYTES, 0))
    return DeviceCode(len(one.code), loop, products, own, machines, grid, threads, ahead, copied)


def device_codes(
    kernels: Mapping[str, tirx.PrimFunc], images: Mapping[str, Mapping[str, Image]]
) -> dict[str, DeviceCode]:
    """`device_code` of all kernels, by their names."""
    return {name: device_code(kernels[name], made) for name, made in images.items()}


def launch_sizes(function: tirx.PrimFunc) -> tuple[tuple[int, int], int]:
    """(blocks along x and y, threads of a block), which are constants in kernels of ours; of a
    kernel with several launches those of the first, which has most of the work.
    """
    sizes: dict[str, int] = {}

    def see(node: Any) -> None:
        if str(node.attr_key) == "thread_extent":
            sizes.setdefault(str(node.node.thread_tag), int(node.value))

    structural_walk(function.body, [(tirx.AttrStmt, see)])
    grid = (sizes.get("blockIdx.x", 1), sizes.get("blockIdx.y", 1))
    return grid, sizes.get("threadIdx.x", 1)


def predicted(one: KernelFacts) -> dict[str, str]:
    """Microseconds of a call and what bounds it, at the most precise level and an empty cache, on
    each GPU that is described and that the kernel has code for.
    """
    if not isinstance(one.code, DeviceCode):
        return {}
    moved = one.weight_bytes[0] + one.read_bytes + one.written_bytes
    columns = {}
    for gpu in known_gpus().values():
        if arch := one.code.arch_for(gpu):
            found = predict(one.code.work(arch, one.weights * one.tokens, moved), gpu)
            columns[f"{gpu.name} us"] = f"{found.microseconds:.1f} {found.bound}"
    return columns
