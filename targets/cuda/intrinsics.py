"""Instructions that CUDA C++ has no function for: as PTX, and as C++ that means the same.

The second text is what the emulator of the tests compiles (`MR_EMULATE`); helpers that begin with
`mr_emulate` are its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intrinsic:
    """A device function.

    Attributes:
        signature: its declaration in C++.
        device: its body on the GPU.
        meaning: its body on the CPU.
    """

    signature: str
    device: str
    meaning: str

    @property
    def text(self) -> str:
        """The function, with one body or the other."""
        return (
            f"static __device__ __forceinline__ {self.signature} {{\n"
            f"#ifdef MR_EMULATE\n{self.meaning}\n#else\n{self.device}\n#endif\n}}\n"
        )


DOT_SIGNED = "mr_dot_signed"
DOT_UNSIGNED = "mr_dot_unsigned"
LOAD_WORDS = "mr_load_words"
STREAM_WORDS = "mr_stream_words"
LOAD_WORD = "mr_load_word"
LOAD_PAIR = "mr_load_pair"
SET_FLOAT = "mr_set_float"
ADD_FLOAT = "mr_add_float"
ORDER_PAIR = "mr_order_pair"
COPY_WORDS = "mr_copy_words"
COPY_WORDS_LATER = "mr_copy_words_later"
COPY_WORD_LATER = "mr_copy_word_later"
COMMIT_COPIES = "mr_commit_copies"
ROTATE = "mr_rotate"
WHOLE = "mr_whole"
MULTIPLY_BYTES = "mr_multiply_bytes"
MULTIPLY_HALVES = "mr_multiply_halves"
BYTE_FLOAT = "mr_byte_float"
HALF_FLOAT = "mr_half_float"
HALF_PAIR = "mr_half_pair"
SCALED_HALVES = "mr_scaled_halves"
SHOW_TO_WARPGROUPS = "mr_show_to_warpgroups"
BEGIN_PRODUCTS = "mr_begin_products"
COMMIT_PRODUCTS = "mr_commit_products"
WAIT_PRODUCTS = "mr_wait_products"
WARPGROUP_TOKENS = (8, 16, 32, 64, 128)
"""Of one product of a warpgroup."""


def wait_copies(pending: int) -> str:
    """The function that waits for all copies but those of the last `pending` commits."""
    return f"mr_wait_copies_{pending}"


def _wait_copies(pending: int) -> Intrinsic:
    return Intrinsic(
        f"void {wait_copies(pending)}()",
        f'asm volatile("cp.async.wait_group {pending};" ::: "memory");',
        f"mr_emulate_cp_wait({pending});",
    )


def multiply_rows(tokens: int) -> str:
    """The function by which a warpgroup multiplies 64 rows with so many tokens, in halves."""
    return f"mr_multiply_rows_{tokens}"


def settle_sums(tokens: int) -> str:
    """The function behind which the compiler takes the sums of `multiply_rows` to be new."""
    return f"mr_settle_sums_{tokens}"


def _multiply_rows(tokens: int) -> Intrinsic:
    count = tokens // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    halves = ", ".join(f"%{count + i}" for i in range(4))
    return Intrinsic(
        f"void {multiply_rows(tokens)}(float* d, const unsigned* a, const void* b, int leading)",
        "uint64_t at = (unsigned)__cvta_generic_to_shared(b) >> 4 & 0x3FFF;\n"
        "uint64_t rows = at | (uint64_t)(leading >> 4) << 16 | (uint64_t)(128 >> 4) << 32;\n"
        'asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; "\n'
        f'  "wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.f16.f16 {{{sums}}}, "\n'
        f'  "{{{halves}}}, %{count + 4}, add, 1, 1, 0; }}"\n'
        f"  : {_floats(count)}\n"
        '  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows));',
        f"mr_emulate_multiply_rows(d, {tokens}, a, b, leading);",
    )


def _settle_sums(tokens: int) -> Intrinsic:
    return Intrinsic(
        f"void {settle_sums(tokens)}(float* d)",
        f'asm volatile("" : {_floats(tokens // 2)} :: "memory");',
        "(void)d;",
    )


def _floats(count: int) -> str:
    return ", ".join(f'"+f"(d[{i}])' for i in range(count))


_ORDER_PAIR = (
    "int64_t a = *(int64_t*)first, b = *(int64_t*)second;\n"
    "if ((a < b) == falls) *(int64_t*)first = b, *(int64_t*)second = a;"
)

INTRINSICS = {
    # c + four products of bytes, all signed (PTX ISA, dp4a; from sm_61 on)
    DOT_SIGNED: Intrinsic(
        f"int {DOT_SIGNED}(unsigned a, unsigned b, int c)",
        'int d; asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d;',
        "return mr_emulate_dot<int8_t>(a, b, c);",
    ),
    # the same with unsigned bytes in a
    DOT_UNSIGNED: Intrinsic(
        f"int {DOT_UNSIGNED}(unsigned a, unsigned b, int c)",
        'int d; asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d;',
        "return mr_emulate_dot<uint8_t>(a, b, c);",
    ),
    # 16 bytes of what is read again by other blocks
    LOAD_WORDS: Intrinsic(
        f"void {LOAD_WORDS}(unsigned* to, const void* from)",
        "uint4 words = *(const uint4*)from;\n"
        "to[0] = words.x; to[1] = words.y; to[2] = words.z; to[3] = words.w;",
        "mr_emulate_load(to, from, 16);",
    ),
    # 16 bytes of weights, which are read once: past the first cache
    STREAM_WORDS: Intrinsic(
        f"void {STREAM_WORDS}(unsigned* to, const void* from)",
        'asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"\n'
        '  : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));',
        "mr_emulate_load(to, from, 16);",
    ),
    LOAD_WORD: Intrinsic(
        f"unsigned {LOAD_WORD}(const void* from)",
        "return *(const unsigned*)from;",
        "unsigned word; mr_emulate_load(&word, from, 4); return word;",
    ),
    LOAD_PAIR: Intrinsic(
        f"void {LOAD_PAIR}(unsigned* to, const void* from)",
        "uint2 words = *(const uint2*)from; to[0] = words.x; to[1] = words.y;",
        "mr_emulate_load(to, from, 8);",
    ),
    # of memory that no other thread has to do with, where TVM would put a barrier
    SET_FLOAT: Intrinsic(
        f"void {SET_FLOAT}(float* at, float value)", "*at = value;", "*at = value;"
    ),
    ADD_FLOAT: Intrinsic(
        f"void {ADD_FLOAT}(float* at, float value)", "*at += value;", "*at += value;"
    ),
    # puts the larger of two numbers first, or last; of one thread, as above
    ORDER_PAIR: Intrinsic(
        f"void {ORDER_PAIR}(void* first, void* second, bool falls)",
        _ORDER_PAIR,
        _ORDER_PAIR,
    ),
    # 16 bytes to shared memory, which are there after the next barrier
    COPY_WORDS: Intrinsic(
        f"void {COPY_WORDS}(void* to, const void* from)",
        "*(uint4*)to = *(const uint4*)from;",
        "mr_emulate_store(to, from, 16);",
    ),
    # 16 bytes to shared memory in the background, past the first cache (PTX ISA, cp.async)
    COPY_WORDS_LATER: Intrinsic(
        f"void {COPY_WORDS_LATER}(void* to, const void* from)",
        'asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"\n'
        '  :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");',
        "mr_emulate_cp_async(to, from, 16);",
    ),
    COPY_WORD_LATER: Intrinsic(
        f"void {COPY_WORD_LATER}(void* to, const void* from)",
        'asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"\n'
        '  :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");',
        "mr_emulate_cp_async(to, from, 4);",
    ),
    # copies of this thread since the last one belong together
    COMMIT_COPIES: Intrinsic(
        f"void {COMMIT_COPIES}()",
        'asm volatile("cp.async.commit_group;" ::: "memory");',
        "mr_emulate_cp_commit();",
    ),
    **{wait_copies(pending): _wait_copies(pending) for pending in range(3)},
    # does nothing: what is called with an array keeps TVM from cutting off what only helpers reach
    WHOLE: Intrinsic(f"void {WHOLE}(const void* array)", "(void)array;", "(void)array;"),
    # to the left; negative amounts are to the right
    ROTATE: Intrinsic(
        f"unsigned {ROTATE}(unsigned word, int left)",
        "return __funnelshift_l(word, word, left);",
        "return word << (left & 31) | (unsigned)((uint64_t)word >> (32 - (left & 31)));",
    ),
    # d += a[16 rows, 32 channels] times b[32 channels, 8 tokens], all signed bytes, by a warp (PTX
    # ISA, mma.m16n8k32). Lane l has of a rows l / 4 and l / 4 + 8, of b token l / 4, of both
    # channels 4 (l % 4) and the three after, and those 16 on; of d rows as of a, tokens
    # 2 (l % 4) and the one after.
    MULTIPLY_BYTES: Intrinsic(
        f"void {MULTIPLY_BYTES}(int* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, "
        "unsigned b0, unsigned b1)",
        'asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "\n'
        '  "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"\n'
        '  : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])\n'
        '  : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));',
        "mr_emulate_multiply_bytes(d, a0, a1, a2, a3, b0, b1);",
    ),
    # the same of halves, with sums of floats: 16 channels (mma.m16n8k16). Of both a lane has the
    # channels 2 (l % 4) and the one after, and those 8 on; a1 and a3 are of the second row.
    MULTIPLY_HALVES: Intrinsic(
        f"void {MULTIPLY_HALVES}(float* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, "
        "unsigned b0, unsigned b1)",
        'asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "\n'
        '  "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"\n'
        '  : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])\n'
        '  : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));',
        "mr_emulate_multiply_halves(d, a0, a1, a2, a3, b0, b1);",
    ),
    # 2^23 and a byte of a word: the byte is the end of the float's bits
    BYTE_FLOAT: Intrinsic(
        f"float {BYTE_FLOAT}(unsigned word, int byte)",
        "return __uint_as_float(__byte_perm(word, 0x4B000000, 0x7440 + byte));",
        "return 8388608.0f + (float)(word >> 8 * byte & 255);",
    ),
    # one of a pair of halves
    HALF_FLOAT: Intrinsic(
        f"float {HALF_FLOAT}(unsigned pair, int which)",
        "float value; unsigned short half = (unsigned short)(pair >> 16 * which);\n"
        'asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half)); return value;',
        "return mr_half_to_float((uint16_t)(pair >> 16 * which));",
    ),
    # two numbers below 1024 as halves, of the bits of 1024 + each: they are the end of these
    HALF_PAIR: Intrinsic(
        f"unsigned {HALF_PAIR}(unsigned pair)",
        'asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(0x64006400u)); return pair;',
        "return mr_double_to_half(pair & 1023) | mr_double_to_half(pair >> 16 & 1023) << 16;",
    ),
    # (byte - 128) scale of the first or last two bytes of a word, as halves; biases are 0x64006400
    SCALED_HALVES: Intrinsic(
        f"unsigned {SCALED_HALVES}(unsigned word, int last, unsigned scales, unsigned biases)",
        "unsigned pair = __byte_perm(word, biases, last ? 0x5352 : 0x5150);\n"
        'asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(0x64806480u));\n'
        'asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(scales)); return pair;',
        "(void)biases; return mr_emulate_scaled_halves(word >> 16 * last, scales);",
    ),
    # what this thread has put into shared memory until now can be read by products of warpgroups
    SHOW_TO_WARPGROUPS: Intrinsic(
        f"void {SHOW_TO_WARPGROUPS}()",
        'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");',
        "mr_emulate_show();",
    ),
    # registers of the products that follow are written until here
    BEGIN_PRODUCTS: Intrinsic(
        f"void {BEGIN_PRODUCTS}()",
        'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");',
        "mr_emulate_begin_products();",
    ),
    COMMIT_PRODUCTS: Intrinsic(
        f"void {COMMIT_PRODUCTS}()",
        'asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");',
        "mr_emulate_commit_products();",
    ),
    # all products are made: sums can be read, halves and shared memory written
    WAIT_PRODUCTS: Intrinsic(
        f"void {WAIT_PRODUCTS}()",
        'asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");',
        "mr_emulate_wait_products();",
    ),
    # d += a[64 rows, 16 channels] times b[16 channels, tokens] in the background, halves with sums
    # of floats, by four warps (PTX ISA, wgmma.mma_async). Of a, a warp has 16 rows and its lanes
    # what they have of MULTIPLY_HALVES; so it is with d, four for every eight tokens. b lies in
    # shared memory, for eight channels after eight (`leading` bytes on) 16 bytes of each token:
    # K-major without swizzling, where the stride dimension goes on after eight tokens, 128 bytes
    # (PTX ISA, Shared Memory Matrix Layout and Strides).
    **{multiply_rows(tokens): _multiply_rows(tokens) for tokens in WARPGROUP_TOKENS},
    **{settle_sums(tokens): _settle_sums(tokens) for tokens in WARPGROUP_TOKENS},
}


def prelude() -> str:
    """All of them, as C++ that stands before kernels."""
    return "".join(intrinsic.text for intrinsic in INTRINSICS.values())
