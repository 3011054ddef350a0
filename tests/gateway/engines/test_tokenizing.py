"""gateway/engines/tokenizing.py: long values are tokenised in a thread, and no further than the window."""

import pytest

from engine.tokenizer import Tokenizer
from gateway.engines.protocol import ContextRefused
from gateway.engines.tokenizing import tokens_of
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
    assert await tokens_of(text, bytewise, window) == bytewise.encode(text)


@pytest.mark.parametrize("window", [100, 2_000])
async def test_a_long_value_over_the_window_is_refused(bytewise: Tokenizer, window: int) -> None:
    with pytest.raises(ContextRefused, match=f"window is {window} tokens, but a value") as refused:
        await tokens_of("x" * 3_000, bytewise, window)
    assert refused.value.code == "context_length_exceeded"


async def test_a_short_value_is_left_to_the_engine(bytewise: Tokenizer) -> None:
    assert len(await tokens_of("x" * 1_000, bytewise, 100)) == 1_000
