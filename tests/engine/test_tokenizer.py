"""Tests of engine/tokenizer.py."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE

from engine.errors import CheckpointError
from engine.tokenizer import Detokenizer, Tokenizer

TEXTS = [
    "Hello, world!",
    "  two  spaces\n\n\tand tabs ",
    "Straße, naïve, 日本語, русский, العربية, हिन्दी",
    "👩‍👩‍👧‍👦 family and 🇩🇪 flag",
    "12345 67.89 1e-5",
    "def f(x):\n    return x**2  # don't",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_decode_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@cache
def known_bytes(tokenizer: Tokenizer) -> frozenset[int]:
    """Return whether the vocabulary has all bytes of a text: it lacks a few that only private and unassigned characters
    use."""
    single = (tokenizer.token_bytes(token) for token in range(tokenizer.vocabulary))
    return frozenset(token[0] for token in single if len(token) == 1)


@given(text=st.text(max_size=60))
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assume(known_bytes(tokenizer) >= set(text.encode()))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_equal_transformers(tokenizer: Tokenizer, gguf_file: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    for text in TEXTS:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False), text
    chat = "<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.encode_template(chat) == reference.encode(chat, add_special_tokens=False)


def test_text_never_becomes_a_control_token(tokenizer: Tokenizer) -> None:
    for control in tokenizer.control:
        tokens = tokenizer.encode(f"a{control}b")
        assert not tokenizer.special & set(tokens)
        assert tokenizer.decode(tokens) == f"a{control}b"


def test_encode_template_recognises_control_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_template("<|im_end|>") == [tokenizer.control["<|im_end|>"]]


def test_special_tokens_are_hidden_by_default(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_template("Hi<|im_end|>")
    assert tokenizer.decode(tokens) == "Hi"
    assert tokenizer.decode(tokens, skip_special=False) == "Hi<|im_end|>"


def test_eos_ids_are_known(tokenizer: Tokenizer) -> None:
    assert tokenizer.control["<|im_end|>"] in tokenizer.eos_ids


@given(text=st.text(min_size=1, max_size=40))
def test_detokenised_pieces_are_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    assume(known_bytes(tokenizer) >= set(text.encode()))
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    for token in tokenizer.encode(text):
        shown += detokenizer.push(token)
        assert text.startswith(shown), "half a character was emitted"
    assert shown + detokenizer.flush() == text


@given(tokens=st.lists(st.integers(0, 49_151), max_size=40))
def test_detokenised_pieces_join_to_the_whole_text(tokenizer: Tokenizer, tokens: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(tokens)


def test_bytes_of_tokens_without_byte_level_text(tmp_path: Path) -> None:
    """Byte-level vocabularies write bytes as printable characters; any other text stands for itself."""
    texts = {"Ġa": b" a", "Ā": b"\0", "é": b"\xe9", "é b": "é b".encode(), "日": "日".encode(), "\x85": b"\xc2\x85"}
    backend = Backend(BPE(vocab={text: index for index, text in enumerate(texts)}, merges=[]))
    backend.decoder = ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert [tokenizer.token_bytes(index) for index in range(tokenizer.vocabulary)] == list(texts.values())


def test_folder_without_tokenizer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
