"""Counting instructions: hot loops of listings, what kernels touch, what bounds them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from morendo.codegen.cpu.kernels.attention import cached_attention
from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.kernels.rope import Rotation, rope_append_kv
from morendo.codegen.cpu.listing import kernel_code, readable
from morendo.codegen.cpu.vectors.vector_blocks import Rows
from morendo.codegen.kernel_code import KernelCode
from morendo.codegen.kernel_facts import KernelFacts
from morendo.codegen.touched import Touched, touched_parameters
from morendo.ir.formats import WeightFormat
from morendo.targets.arm.assembly import SYNTAX as ARM
from morendo.targets.arm.target import make
from morendo.targets.hexagon.assembly import SYNTAX as HEXAGON
from morendo.targets.hexagon.assembly import packets, with_figures
from morendo.targets.x86.assembly import SYNTAX as X86
from morendo.targets.x86.isa import AVX2

LISTING = """\
\t.text
__tvm_ffi_k:
.Lfunc_begin0:
\t.cfi_startproc
\tcmpl\t$15, %edx
.LBB0_1:
\tvpdpbusd\t(%rbx), %zmm1, %zmm2
\tjne\t.LBB0_1
\tretq
.Lfunc_end0:
k_compute_:
.LBB1_1:
\tmovq\t(%rax), %rcx
.LBB1_2:
\t.loc\t1 0 0
.Ltmp3:
\tvmovdqa64\t-1088(%r12), %zmm16
\tvpdpbusd\t(%rbp,%r10,8){1to16}, %zmm16, %zmm13
\tvpdpbusd\t4(%rbp), %ymm16, %ymm13
\tvfmadd231ps\t%zmm14, %zmm13, %zmm12
\tprefetcht0\t-64(%r12)
\tvmovups\t%zmm12, (%rax,%rdx) {%k1}
\tvpmovsxbd\t(%rdx,%r10,4), %zmm13
\tmovq\t%rax, %rbx
\tjne\t.LBB1_2
\tjmp\t.LBB1_1
__truncsfhf2:
.LBB2_1:
\tjne\t.LBB2_1
\t.section\t.debug_info,"",@progbits
\t.byte\t1
\t.section\t.rodata
\t.long\t3
"""


def test_the_innermost_loop_of_a_kernel_is_counted_without_argument_checks():
    code = kernel_code(LISTING, X86)
    assert code.instructions == 11
    assert code.products == 64 + 32
    assert code.loop == {
        "dot": 2, "multiply-add": 1, "prefetch": 1, "load": 2, "store": 1, "other": 1, "jump": 1
    }  # fmt: skip
    assert kernel_code(readable(LISTING), X86) == code


def test_of_loops_the_one_with_most_products_is_hot():
    more = LISTING.replace("k_compute_:\n", "k_compute_:\n.LBB1_0:\n" + "\tincq\t%rax\n" * 40 +
                           "\tjne\t.LBB1_0\n")  # fmt: skip
    assert kernel_code(more, X86).products == 96
    without = "\n".join(line for line in LISTING.splitlines() if "vpdpbusd" not in line)
    assert kernel_code(without, X86).products == 16
    assert kernel_code(without.replace("jne", "nop"), X86).loop == {
        "load": 3, "multiply-add": 1, "prefetch": 1, "store": 1, "other": 2, "jump": 1
    }  # fmt: skip


def test_a_readable_listing_has_no_debug_information():
    text = readable(LISTING)
    assert all(noise not in text for noise in (".loc", ".Ltmp", ".cfi", ".debug", ".byte"))
    assert ".long\t3" in text


def test_instructions_of_arm_are_told_apart():
    listing = """\
.L__tvm_parallel_lambda:
.LBB4_2:
\tldp\tq1, q2, [x3], #32
\tsdot\tv0.4s, v1.16b, v2.4b[0]
\tsmull2\tv5.8h, v1.16b, v2.16b
\tmovi\tv3.2d, #0000000000000000
\tprfm\tpldl1keep, [x4, #128]
\tstr\tq0, [x5]
\tfmla\tv6.4s, v7.4s, v8.4s
\tsubs\tx9, x9, #1
\tb.ne\t.LBB4_2
\tcbnz\tx1, .LBB4_9
\tret
"""
    code = kernel_code(listing, ARM)
    assert (code.instructions, code.products) == (11, 16 + 8)
    kinds = {"dot": 2, "multiply-add": 1, "prefetch": 1, "load": 1, "store": 1}
    assert code.loop == {**kinds, "jump": 1, "vector": 1, "other": 1}


@pytest.mark.parametrize(
    ("target", "fmt", "tokens", "most"),
    [
        ("arm-i8mm", "q4g32n", 1, 0.22),  # usdot, sums that begin with zeros
        ("arm-i8mm", "q4g32n", 64, 0.09),  # scales beside the codes
        ("arm", "q4g32", 1, 0.44),  # bits of planes selected
        ("arm-v8.0", "q4g32n", 1, 0.36),  # smlal2
    ],
)
def test_kernels_of_arm_take_few_instructions_for_a_product(target, fmt, tokens, most):
    machine = make(target)
    spec = LinearSpec(64, 128, WeightFormat.parse(fmt), max_tokens=tokens)
    kernel = build_quantized_linear(spec, machine.isa)
    code = machine.kernel_code({"kernel": kernel})["kernel"]
    assert sum(code.loop.values()) <= most * code.products


@pytest.mark.parametrize("rows", [16, 20])
def test_a_masked_store_is_one_too(rows):
    spec = LinearSpec(rows, 64, WeightFormat.parse("q8g32"), max_tokens=1)
    kernel = build_quantized_linear(spec=spec, isa=AVX2)
    assert ("masked_store" in kernel.script()) == (rows == 20)
    touched = touched_parameters(kernel)
    assert {name for name, part in touched.items() if part.written} == {"out"}
    assert touched["codes"].read == 1.0
    assert touched["out"].read == touched["tokens"].read == 0.0


def test_what_is_touched_of_a_row_of_q_k_and_v():
    cache, rotation = KVCache(2, 16, 64, "float16"), Rotation(16, 16)
    append = rope_append_kv(AVX2, max_tokens=1, heads=6, cache=cache, rotation=rotation)
    touched = touched_parameters(append)
    assert touched["qkv"] == Touched(read=1.0, written=0.8), "v is not rotated"
    assert touched["k_cache"] == touched["v_cache"] == Touched(read=0.0, written=1.0)
    attention = cached_attention(
        AVX2, max_tokens=1, heads=6, cache=cache, scores=Scores(0.25), q_rows=Rows(160)
    )
    touched = touched_parameters(attention)
    assert touched["q"] == Touched(read=0.6)
    assert touched["out"].written == 1.0
    assert touched["k_cache"].read == 1.0


LINEAR = KernelFacts(
    "k", {"decode": 1}, 1, 1000, [500.0], 10, 10, 0, KernelCode(100, {"dot": 4, "load": 6}, 20)
)


def test_what_bounds_a_kernel_is_what_takes_longer():
    assert LINEAR.bytes_per_weight == 0.5
    assert LINEAR.instructions_per_product == 0.5
    assert LINEAR.instructions_per_byte == 1.0
    assert LINEAR.bound(bandwidth=10, rate=40) == ("memory", 4.0)
    assert LINEAR.bound(bandwidth=40, rate=10) == ("instructions", 4.0)
    assert replace(LINEAR, tokens=8).bound(bandwidth=10, rate=40) == ("instructions", 2.0)


@pytest.mark.parametrize(
    "unknown", [replace(LINEAR, code=None), replace(LINEAR, weights=0, weight_bytes=[0.0])]
)
def test_what_bounds_a_kernel_is_unknown_without_products(unknown):
    assert unknown.bound(bandwidth=10, rate=40) == ("unknown", 0.0)


PACKETS = """\
k_compute_:
\t{
\t\tloop0(##.LBB0_1,#48)
\t\tr2 = #3
\t}
.LBB0_1:                                // the hot loop
\t{
\t\tv1.w += vrmpy(v4.ub,r15.b)
\t\tv2.w += vrmpy(v4.ub,r14.b)
\t\tv4 = vmem(r25++#1)
\t}
\t{
\t\tr15:14 = memd(r4+#-8)
\t}
\t{
\t\tv5.uw = vlsr(v4.uw,r7)
\t\tv3.w += vrmpy(v5.ub,r15.b)
\t} :endloop0
\t{
\t\tp0 = cmp.gt(r2,#1)
\t\tif (p0.new) jump:nt .LBB0_1
\t}
"""


def test_packets_are_counted_where_they_are_what_a_processor_executes():
    lines = packets(PACKETS).splitlines()
    assert lines[1] == "\tloop0(.LBB0_1,48) | r2 = 3"
    assert lines[-2].endswith("| :endloop0 .LBB0_1")
    code = kernel_code(PACKETS, HEXAGON)
    assert code.instructions == 5
    assert code.loop == {"dot": 2, "scalar": 2}
    assert code.products == 3 * 128


def test_products_in_two_parts_are_counted_once():
    code = with_figures(kernel_code(PACKETS, HEXAGON), dots=2)
    assert code.products == 3 * 64
    assert code.own == {"products": "48.0", "HVX": "50%"}
    assert with_figures(KernelCode(3), 2) == KernelCode(3)
    assert with_figures(KernelCode(9, {"vector": 3, "scalar": 1}), 1).own == {"HVX": "75%"}
