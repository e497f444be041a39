"""The tokenizer compiled like a kernel: tokenizer.json becomes tables that loops in C walk."""

from .compile import compile_tokenizer, kept_tokenizer
from .errors import UnsupportedTokenizer

__all__ = ["UnsupportedTokenizer", "compile_tokenizer", "kept_tokenizer"]
