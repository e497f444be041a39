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
}


def prelude() -> str:
    """All of them, as C++ that stands before kernels."""
    return "".join(intrinsic.text for intrinsic in INTRINSICS.values())
