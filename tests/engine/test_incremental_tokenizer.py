"""Tests of engine/incremental_tokenizer.py: a text in pieces has the tokens of the whole text."""

import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.incremental_tokenizer import IncrementalTokenizer
from engine.long_text import may_compose
from engine.tokenizer import Preceding, Tokenizer
from tests.engine.test_long_text import ALPHABET, CORPUS
from tests.fakes.vocabularies import RANDOM, write_deepseek, write_mistral, write_random

CASES = 650
"""Number of random texts for each vocabulary: more than 10,000 together."""
NASTY = [
    *" \n\t\r0129'sS.,:;!?<>|/_-\"()[]{}\xa0\u3000\u200d\ufe0f",
    *(
        "\u0301",
        "\u0308",
        "e",
        "E\u0301",
        "ﬁ",
        "Å",
        "\u1100",
        "\u1161",
        "\u11a8",
        "각",
        "漢",
        "字",
        "🙂",
        "👩\u200d👧",
        "🇩🇪",
    ),
    *("<|end|>", "<|im_end|>", "<|im_", "end|>", "</s>", "<s", "[INST]", "don't", "we'll", " the", "▁", "<0x41>"),
]


def random_text(source: random.Random) -> str:
    """Return a text with repetitions, parts of real texts, and characters that tokenizers treat specially."""
    text = ""
    for _ in range(source.randint(0, 9)):
        kind = source.random()
        if kind < 0.4:
            text += "".join(source.choices(NASTY, k=source.randint(1, 6))) * source.choice([1, 1, 2, 9, 30])
        elif kind < 0.85:
            corpus = source.choice(CORPUS)
            begin = source.randrange(len(corpus))
            text += corpus[begin : begin + source.randint(1, 50)]
        else:
            text += "".join(source.choices(ALPHABET, k=source.randint(1, 12)))
    return text


def check_random_texts(tokenizer: Tokenizer, seed: int, cases: int) -> float:
    """Cut random texts at random places, and compare tokens. Return the share of tokens that were known early."""
    source = random.Random(seed)
    early = total = 0
    for _ in range(cases):
        text, after = random_text(source), source.choice(["nothing", "control", "text"])
        growing = IncrementalTokenizer(tokenizer, adds_space=tokenizer.adds_space(after))
        tokens: list[int] = []
        position = 0
        while position < len(text):
            length = source.choice([1, 1, 2, 3, 5, 20, 100])
            tokens += growing.push(text[position : position + length])
            position += length
        early += len(tokens)
        tokens += growing.finish()
        whole = tokenizer.encode(text, after=after)
        assert tokens == whole, (seed, text)
        total += len(whole)
    return early / total


@pytest.mark.parametrize("kind", RANDOM)
def test_random_vocabularies(kind: str, tmp_path: Path) -> None:
    assert check_random_texts(write_random(kind, tmp_path), seed=1, cases=CASES) > 0.4


@pytest.mark.parametrize("write", [write_deepseek, write_mistral])
def test_real_vocabularies(write: Callable[[Path], Tokenizer], tmp_path: Path) -> None:
    assert check_random_texts(write(tmp_path), seed=2, cases=CASES) > 0.5


def test_vocabulary_of_the_default_model(tokenizer: Tokenizer) -> None:
    assert check_random_texts(tokenizer, seed=3, cases=2 * CASES) > 0.5


@example(text=" \n<1", cuts=[])
@given(text=st.text(st.sampled_from(ALPHABET), max_size=80), cuts=st.lists(st.integers(1, 12)))
def test_any_text_at_any_cuts(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    growing = IncrementalTokenizer(tokenizer)
    tokens: list[int] = []
    position = 0
    for size in [*cuts, len(text)]:
        tokens += growing.push(text[position : position + size])
        position += size
    assert tokens + growing.finish() == tokenizer.encode(text)


def test_a_long_text_is_tokenised_once(tokenizer: Tokenizer) -> None:
    """Use one word of many characters: it has no border, so that a search after each piece would take quadratic time."""
    searched = 0
    encode_stable = tokenizer.encode_stable

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def encode_stable(self, text: str, max_tokens: int | None = None) -> tuple[list[int], str]:
            nonlocal searched
            searched += len(text)
            return encode_stable(text, max_tokens)

    growing = IncrementalTokenizer(Counting())  # type: ignore[arg-type]
    text = "ab" * 30_000
    for index in range(0, len(text), 4):
        growing.push(text[index : index + 4])
    growing.finish()
    assert searched <= 10 * len(text)


def test_most_of_a_growing_text_is_known_early(tokenizer: Tokenizer) -> None:
    text = "The quick brown fox jumps over the lazy dog, and then it's gone. " * 3
    growing = IncrementalTokenizer(tokenizer)
    tokens = growing.push(text)
    assert len(growing.pending) < 20
    assert tokenizer.decode(tokens) + growing.pending == text


@pytest.mark.parametrize("after", ["nothing", "control", "text"])
def test_an_empty_text_has_no_tokens(after: Preceding, tmp_path: Path) -> None:
    tokenizer = write_random("sentencepiece", tmp_path)
    growing = IncrementalTokenizer(tokenizer, adds_space=True)
    assert growing.push("") == growing.finish() == []


def test_characters_that_compose_with_the_text_before_are_known() -> None:
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        apart = unicodedata.normalize("NFD", chr(code))
        if len(apart) > 1 and unicodedata.normalize("NFC", apart) == chr(code):
            assert all(map(may_compose, apart[1:])), hex(code)
