"""Patterns of pre-tokenizers as tables: what is understood, what is refused by name."""

import pytest

from morendo.codegen.tokenizer.automaton import partition, tabulate
from morendo.codegen.tokenizer.errors import UnsupportedTokenizer
from morendo.codegen.tokenizer.pattern import literal, parse


def first_match(pattern: str, text: str) -> str | None:
    """Walk the table as the runtime does, from the start of the text."""
    program = parse(pattern)
    classes, samples = partition([program])
    table = tabulate(program, samples)
    state, end = 1, None
    for at in range(len(text) + 1):
        kind = classes[ord(text[at])] if at < len(text) else len(samples)
        entry = int(table[state][kind])
        end = at if entry & 1 else end
        state = entry >> 1
        if not state:
            break
    return None if end is None else text[:end]


@pytest.mark.parametrize(
    ("pattern", "text", "match"),
    [
        ("a|ab", "ab", "a"),  # the first alternative wins, not the longest
        ("(?:a|ab)c|ab", "abc", "abc"),
        ("a{2,3}", "aaaa", "aaa"),
        ("a{2}", "aaaa", "aa"),
        ("a{2,}b?", "aaaa", "aaaa"),
        (r"\s+(?!\S)|\s+", "  x", " "),
        (r"\s+(?!\S)|\s+", "  ", "  "),
        (r"\s+(?=x)", "  x", "  "),
        (r"\s+(?=x)", "  y", None),
        (r"a$", "a\nb", "a"),
        (r"a$", "ab", None),
        (r"(?i:'S|'ll)", "'lL", "'lL"),
        (r"(?i:k)", "\N{KELVIN SIGN}", "\N{KELVIN SIGN}"),
        (r"[^\r\n\p{L}\p{N}]?\p{L}+", " né1", " né"),
        (r"[]a\-z]+", "]-az", "]-az"),
        (r"[[:alpha:][0-9]]+", "a1_", "a1"),
        ("(a|b)*c", "ababc", "ababc"),
        (r"\p{^L}+", "12a", "12"),
        (r"\P{L}+", "12a", "12"),
    ],
)
def test_matches_as_a_backtracking_matcher(pattern, text, match):
    assert first_match(pattern, text) == match


@pytest.mark.parametrize(
    "pattern",
    [
        "a+?", "a++", "(?<!a)b", "(?<=a)b", "^a", r"\bword", r"(a)\1", "a{100}", "(?!ab)c", "(?>a)",
        r"\p{Cn}", "[a", "(a", "a)", "a{x}", r"\x{61}", "(?m:a)",
    ],
)  # fmt: skip
def test_what_has_no_instruction_is_named(pattern):
    with pytest.raises(UnsupportedTokenizer, match="the pattern"):
        parse(pattern)


def test_class_that_the_library_does_not_know_is_named():
    with pytest.raises(UnsupportedTokenizer, match="p{Klingon}"):
        parse(r"\p{Klingon}")


@pytest.mark.parametrize("program", [parse("a*"), parse("a|"), literal("")])
def test_empty_match_is_refused(program):
    _, samples = partition([program])
    with pytest.raises(UnsupportedTokenizer, match="matches an empty text"):
        tabulate(program, samples)
