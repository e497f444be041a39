"""What a compiled tokenizer cannot do."""

from __future__ import annotations


class UnsupportedTokenizer(Exception):
    """The tokenizer has a part that has no tables; the message names it."""
