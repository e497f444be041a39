"""Vocabularies of .gguf files: exactly the file's tokens, cut as the models' own tokenizers do."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from tokenizers import Tokenizer, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel

from morendo.frontend.gguf import GgufVocabulary, open_gguf, read_vocabulary, unsaid
from morendo.frontend.gguf.pre_tokenizers import names, pre_tokenizer
from morendo.frontend.tokenizer import ModelTokenizer, load_tokenizer
from morendo.ir.errors import InputError
from tests.frontend.tiny_gguf import TEMPLATE, write_gguf

_BYTES = sorted(ByteLevel.alphabet())
_LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *_BYTES, "Ġt", "he", "the", "Ġthe"]
_LLAMA3_KEYS = {
    "model": "gpt2",
    "pre": "llama-bpe",
    "tokens": _LLAMA3,
    "merges": ["Ġ t", "h e", "Ġt he"],  # "the" has none: it is reached only as a whole word
    "token_type": [3] * 3 + [1] * (len(_LLAMA3) - 3),
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
_PIECES += ["▁", "a", "b", "ab", "▁a", "▁ab", "<mark>", "  ", "▁b"]
_SPM_KEYS = {
    "model": "llama",
    "tokens": _PIECES,
    "scores": [0.0] * 259 + [-9.0, -8.0, -7.0, -2.0, -3.0, -1.0, -1000.0, -1000.0, -4.0],
    "token_type": [2, 3, 3, *[6] * 256, *[1] * 6, 3, 4, 1],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}


def _open(folder: Path, keys: dict[str, Any], architecture: str = "llama") -> Any:
    every = {f"tokenizer.ggml.{name}": value for name, value in keys.items() if value is not None}
    every["tokenizer.chat_template"] = TEMPLATE
    write_gguf(folder / "m.gguf", architecture, every, {"a": np.ones(3, np.float32)})
    return open_gguf(folder / "m.gguf")


def _read(folder: Path, keys: dict[str, Any], architecture: str = "llama") -> GgufVocabulary:
    found = read_vocabulary(_open(folder, keys, architecture))
    assert found is not None
    return found


def _load(folder: Path, keys: dict[str, Any], size: int) -> ModelTokenizer | None:
    return load_tokenizer(folder / "m.gguf", size, _open(folder, keys))


def test_llama3_has_the_files_tokens_alone(tmp_path):
    found = _load(tmp_path, _LLAMA3_KEYS, len(_LLAMA3))
    assert found is not None
    assert found.library.get_vocab() == {token: i for i, token in enumerate(_LLAMA3)}
    assert (found.size, found.bos, found.eos, found.add_bos) == (len(_LLAMA3), 0, 2, True)
    assert found.chat_template == TEMPLATE
    ids = found.library.encode("the the<|eot_id|>", add_special_tokens=False).ids
    assert [_LLAMA3[i] for i in ids] == ["the", "Ġthe", "<|eot_id|>"]
    assert found.library.decode(ids, skip_special_tokens=False) == "the the<|eot_id|>"


def test_words_are_merged_where_the_model_does_so(tmp_path):
    found = _read(tmp_path, {**_LLAMA3_KEYS, "pre": "qwen2"})
    ids = found.library.encode("the").ids
    assert [_LLAMA3[i] for i in ids] == ["t", "he"]  # and no bos


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt-2", ["I", "'m", "Ġ12345", "ĠDON", "'", "T", "Ġ", "ĠÃ©tÃ©", "!?", "Ċ", "x"]),
        (
            "smollm",
            ["I", "'m", "Ġ", *"12345", "ĠDON", "'", "T", "Ġ", "ĠÃ©tÃ©", "!?", "Ċ", "x"],
        ),
        ("llama-bpe", ["I", "'m", "Ġ", "123", "45", "ĠDON", "'T", "Ġ", "ĠÃ©tÃ©", "!?Ċ", "x"]),
        (
            "qwen2",
            ["I", "'m", "Ġ", *"12345", "ĠDON", "'T", "Ġ", "ĠÃ©tÃ©", "!?Ċ", "x"],
        ),
        ("bloom", ["I'm", "Ġ12345", "ĠDON'T", "Ġ", "ĠÃ©tÃ©", "!?Ċ", "x"]),
        (
            "deepseek-coder",
            ["I", "'", "m", "Ġ", *"12345", "ĠDON", "'", "T", "Ġ", "ĠÃ©tÃ©", "!?", "Ċ", "x"],
        ),
        (
            "default",
            ["I", "'", "m", "Ġ", "123", "45", "ĠDON", "'", "T", "Ġ", "ĠÃ©tÃ©", "!?", "Ċ", "x"],
        ),
    ],
)
def test_how_text_is_cut(name, pieces):
    text = "I'm 12345 DON'T  été!?\nx"
    assert [piece for piece, _ in pre_tokenizer(name).pre_tokenize_str(text)] == pieces


def test_every_name_cuts_text_without_loss():
    text = "Ça va? 1234567 \t\n\n don't <b> 漢字かな 🙂🙂 e\u0301 x_y  "
    for name in names():
        pieces = "".join(piece for piece, _ in pre_tokenizer(name).pre_tokenize_str(text))
        back = {letter: byte for byte, letter in _letters().items()}
        assert bytes(back[c] for c in pieces).decode() == text, name


def _letters() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def test_sentencepiece(tmp_path):
    found = _load(tmp_path, _SPM_KEYS, len(_PIECES))
    assert found is not None
    assert (found.size, found.bos, found.eos, found.add_bos) == (len(_PIECES), 1, 2, True)

    def pieces(text: str) -> list[str]:
        ids = found.library.encode(text, add_special_tokens=False).ids
        return [_PIECES[i] for i in ids]

    assert pieces("ab a") == ["▁ab", "▁a"]
    assert pieces(" ab") == ["▁", "▁ab"]  # a blank is put before every text
    assert pieces("ab<mark>ab") == ["▁ab", "<mark>", "▁ab"]
    assert pieces("a  b") == ["▁a", "  ", "▁b"]
    assert pieces("é") == ["▁", "<0xC3>", "<0xA9>"]
    ids = found.library.encode("ab é b", add_special_tokens=False).ids
    assert found.library.decode(ids) == "ab é b"


def test_sentencepiece_without_a_blank_before(tmp_path):
    found = _read(tmp_path, {**_SPM_KEYS, "add_space_prefix": False})
    ids = found.library.encode("ab<mark>ab", add_special_tokens=False).ids
    assert [_PIECES[i] for i in ids] == ["ab", "<mark>", "ab"]
    assert found.library.decode([264], skip_special_tokens=False) == " ab"


def test_sentencepiece_merges_by_score(tmp_path):
    """Each pair's best piece first, as a search over all pairs finds it."""
    letters = "abc"
    generator = random.Random(0)
    words = {"".join(generator.choices(letters, k=generator.randint(2, 4))) for _ in range(40)}
    tokens = ["<unk>", *letters, *sorted(words)]
    scores = [0.0, *[-100.0] * 3, *(-float(i) for i in generator.sample(range(99), len(words)))]
    keys = {"model": "llama", "tokens": tokens, "scores": scores, "add_space_prefix": False}
    keys["token_type"] = [2] + [1] * (len(tokens) - 1)
    library = _read(tmp_path, keys).library
    score = dict(zip(tokens, scores, strict=True))
    for _ in range(200):
        text = "".join(generator.choices(letters, k=12))
        parts = list(text)
        while True:
            joined = [a + b for a, b in pairwise(parts)]
            found = [(score[piece], -i) for i, piece in enumerate(joined) if piece in score]
            if not found:
                break
            at = -max(found)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids = library.encode(text, add_special_tokens=False).ids
        assert [tokens[i] for i in ids] == parts


def test_gemma_merges_in_the_order_of_its_tokens(tmp_path):
    tokens = ["<unk>", "a", "b", "c", "ab", "bc"]
    keys = {"model": "llama", "tokens": tokens, "scores": [0.0, 0.0, 0.0, 0.0, -9.0, -1.0]}
    keys["add_space_prefix"] = False
    for architecture, want in (("llama", ["a", "bc"]), ("gemma3", ["ab", "c"])):
        found = _read(tmp_path, keys, architecture)
        ids = found.library.encode("abc", add_special_tokens=False).ids
        assert [tokens[i] for i in ids] == want


def test_phi3_markers_swallow_blanks(tmp_path):
    keys = {**_SPM_KEYS, "add_space_prefix": True}
    for architecture, want in (
        ("llama", ["<mark>", "▁", "<0x0A>", "a"]),
        ("phi3", ["<mark>", "▁a"]),
    ):
        found = _read(tmp_path, keys, architecture)
        ids = found.library.encode("<mark>\na", add_special_tokens=False).ids
        assert [_PIECES[i] for i in ids] == want


@pytest.mark.parametrize("keys", [_LLAMA3_KEYS, _SPM_KEYS])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_what_stands_around_a_text(tmp_path, keys, before, behind):
    found = _read(tmp_path, {**keys, "add_bos_token": before, "add_eos_token": behind})
    inner = found.library.encode("ab", add_special_tokens=False).ids
    want = [found.bos] * before + inner + [found.eos] * behind
    assert found.library.encode("ab").ids == want


def test_types_of_tokens(tmp_path):
    """Control and user-defined tokens are found whole; unused and plain ones are not."""
    tokens = [*_BYTES, "!!", "<c>", "<u>", "<n>", "<x>", "", "<turn>", "<|im_end|>"]
    first = len(_BYTES) + 1
    types = [1] * first + [3, 4, 1, 5, 1, 1, 1]
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types}
    keys["merges"] = ["! !"]
    library = _read(tmp_path, {**keys, "eot_token_id": first + 5}).library
    for text, whole in (
        ("<c>", 1),
        ("<u>", 1),
        ("<n>", 0),
        ("<x>", 0),
        ("<turn>", 1),
        ("<|im_end|>", 1),
    ):
        assert (len(library.encode(text).ids) == 1) == whole, text
    special = {t.content for t in library.get_added_tokens_decoder().values() if t.special}
    assert special == {"<c>", "<turn>", "<|im_end|>"}
    assert library.id_to_token(first + 4) == f"[EMPTY_{first + 4}]"
    assert TokenType.USER_DEFINED == 4


def test_a_file_without_a_vocabulary(tmp_path):
    assert _load(tmp_path, {"model": "no_vocab"}, 9) is None
    assert _load(tmp_path, {}, 9) is None


def test_a_file_that_does_not_say_how_text_is_cut(tmp_path):
    for keys in ({**_LLAMA3_KEYS, "pre": None}, {**_LLAMA3_KEYS, "pre": "default"}):
        (note,) = unsaid(_open(tmp_path, keys))
        assert "tokenizer.ggml.pre" in note
    assert unsaid(_open(tmp_path, _LLAMA3_KEYS)) == unsaid(_open(tmp_path, _SPM_KEYS)) == []


def _changed(keys: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**keys, **changes}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (_changed(_SPM_KEYS, model="bert"), "tokenizer.ggml.model is 'bert', need 'gpt2' or"),
        (_changed(_LLAMA3_KEYS, pre="brand-new"), "pre is 'brand-new': how.*known: .*llama-bpe"),
        (_changed(_LLAMA3_KEYS, merges=None), "has no key tokenizer.ggml.merges"),
        (_changed(_LLAMA3_KEYS, merges=["t h"]), "merges: 't' 'h' makes no token"),
        (_changed(_LLAMA3_KEYS, merges=[1]), "merges is not a list of str"),
        (_changed(_LLAMA3_KEYS, tokens=None), "has no key tokenizer.ggml.tokens"),
        (_changed(_LLAMA3_KEYS, tokens=["a", "a"]), "token 'a' is twice"),
        (_changed(_LLAMA3_KEYS, token_type=[1]), r"another length .*\(got 1, need 263\)"),
        (_changed(_LLAMA3_KEYS, eos_token_id=999), "eos_token_id is 999, need a token's id below"),
        (_changed(_SPM_KEYS, scores=None), "neither tokenizer.ggml.scores nor merges"),
        (_changed(_SPM_KEYS, scores=[1.0]), "scores has another length"),
        (_changed(_SPM_KEYS, add_bos_token=1), "add_bos_token is 1, need true or false"),
        (_changed(_SPM_KEYS, remove_extra_whitespaces=True), "remove_extra_whitespaces = True is"),
        (_changed(_LLAMA3_KEYS, precompiled_charsmap=[1]), "precompiled_charsmap = .1. is not"),
        (_changed(_LLAMA3_KEYS, brand_new=1), "tokenizer.ggml.brand_new = 1 is not supported"),
    ],
)
def test_vocabularies_that_are_refused(tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        _read(tmp_path, keys)


def test_a_template_that_is_no_text(tmp_path):
    file = _open(tmp_path, _SPM_KEYS)
    file.metadata["tokenizer.chat_template"] = 4
    with pytest.raises(InputError, match="tokenizer.chat_template is 4, need a text"):
        read_vocabulary(file)


def test_a_token_behind_the_vocabulary_that_is_needed(tmp_path):
    with pytest.raises(InputError, match=r"got id 262 for 'Ġthe', need below 262"):
        _load(tmp_path, _LLAMA3_KEYS, len(_LLAMA3) - 1)


def test_merges_of_sentencepiece_where_there_are_no_scores(tmp_path):
    tokens = ["<unk>", "▁", "a", "▁a"]
    found = _read(tmp_path, {"model": "llama", "tokens": tokens, "merges": ["▁ a"]})
    assert found.library.encode("a", add_special_tokens=False).ids == [3]
    plain = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("▁", "a")]))
    plain.normalizer = normalizers.Prepend("▁")
    assert plain.encode("a").ids == [3]
