"""Compiled tokenizers give the ids and texts of the library, for every kind of tokenizer."""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import SOURCES
from families import FAMILIES, trained
from library import CompiledTokenizer
from random_texts import random_text
from tokenizers import Tokenizer

from morendo.codegen.link import RUNTIME_SOURCES
from morendo.codegen.tokenizer import UnsupportedTokenizer, compile_tokenizer, vocabulary
from morendo.codegen.tokenizer.charsmap import charsmap_sections
from morendo.ir.plan import TOKENIZER_TABLES

ROUNDS = int(os.environ.get("MORENDO_TOKENIZER_ROUNDS", "1500"))


def special_of(tokenizer):
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_library(compiled, family):
    tokenizer, ours = compiled(family)
    source, special = random.Random(7), special_of(tokenizer)
    for _ in range(ROUNDS):
        given = random_text(source, special)
        assert ours.encode(given) == tokenizer.encode(given, add_special_tokens=False).ids, given


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_that_of_the_library(compiled, family):
    tokenizer, ours = compiled(family)
    source, size = random.Random(8), tokenizer.get_vocab_size()
    for _ in range(ROUNDS):
        # Bytes and special tokens are the first ones: many of those make invalid texts.
        top = source.choice([300, size])
        ids = [source.randrange(top) for _ in range(source.randrange(20))]
        assert ours.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True), ids


def test_long_pieces_take_no_quadratic_time(compiled):
    tokenizer, ours = compiled("llama2")
    given = "ab" * 50_000  # one piece: there is no pre-tokenizer
    assert ours.encode(given) == tokenizer.encode(given, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "given", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"]
)
def test_invalid_text_is_refused(compiled, given):
    _, ours = compiled("gpt2")
    with pytest.raises(ValueError, match="not valid UTF-8 .at byte"):
        ours.encode(given)


def test_ids_outside_the_vocabulary_have_no_text(compiled):
    _, ours = compiled("gpt2")
    assert ours.decode([-1, 1 << 30]) == ""


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("normalizer", {"type": "NFKC"}, "the normalizer NFKC"),
        ("normalizer", {"type": "Lowercase"}, "the normalizer Lowercase"),
        ("normalizer", {"type": "Strip", "strip_left": True, "strip_right": True}, "Strip"),
        ("pre_tokenizer", {"type": "BertPreTokenizer"}, "the pre-tokenizer BertPreTokenizer"),
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
        ("decoder", None, "the decoder none"),
        ("truncation", {"max_length": 4, "strategy": "LongestFirst", "stride": 0}, "truncation"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_named(part, value, named):
    facts = json.loads(trained("gpt2").to_str())
    with pytest.raises(UnsupportedTokenizer, match=named):
        compile_tokenizer(json.dumps({**facts, part: value}))


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [("end_of_word_suffix", "</w>", "end_of_word_suffix"), ("dropout", 0.1, "dropout")],
)
def test_encodings_of_other_kinds_are_named(option, value, named):
    facts = json.loads(trained("gpt2").to_str())
    facts["model"][option] = value
    if option == "end_of_word_suffix":
        facts["model"] |= {"merges": []}
    with pytest.raises(UnsupportedTokenizer, match=named):
        compile_tokenizer(json.dumps(facts))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"unk_id": None}, "a Unigram model without unk_id"),
        ({"nbest_size": 4, "alpha": 0.1}, "alpha 0.1"),
        ({"vocab": [["<unk>", 0.0], ["a", -1.0], ["a", -2.0]]}, "a Unigram model with a token twi"),
        ({"type": "WordPiece"}, "the model WordPiece"),
    ],
)
def test_unigram_models_of_other_kinds_are_named(change, named):
    facts = json.loads(trained("unigram").to_str())
    facts["model"] |= change
    with pytest.raises(UnsupportedTokenizer, match=named):
        vocabulary.check_model(facts["model"])


def test_unigram_behind_bytes_is_named():
    facts = json.loads(trained("unigram").to_str())
    facts["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    with pytest.raises(UnsupportedTokenizer, match="a Unigram model behind ByteLevel"):
        compile_tokenizer(json.dumps(facts))


def _unigram(folder, library, words, unknown=0, **options):
    """A Unigram model of these tokens and scores, by both."""
    model = {"type": "Unigram", "unk_id": unknown, "vocab": [["<unk>", -3.0], *words], **options}
    facts = json.loads(trained("unigram_words").to_str())
    facts |= {"model": model, "added_tokens": [], "normalizer": None, "pre_tokenizer": None}
    (folder / TOKENIZER_TABLES).write_bytes(compile_tokenizer(json.dumps(facts)))
    return Tokenizer.from_str(json.dumps(facts)), CompiledTokenizer(library, folder)


@pytest.mark.parametrize("fallback", [False, True])
def test_spellings_of_the_same_score_and_unknown_runs(tokenizer_library, tmp_path, fallback):
    """Ties, the unknown token's own text, tokens longer than a character that is none."""
    words = [[w, -1.0 * len(w)] for w in ("a", "b", "ab", "ba", "aba", "éü", "zz", "日本")]
    words += [[f"<0x{byte:02X}>", 0.0] for byte in range(256) if fallback]
    options = {"byte_fallback": fallback}
    library, ours = _unigram(tmp_path, tokenizer_library, words, **options)
    source = random.Random(5)
    parts = ["a", "b", "é", "ü", "z", "日", "本", "<unk>", "x", "😀", "<0x41>", " "]
    for _ in range(ROUNDS):
        given = "".join(source.choice(parts) for _ in range(source.randrange(12)))
        assert ours.encode(given) == library.encode(given).ids, given


# Of every kind that clusters are made of; most are mapped to something or part of such a text.
_CLUSTERS = [
    *"aeX\n\r\t\0\u0301\u0308\u0903\u200d\ufe0f\U0001f3fb", "e\u0301", "\r\n", "\u0600", "<tool>",
    *"\u1100\u1161\u11a8\uac00\uac01\u1112\u0915\u0928\u094d\u093f\u0e33\xa9\U0001f600\u2764\xad",
    *"\U0001f1e9\U0001f1ea\u200b\u2028\ufdfa\u2460\U000e0041\U00016d63\U00050000\U000110bd",
]  # fmt: skip


def test_clusters_are_mapped_as_the_library_maps_them(tokenizer_library, tmp_path):
    """Every byte has a token, so that ids tell the text."""
    facts = json.loads(trained("llama2").to_str())
    facts["normalizer"] = json.loads(trained("t5").to_str())["normalizer"]["normalizers"][0]
    (tmp_path / TOKENIZER_TABLES).write_bytes(compile_tokenizer(json.dumps(facts)))
    library = Tokenizer.from_str(json.dumps(facts))
    source = random.Random(11)
    with CompiledTokenizer(tokenizer_library, tmp_path) as ours:
        for _ in range(4 * ROUNDS):
            given = "".join(source.choice(_CLUSTERS) for _ in range(source.randrange(9)))
            assert ours.encode(given) == library.encode(given).ids, ascii(given)


def test_a_token_that_normalization_leaves_nothing_of_is_named():
    facts = json.loads(trained("t5").to_str())
    facts["added_tokens"].append({**facts["added_tokens"][-1], "id": 5000, "content": "  "})
    with pytest.raises(UnsupportedTokenizer, match="the added token '  ', normalized to nothing"):
        compile_tokenizer(json.dumps(facts))


@pytest.mark.parametrize("text", ["", "AAA=", "BQAAAAAAAAAA", "CAAAAAAA"])
def test_damaged_maps_are_named(text):
    with pytest.raises(UnsupportedTokenizer, match="a damaged precompiled_charsmap"):
        charsmap_sections(text)


def test_missing_or_foreign_tables_are_refused(tokenizer_library, tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        CompiledTokenizer(tokenizer_library, tmp_path)
    (tmp_path / TOKENIZER_TABLES).write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match="is damaged .it is no tokenizer"):
        CompiledTokenizer(tokenizer_library, tmp_path)


def test_any_changed_byte_is_noticed(tokenizer_library, tmp_path):
    tables = compile_tokenizer(trained("gpt2").to_str())
    source = random.Random(3)
    for _ in range(200):
        at = source.randrange(16, len(tables))
        other = bytes([tables[at] ^ source.randrange(1, 256)])
        (tmp_path / TOKENIZER_TABLES).write_bytes(tables[:at] + other + tables[at + 1 :])
        with pytest.raises(ValueError, match="tokenizer.bin is damaged .its checksum"):
            CompiledTokenizer(tokenizer_library, tmp_path)


def test_damaged_tables_never_reach_outside(compiled, tmp_path):
    """Thousands of damaged files under the address and undefined-behavior sanitizers."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no gcc or clang here")
    here, program = Path(__file__).resolve().parent, tmp_path / "fuzz"
    flags = ["-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [str(RUNTIME_SOURCES / f"{name}.c") for name in SOURCES]
    command = [compiler, *flags, f"-I{RUNTIME_SOURCES}", str(here / "fuzz_tables.c"), *sources]
    subprocess.run([*command, "-o", str(program)], check=True)
    for family in ("qwen2", "llama2", "t5"):
        folder = tmp_path / family
        folder.mkdir()
        (folder / TOKENIZER_TABLES).write_bytes(compile_tokenizer(trained(family).to_str()))
        done = subprocess.run(
            [str(program), str(folder / TOKENIZER_TABLES), str(tmp_path / "work")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("ok")
