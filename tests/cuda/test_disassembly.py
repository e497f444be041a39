"""What the compiler made of the kernels: spills, wide loads, and instructions for a weight."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from tvm import tirx

from morendo.codegen.build_cache import BuildCache
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.targets.cuda.device_code import machine_code, split_kernel
from morendo.targets.cuda.disassembly import (
    Instruction,
    Loop,
    disassemble,
    find_disassembler,
    loops,
    parse,
)
from morendo.targets.cuda.kernels.half_linear import build_half_linear
from morendo.targets.cuda.kernels.quantized_linear import build_quantized_linear
from morendo.targets.cuda.nvrtc import find_compiler
from morendo.targets.cuda.target import GPU, HOSTS

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")

LISTING = """\
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/               @P0 BRA `(.L_x_2) ;
        /*0020*/                   SHF.L.W.U32.HI R1, R1, R2, R1 ;
.L_x_2:
        /*0030*/               @P1 BRA `(.L_x_3) ;
        /*0040*/                   SHF.L.W.U32.HI R1, R1, R2, R1 ;
        /*0050*/                   LOP3.LUT R1, R1, 0x3, RZ, 0xc0, !PT ;
.L_x_3:
        /*0060*/                   IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4 ;
        /*0070*/              @!P2 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_4:
        /*0090*/                   BRA `(.L_x_4);
"""


def test_loops_and_what_they_pass_over() -> None:
    code = parse(LISTING)
    assert code[1] == Instruction("BRA", ".L_x_1", ".L_x_2")
    (loop,) = loops(code)
    assert loop.units == {"control": 3, "integer": 3, "tensor": 1}
    assert loop.products == 128
    assert len(loop.taking(0, "SHF").body) == 5
    assert len(loop.taking(1, "SHF").body) == 6
    assert len(loop.taking(1, "HMMA").body) == 7


@functools.cache
def compiled(
    fmt: str,
    tokens: int,
    arch: str,
    build: Callable[..., tirx.PrimFunc] = build_quantized_linear,
    size: int = 4096,
) -> tuple[tuple[Loop, ...], tuple]:
    """(loops, all instructions) of a kernel for `size` inputs and outputs, as many as models have;
    no spills.
    """
    tool = find_disassembler()
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(str(error))
    if tool is None:
        pytest.skip("NVIDIA's disassembler is not installed; pip install morendo[cuda]")
    spec = LinearSpec(size, size, WeightFormat.parse(fmt), tokens)
    function = build(spec, GPU("cuda", "sm_80"))
    halves = split_kernel(function, "sm_80", HOSTS["x86_64"].llvm, BuildCache())
    image = machine_code(halves.source, arch, BuildCache())
    assert image.spilled_bytes == 0
    code = disassemble(tool, image.cubin)
    return tuple(loops(code)), tuple(code)


DECODE = {"q4g32c": (1.82, 1.70, 1.19), "q4g32": (1.80, 1.65, 1.15), "q4g64": (1.52, 1.38, 0.89)}
PREFILL = {"q4g32c": (26.8, 24.7, 23.2), "q4g64": (17.8, 16.4, 15.0)}


def cases(most: dict[str, tuple[float, ...]]) -> list:
    """A common format for the first architecture, and slowly all for all."""
    every = [(fmt, arch) for fmt in most for arch in ARCHITECTURES]
    return [
        pytest.param(fmt, most[fmt], arch, marks=[pytest.mark.slow] if i else [])
        for i, (fmt, arch) in enumerate(every)
    ]


@pytest.mark.parametrize(("fmt", "most", "arch"), cases(DECODE))
def test_instructions_of_decode_for_a_weight(fmt: str, most: tuple[float, ...], arch: str) -> None:
    """At 4, 3 and 2 bits, all of the loop counted: addresses, scales, zeros, dot products."""
    found, code = compiled(fmt, 1, arch)
    each = [len(loop.body) / loop.products for loop in found]
    assert all(a <= b for a, b in zip(each, most, strict=True)), each
    for loop, planes in zip(found, (4, 3, 2), strict=True):
        blocks = loop.count("IDP") // 32  # of 32 channels
        assert loop.count("LDG.E.NA.128") == planes * blocks, "planes, past the first cache"
        assert loop.count("LDG.E.128") == 2 * blocks, "activations"
    assert not any(one.unit == "spill" for one in code)


@pytest.mark.parametrize(("fmt", "most", "arch"), cases(PREFILL))
def test_instructions_of_prefill_for_a_product(fmt: str, most: tuple[int, ...], arch: str) -> None:
    """Of a warp for an instruction of the matrix unit, at 4, 3 and 2 bits: copies, unpacking,
    scales.
    """
    (loop,), code = compiled(fmt, 512, arch)
    blocks = int(fmt.partition("g")[2].rstrip("c")) // 32
    assert loop.count("IMMA.16832") == 16 * blocks
    assert loop.count("LDGSTS") == loop.count("LDGSTS.E") >= 4
    assert loop.count("LDS.64") >= 8 * blocks
    ways = [loop.taking(i, "SHF.L.W") for i in range(len(most))]
    each = [len(way.body) / loop.count("IMMA") for way in ways]
    assert all(a <= b for a, b in zip(each, most, strict=True)), each
    assert not any(one.unit == "spill" for one in code)


HALVES = {"q4g32c": (5.3, 5.0, 4.5, 9.1, 8.4, 7.7), "q4g64": (5.0, 4.7, 4.2, 8.0, 7.3, 6.6)}


@pytest.mark.parametrize(("fmt", "most", "arch"), cases(HALVES))
def test_instructions_with_activations_of_16_bits(
    fmt: str, most: tuple[float, ...], arch: str
) -> None:
    """For a weight of one token at 4, 3 and 2 bits, then of a warp for an HMMA of 2048 products."""
    found, code = compiled(fmt, 1, arch, build_half_linear)
    each = [len(loop.body) / loop.products for loop in found]
    (loop,), more = compiled(fmt, 512, arch, build_half_linear)
    assert loop.count("HMMA.16816.F32") == 32 * int(fmt.partition("g")[2].rstrip("c")) // 32
    assert loop.count("LDGSTS") >= 4 and loop.count("LDS.128") >= 8
    ways = [loop.taking(i, "SHF.L.W") for i in range(3)]
    each += [len(way.body) / loop.count("HMMA") for way in ways]
    assert all(a <= b for a, b in zip(each, most, strict=True)), each
    assert not any(one.unit == "spill" for one in (*code, *more))


WARPGROUPS = {"q4g32c": (82, 76, 70), "q4g64": (62, 56, 51)}


@pytest.mark.parametrize(("fmt", "most"), WARPGROUPS.items())
def test_instructions_where_warpgroups_multiply(fmt: str, most: tuple[float, ...]) -> None:
    """Of a warp for an HGMMA of 128 tokens; no register waits for one in the middle of a turn."""
    build = functools.partial(build_half_linear, isa=GPU("cuda", "sm_80", warpgroups=True))
    (loop,), code = compiled(fmt, 512, "sm_90a", lambda spec, _: build(spec))
    products = 4 * int(fmt.partition("g")[2].rstrip("c")) // 32
    assert loop.count("HGMMA.64x128x16.F32") == products
    assert loop.warpgroup_tokens == 128 * products
    assert loop.products == 64 * 16 * products
    assert loop.count("WARPGROUP.ARRIVE") == loop.count("WARPGROUP.DEPBAR") == 1
    assert loop.count("FENCE.VIEW.ASYNC") == 1 and loop.count("LDGSTS") >= 4
    ways = [loop.taking(i, "SHF.L.W") for i in range(3)]
    each = [len(way.body) / products for way in ways]
    assert all(a <= b for a, b in zip(each, most, strict=True)), each
    assert not any(one.unit == "spill" for one in code)


@pytest.mark.parametrize(
    "arch",
    [ARCHITECTURES[0], *(pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES[1:])],
)
@pytest.mark.parametrize("fmt", ["q4g32", "q4g32c", "q8g32"])
def test_no_kernel_of_a_small_grid_spills(fmt: str, arch: str) -> None:
    """Such kernels unpack the codes of the next turn ahead, into registers."""
    (loop,), code = compiled(fmt, 256, arch, size=256)
    assert loop.count("IMMA.16832") >= 16
    assert not any(one.unit == "spill" for one in code)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("fmt", ["q6g32", "q8g32", "q4g128c"])
def test_no_kernel_for_many_tokens_spills(fmt: str, arch: str) -> None:
    (loop,), _ = compiled(fmt, 512, arch)
    assert loop.count("IMMA.16832") >= 16
    (loop,), _ = compiled(fmt, 512, arch, build_half_linear)
    assert loop.count("HMMA.16816") >= 32
