"""NVIDIA's GPUs that morendo compiles for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.codegen.cpu.kernels import elementwise, norms, rope, token_rows
from morendo.codegen.cpu.kernels.attention import cached_attention
from morendo.codegen.cpu.kernels.embedding import embedding
from morendo.codegen.cpu.kernels.kv_cache import append_kv
from morendo.codegen.cpu.kernels.linear import build_linear
from morendo.codegen.cpu.kernels.quantize_activation import quantize_activation
from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.kernels.received_attention import received_attention
from morendo.codegen.cpu.kernels.token_pruning import prune_tokens
from morendo.codegen.link import Toolchain
from morendo.codegen.target import Builder, Capabilities, Device, Target, Track
from morendo.ir.errors import CompileError
from morendo.ir.plan import ITEM_BYTES

from .kernels import attention as own_attention
from .kernels import cache as own_cache
from .kernels import candidates as own_candidates
from .kernels import generic as own_generic
from .kernels import likeliest as own_likeliest
from .kernels import linear as own_linear
from .kernels import norms as own_norms
from .kernels import quantized_linear as own_quantized_linear
from .kernels import received_attention as own_received
from .kernels import token_pruning as own_pruning
from .kernels import tokens as own_tokens
from .kernels.pipeline import ASYNCHRONOUS, Pipeline
from .kernels.tensor_shape import TILE
from .lowerings import fused_linear
from .nvrtc import OWN, find_compiler

if TYPE_CHECKING:
    from tvm import tirx

    from morendo.codegen.kernel_code import KernelCode
    from morendo.codegen.kernel_facts import KernelFacts
    from morendo.codegen.lowering import FunctionLowering, Program
    from morendo.codegen.memory import Storage
    from morendo.codegen.text_facts import TextFacts
    from morendo.ir.dump import Dump
    from morendo.ir.plan import Plan

_NAME, _LEAST = "cuda", "sm_80"
_GPUS = {
    _LEAST: "NVIDIA A100 and A30, and all later GPUs by translation (compute capability 8.0)",
    "sm_86": "NVIDIA RTX 30, A10, A40 and others of compute capability 8.6",
    "sm_89": "NVIDIA RTX 40, L4, L40 and others of compute capability 8.9",
    "sm_90": "NVIDIA H100, H200 and GH200 (compute capability 9.0)",
}
_OWN_GPUS = {
    f"sm_90{OWN}": "NVIDIA H100, H200 and GH200 alone: prompts by warpgroups with --activations 16",
}
_DESCRIPTIONS = {
    _NAME: "any NVIDIA GPU since 2020: machine code for each generation, chosen when it starts",
    **{f"{_NAME}:{arch}": text for arch, text in (_GPUS | _OWN_GPUS).items()},
}


@dataclass(frozen=True)
class Host:
    """The machine that a GPU is in.

    Attributes:
        llvm: TVM's target of the kernels' host halves.
        toolchain: links them with the C runtime; `run` loads the driver, so it is no static file.
    """

    llvm: dict[str, Any]
    toolchain: Toolchain


def _host(machine: str, cpu: str) -> Host:
    device = Path(__file__).parent / "device.c"
    triple = f"{machine}-linux-gnu"
    llvm = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    return Host(llvm, Toolchain(f"{triple}.2.17", ("-ldl",), device=device))


HOSTS = {"x86_64": _host("x86_64", "x86-64"), "aarch64": _host("aarch64", "generic")}

BUILDERS: dict[Builder, Builder] = {
    elementwise.activate: own_tokens.activate,
    elementwise.gated: own_tokens.gated,
    elementwise.schedule_generic: own_generic.schedule_generic,
    embedding: own_tokens.embedding,
    token_rows.copy_last_token: own_tokens.copy_last_token,
    token_rows.token_positions: own_tokens.token_positions,
    norms.rms_norm: own_norms.rms_norm,
    norms.layer_norm: own_norms.layer_norm,
    norms.rms_norm_quantize: own_norms.rms_norm_quantize,
    norms.layer_norm_quantize: own_norms.layer_norm_quantize,
    quantize_activation: own_norms.quantize_activation,
    rope.rope: own_cache.rope,
    rope.rope_append_kv: own_cache.rope_append_kv,
    append_kv: own_cache.append_kv,
    cached_attention: own_attention.cached_attention,
    received_attention: own_received.received_attention,
    prune_tokens: own_pruning.prune_tokens,
    build_linear: own_linear.build_linear,
    build_quantized_linear: own_quantized_linear.build_quantized_linear,
}


@dataclass(frozen=True)
class GPU:
    """What kernels are built for.

    Attributes:
        name: the end of kernel names.
        arch: the least architecture whose instructions they use: all have the same C++.
        tensor_tokens: from how many tokens on quantized weights are multiplied by matrix units,
            for eight tokens at a time; below that each token reads the weights by itself.
        pipeline: of these kernels.
        few_blocks: of a launch, that leave a warp alone on its scheduler (a GPU has about so many
            multiprocessors). Only these unpack the codes of the next turn ahead: with other warps
            to go on with, what that takes (moves of registers, 7 % of the instructions) is more
            than what it hides.
        signed_offset: what signed codes of the cache have added: nothing.
        warpgroups: whether four warps multiply halves together (wgmma), which no later GPU can.
    """

    name: str
    arch: str
    tensor_tokens: int = 4
    pipeline: Pipeline = ASYNCHRONOUS
    few_blocks: int = 128
    signed_offset: int = 0
    warpgroups: bool = False


@dataclass(frozen=True)
class CUDATarget(Target):
    """GPUs of some architectures.

    Attributes:
        isa: the least of them.
        architectures: those that there is machine code for.
        host: the machine that they are in.
    """

    isa: GPU
    architectures: tuple[str, ...]
    host: Host

    def __post_init__(self) -> None:
        if self.layout.row_tile != TILE:
            raise CompileError(
                f"kernels for GPUs have tiles of {TILE} rows (got {self.layout.row_tile})",
                where=f"target {self.name}",
            )

    @property
    def toolkit(self) -> str:
        return "nvptx64-nvidia-cuda"

    def prepared(self) -> Target:
        find_compiler()
        return self

    def build(
        self,
        program: Program,
        plan: Plan,
        text: TextFacts,
        directory: Path,
        track: Track,
        dump: Dump | None = None,
    ) -> None:
        """A library and an executable that start the kernels on the GPU."""
        from .artifact import build_artifact

        build_artifact(self, program, plan, text, directory, track, dump)

    def find_candidates(self, lowering: FunctionLowering, logits: Storage) -> Storage | None:
        vocabulary, note = logits.nbytes // ITEM_BYTES["float32"], "likeliest token"
        keys = lowering.new("int64", own_likeliest.PARTS)
        parts = lowering.build(own_likeliest.likeliest_parts, vocabulary=vocabulary)
        lowering.call(parts, [logits, keys], note)
        ids = lowering.values[lowering.function.params[0]]
        lowering.call(lowering.build(own_likeliest.likeliest), [keys, ids], note)
        lists, *joined = own_candidates.list_counts(vocabulary)
        found, note = lowering.new("int64", lists, own_candidates.WIDTH), "likeliest tokens"
        first = lowering.build(own_candidates.candidates_of_logits, vocabulary=vocabulary)
        lowering.call(first, [logits, found, "sharpness"], note)
        for count in joined:
            join = lowering.build(own_candidates.candidates_of_lists, lists=lists)
            given, lists = found, count
            found = lowering.new("int64", lists, own_candidates.WIDTH)
            lowering.call(join, [given, found, "sharpness"], note)
        return found

    def kernel_code(
        self, kernels: Mapping[str, tirx.PrimFunc], listings: dict[str, str] | None = None
    ) -> Mapping[str, KernelCode]:
        from .artifact import code_texts, compile_kernels
        from .report import device_codes

        halves, images = compile_kernels(self, kernels, lambda: None)
        if listings is not None:
            listings |= code_texts(halves, images)
        return device_codes(kernels, images)

    def predicted(self, one: KernelFacts) -> Mapping[str, str]:
        from .report import predicted

        return predicted(one)


def descriptions() -> dict[str, str]:
    """The names of this target's variants, each with one line for people."""
    return _DESCRIPTIONS


def _needs(arch: str) -> str:
    """The driver translates code for later GPUs than the first that it is for."""
    capability = int(arch.removeprefix("sm_").removesuffix(OWN)) / 10
    later = "" if arch.endswith(OWN) else " or later"
    return f"an NVIDIA GPU of compute capability {capability}{later}"


def make(name: str) -> CUDATarget:
    """The target of a name in `descriptions()`.

    Raises:
        CompileError: on a machine of a kind that has no NVIDIA GPUs.
    """
    machine = platform.machine()
    host = HOSTS.get(machine)
    if host is None:
        raise CompileError(
            f"no GPU is driven from this kind of machine (got {machine}, "
            f"need one of {', '.join(HOSTS)})",
            where=f"target {name}",
        )
    _, _, arch = name.partition(":")
    architectures = (arch,) if arch else tuple(_GPUS)
    return CUDATarget(
        name=name,
        description=_DESCRIPTIONS[name],
        device=Device(machine, needs=_needs(architectures[0])),
        isa=GPU(_NAME, _LEAST, warpgroups=arch in _OWN_GPUS),
        capabilities=Capabilities(half_conversion=True, half_activations=True),
        builders=BUILDERS,
        lowerings={"fused_linear": fused_linear},
        architectures=architectures,
        host=host,
    )


def native() -> None:
    """No machine is this target by itself: its CPU runs the text, which `native` means."""
    return
