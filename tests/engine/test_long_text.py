"""Tests of engine/long_text.py."""

import json
import unicodedata
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from engine.long_text import LongTextEncoder
from engine.models.gguf_tokenizer import _PRE_TOKENIZERS
from engine.tokenizer import Tokenizer, _byte_table

CORPUS = [
    "The quick brown fox's 12345 jumps, over ... the lazy dog!!  \n\n\n Größe naïve café 漢字漢字 \U0001f600\U0001f600\U0001f600 ",
    "def f(x):\n    return x ** 2\n        # " + " " * 40 + "\n" * 12 + "=" * 24 + "\t\t\t" + "aaaaaaaaaaaaaaaabababab",
    "Don't we'll I'M HTTPServer's getURLFor   ÀÉÎ e\u0301 \u1100\u1161\u11a8 ．。、 \u3000\u3000 \xa0\xa0 <|im_end|>",
] * 4

ALPHABET = "ab É\n\t'sx1 23.,<|>_/漢🙂\U0001f600 \r\xa0\u3000AÀe\u0301=!\u1100\u1161\ue000"
KINDS = [*_PRE_TOKENIZERS, "composed", "one word", "sentencepiece", "sentencepiece without bytes", "metaspace"]


@cache
def backend(kind: str) -> Backend:
    """Return a tokenizer of this kind, trained on a few lines, so that merges go in all directions."""
    result = Backend(models.BPE())
    initial = pre_tokenizers.ByteLevel.alphabet()
    if kind in _PRE_TOKENIZERS:
        result.pre_tokenizer = _PRE_TOKENIZERS[kind]()
    elif kind == "composed":
        result.normalizer = normalizers.NFC()
        result.pre_tokenizer = _PRE_TOKENIZERS["qwen2"]()
    elif kind == "one word":
        result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        initial = []
        known = [] if kind == "sentencepiece without bytes" else [f"<0x{byte:02X}>" for byte in range(256)]
        result = Backend(models.BPE(unk_token="<unk>", byte_fallback=bool(known), fuse_unk=True))
        if kind == "metaspace":
            result.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never")
        else:
            result.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=["<unk>", *known], limit_alphabet=60, show_progress=False
        )
        result.train_from_iterator(CORPUS, trainer)
        result.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        plain = {**json.loads(result.to_str()), "added_tokens": []}
        return Backend.from_str(json.dumps(plain))
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=initial, show_progress=False)
    result.train_from_iterator(CORPUS, trainer)
    result.decoder = decoders.ByteLevel()
    return result


@cache
def encoder(kind: str, chunk: int) -> LongTextEncoder:
    content = json.loads(backend(kind).to_str())
    return LongTextEncoder(backend(kind), content, _byte_table(content, {}), chunk=chunk)


def runs(alphabet: str) -> st.SearchStrategy[str]:
    """Return a strategy of texts in which characters and pieces of text repeat."""
    pieces = st.tuples(st.text(st.sampled_from(alphabet), min_size=1, max_size=6), st.sampled_from([1, 1, 2, 9, 50]))
    return st.lists(pieces, max_size=14).map(lambda each: "".join(text * count for text, count in each))


TEXTS = st.one_of(runs(ALPHABET), st.lists(st.sampled_from(CORPUS), max_size=3).map("".join), st.text(max_size=300))


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, chunk=st.sampled_from([8, 24, 64]))
@settings(max_examples=150)
@example(text=" " * 500, chunk=8)
@example(text="\U0001f600" * 300, chunk=8)
@example(text="alpha\nbeta \n\n" * 40, chunk=24)
@example(text="!" * 30 + "\n" * 60 + "  \n x", chunk=24)
@example(text="a" * 40 + "漢" * 60 + "Ab c d e f", chunk=24)
def test_tokens_in_pieces_equal_tokens_of_the_whole_text(kind: str, text: str, chunk: int) -> None:
    whole = backend(kind).encode(text, add_special_tokens=False).ids
    assert encoder(kind, chunk).encode(text) == whole
    assert encoder(kind, chunk).minimum_tokens(text) <= len(whole) or kind == "sentencepiece without bytes"


@cache
def cut_small(tokenizer: Tokenizer) -> LongTextEncoder:
    content = json.loads(tokenizer._backend.to_str())
    return LongTextEncoder(tokenizer._backend, content, tokenizer._bytes, chunk=32)


@given(text=TEXTS)
def test_pieces_with_a_real_vocabulary(tokenizer: Tokenizer, text: str) -> None:
    cut = cut_small(tokenizer)
    whole = tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert cut.encode(text) == whole
    assert cut.minimum_tokens(text) <= len(whole)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, maximum=st.integers(0, 40))
def test_text_over_the_maximum_is_not_tokenised_to_its_end(kind: str, text: str, maximum: int) -> None:
    tokens = encoder(kind, 24).encode(text, maximum)
    whole = backend(kind).encode(text, add_special_tokens=False).ids
    assert tokens == whole[: len(tokens)]
    assert tokens == whole or len(tokens) > maximum


def test_composition_shortens_at_most_by_the_assumed_factor() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    apart = [unicodedata.normalize("NFD", character) for character in characters]
    shrinks = [len(text.encode()) / len(unicodedata.normalize("NFC", text).encode()) for text in apart]
    assert max(shrinks) <= 3
