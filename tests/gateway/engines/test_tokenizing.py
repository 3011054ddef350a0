"""Tests of gateway/engines/tokenizing.py: long texts are tokenised in a thread, and no further than the window."""

import pytest

from engine.tokenizer import Tokenizer
from gateway.engines.protocol import ContextRefused
from gateway.engines.tokenizing import CharacterRun, TokenRun
from tests.fakes.checkpoints import write_byte_tokenizer


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return Tokenizer(folder)


@pytest.mark.parametrize("length", [0, 10, 1_999, 2_000, 5_000])
@pytest.mark.parametrize("window", [None, 10_000])
async def test_tokens_are_those_of_the_tokenizer(bytewise: Tokenizer, length: int, window: int | None) -> None:
    text = "abc " * (length // 4) + "x" * (length % 4)
    run = TokenRun(bytewise, window, adds_space=False)
    assert [*await run.push(text), *await run.finish()] == bytewise.encode(text)


@pytest.mark.parametrize("window", [100, 2_000])
async def test_a_long_text_over_the_window_is_refused(bytewise: Tokenizer, window: int) -> None:
    run = TokenRun(bytewise, window, adds_space=False)
    with pytest.raises(ContextRefused, match=f"window is {window} tokens, but a text") as refused:
        await run.push("x" * 3_000)
    assert refused.value.code == "context_length_exceeded"


async def test_a_short_text_is_left_to_the_engine(bytewise: Tokenizer) -> None:
    run = TokenRun(bytewise, 100, adds_space=False)
    assert len([*await run.push("x" * 1_000), *await run.finish()]) == 1_000


async def test_many_pieces_are_not_searched_again_and_again(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = 0

    def minimum_tokens(self: Tokenizer, text: str) -> int:
        nonlocal searched
        searched += len(text)
        return 0

    monkeypatch.setattr(Tokenizer, "minimum_tokens", minimum_tokens)
    run = TokenRun(tokenizer, 1_000, adds_space=False)
    await run.push(" " * 20_000)
    for _ in range(500):
        assert await run.push(" ") == []
    assert searched <= 200_000, "10,000,000 with a search for each piece"


async def test_generated_text_is_tokenised_with_the_text_around_it(tokenizer: Tokenizer) -> None:
    run = TokenRun(tokenizer, None, adds_space=False)
    tokens = await run.push("It is ")
    assert [*tokens, *await run.rest()] == tokenizer.encode("It is ")
    run.resume("an app")
    tokens += await run.push("le, and ")
    tokens += await run.finish()
    assert tokens == tokenizer.encode("It is an apple, and ")


async def test_an_engine_of_text_gets_each_text_once() -> None:
    run = CharacterRun()
    assert await run.push("a") == await run.push("b") == ""
    assert await run.rest() == "ab"
    run.resume("generated")
    await run.push("c")
    assert await run.finish() == "c"
