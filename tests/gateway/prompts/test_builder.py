"""Tests of gateway/prompts/builder.py: completions of every kind of prompt builder."""

from pathlib import Path
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.graph.references import EVERY_NAME, Reference
from gateway.graph.segments import Input, Slot, Text
from gateway.prompts.builder import PromptBuilder
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.template_builder import TemplatePromptBuilder
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.prompt_contents import joined_texts

ANSWER = Slot(None, SamplingParams())


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}')
    return Tokenizer(folder)


def texts(builder: PromptBuilder, characters: Tokenizer, text: str, **options: Any) -> list[Any]:
    """Return the segments of a completion before the answer, as texts."""
    prompt = builder.completion(text, ANSWER, **options)
    *segments, answer = prompt.segments
    assert answer is ANSWER
    assert prompt.field == options.get("where", "prompt")
    assert prompt.parts is None
    return joined_texts(segments, characters)


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_a_completion_continues_the_clients_text(kind: str, characters: Tokenizer) -> None:
    builder = TemplatePromptBuilder(characters) if kind == "tokens" else PassthroughPromptBuilder()
    bos = "<s>" if kind == "tokens" else ""  # an upstream server adds its own
    assert texts(builder, characters, "Say <<a>>!") == [f"{bos}Say <<a>>!"], "without a session there are no references"
    where = "calls.1.prompt"
    split = texts(builder, characters, r"Say <<a.0>> \<<b>>", references=EVERY_NAME, where=where)
    assert split == [f"{bos}Say ", Input(Reference("a", ("0",)), where), " <<b>>"]
    assert texts(builder, characters, "x", add_bos=False) == ["x"]
    assert texts(builder, characters, "<<a>>", references=EVERY_NAME, add_bos=False) == [
        Input(Reference("a"), "prompt")
    ]


def test_control_tokens_in_a_clients_own_template_are_control_tokens(characters: Tokenizer) -> None:
    *segments, _ = TemplatePromptBuilder(characters).completion("a</s>b", ANSWER).segments
    (text,) = segments
    assert isinstance(text, Text)
    assert [token for token in text.tokens if token in characters.special] == [
        characters.control["<s>"],
        characters.control["</s>"],
    ]
