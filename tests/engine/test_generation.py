"""Tests of engine/generation.py."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.generation import Generation, StopStrings
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer


def run(
    tokenizer: Tokenizer, tokens: list[int], sampling: SamplingParams, limit: int = 1000
) -> tuple[str, str | None, int]:
    """Return text, finish reason and number of consumed tokens when a model samples `tokens`."""
    generation = Generation(sampling, tokenizer, [], limit)
    text = ""
    for count, token in enumerate(tokens, 1):
        _, progress = generation.push(token)
        text += progress.text
        if progress.finish is not None:
            return text, progress.finish, count
    return text, None, len(tokens)


def test_stop_string_across_tokens_is_not_emitted(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("one two three four")
    text, finish, _ = run(tokenizer, tokens, SamplingParams(stop=("o thr",)))
    assert (text, finish) == ("one tw", "stop")


def test_incomplete_stop_string_is_emitted_at_the_end(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("one two")
    text, finish, _ = run(tokenizer, tokens, SamplingParams(stop=("twos",)), limit=len(tokens))
    assert (text, finish) == ("one two", "length")


def test_end_token_ends_without_text(tokenizer: Tokenizer) -> None:
    end = tokenizer.control["<|im_end|>"]
    tokens = tokenizer.encode("Hi")
    assert run(tokenizer, [*tokens, end], SamplingParams()) == ("Hi", "stop", len(tokens) + 1)


def test_ignore_eos(tokenizer: Tokenizer) -> None:
    end = tokenizer.control["<|im_end|>"]
    tokens = [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
    assert run(tokenizer, tokens, SamplingParams(ignore_eos=True))[:2] == ("ab", None)


def test_stop_token_of_the_request_ends(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("one two three")
    _, finish, count = run(tokenizer, tokens, SamplingParams(stop_token_ids=(tokens[1],)))
    assert (finish, count) == ("stop", 2)


def test_incomplete_character_at_the_end_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("日")[:-1]
    assert tokenizer.encode("日")[-1:] != tokens, "the character must have several tokens for this test"
    assert run(tokenizer, tokens, SamplingParams(), limit=len(tokens)) == ("�", "length", len(tokens))


def test_stops_apply_only_after_min_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a b a b a b")
    text, finish, _ = run(tokenizer, tokens, SamplingParams(stop=(" b",), min_tokens=3))
    assert finish == "stop"
    assert text == "a b a"


@pytest.mark.parametrize("least", [3, 4, 100])
def test_max_tokens_takes_precedence_over_min_tokens(tokenizer: Tokenizer, least: int) -> None:
    tokens = tokenizer.encode("one two three four five")
    assert run(tokenizer, tokens, SamplingParams(min_tokens=least), limit=3) == ("one two three", "length", 3)


@given(
    text=st.text("ab", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_stop_strings_do_not_depend_on_token_boundaries(text: str, cuts: list[int], stops: list[str]) -> None:
    failure_table = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    matcher = StopStrings(tuple(stops))
    shown, matched = "", False
    for start, end in itertools.pairwise(failure_table):
        piece, matched = matcher.push(text[start:end])
        shown += piece
        if matched:
            break
    else:
        shown += matcher.flush()
    found = [index for stop in stops if (index := text.find(stop)) >= 0]
    if found:
        # the first complete stop string ends it; no text from the beginning of a stop string on is emitted
        assert matched
        assert text.startswith(shown)
        assert len(shown) <= max(found)
        assert not any(stop in shown for stop in stops)
        assert matcher.found is not None
        assert text.startswith(shown + matcher.found), "it is the one that was found"
    else:
        assert (shown, matched, matcher.found) == (text, False, None)


@pytest.mark.parametrize("limit", [1, 3])
def test_generation_ends_at_the_limit(tokenizer: Tokenizer, limit: int) -> None:
    assert run(tokenizer, tokenizer.encode("a b c d e"), SamplingParams(), limit=limit)[1:] == ("length", limit)
