"""A prompt with references has the tokens of the prompt with the values in their places, and every prompt ends."""

import asyncio
import copy
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.errors import RequestError
from gateway.graph.call import Call, CallSpec
from gateway.graph.errors import GraphError
from gateway.graph.references import EVERY_NAME
from gateway.graph.segments import Slot
from gateway.graph.session import Session
from gateway.graph.variable import Piece
from gateway.prompts.prompt import ChatInput
from gateway.prompts.template_builder import TemplatePromptBuilder
from gateway.scheduler import Scheduler
from tests.fakes.engine import FakeEngine, FakeEngines
from tests.fakes.vocabularies import write_deepseek, write_mistral, write_random
from tests.gateway.chat_templates import TEMPLATES
from tests.gateway.graph.test_session import session
from tests.gateway.scheduler.scheduler_harness import settle

CASES = 120
"""Number of random conversations for each pair of a vocabulary and a template."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=4)
ANSWER = Slot(None, GREEDY)
ROUGH = [
    *("", " ", "\n", "\n\n", "  ", "a", " a", "a ", "!", "1", "12", "'s", "'", "s", "é", "e", "\u0301", "🙂", "\u200d"),
    *(
        "The fox",
        " jumps over the lazy dog. ",
        "\nIt's 12345",
        "don't",
        "<|end|>",
        "<|im_",
        "end|>",
        "<|im_end|>",
        "</s>",
    ),
    *("[INST]", "漢字", "\u1100", "\u1161", "<think>", "{", "}", "▁", "    return x\n\n\n", '"', "\\x", "\t", "\u2003"),
]
FAMILIES = ["SmolLM2", "Llama 2", "Llama 3", "Mistral 0.3", "Qwen3", "SmolLM3", "Gemma 3", "Phi-4"]
CALLED = [{"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {}}}]


def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    """Return the tokenizer with another chat template."""
    changed = copy.copy(tokenizer)
    changed.chat_template = source
    changed.special_texts = {"bos_token": next(iter(tokenizer.control), ""), "eos_token": ""}
    return changed


def random_messages(source: random.Random, values: Mapping[str, str]) -> list[list[str]]:
    """Return the contents of messages as pieces: texts, and names of values between angle brackets."""
    contents = []
    for _ in range(source.choice([1, 2, 3])):
        pieces = []
        for _ in range(source.randint(1, 5)):
            pieces.append(f"<<{source.choice(list(values))}>>" if source.random() < 0.5 else "".join(rough(source)))
        contents.append(pieces)
    return contents


def rough(source: random.Random) -> list[str]:
    return source.choices(ROUGH, k=source.randint(0, 4))


def conversation(contents: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(contents)
    ]


def tool_answers(contents: Sequence[str]) -> list[dict[str, Any]]:
    """Return a conversation in which these contents are answers of tools."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    for content in contents:
        messages.append({"role": "assistant", "content": "", "tool_calls": CALLED})
        messages.append({"role": "tool", "tool_call_id": "abcdefghi", "content": content})
    return messages


async def tokens_of(call_spec: CallSpec, tokenizer: Tokenizer, graph: Session, set_values: Callable[[], None]) -> Any:
    """Run a call, and return the tokens of its prompt."""
    engine = FakeEngine(tokenizer)
    scheduler = Scheduler(FakeEngines(engine), 10)
    call = graph.add(call_spec)
    scheduler.submit(call)
    await settle()
    set_values()
    async with asyncio.timeout(10):
        await scheduler.wait_idle()
    assert call.failure is None, call.failure
    assert len(engine.opened) == 1
    assert call.usage.prompt + call.usage.completion == len(engine.opened[0].tokens)
    return engine.opened[0].tokens[: call.usage.prompt]


def producer_of(graph: Session, name: str) -> Call:
    return graph.add(CallSpec(model="m", segments=[ANSWER], output=name, deferred=True))


async def check_conversations(
    tokenizer: Tokenizer, seed: int, cases: int, conversation: Callable[[Sequence[str]], Any] = conversation
) -> None:
    """Compare prompts with references, whose values come before, later or in pieces, with the same text by hand."""
    builder, source = TemplatePromptBuilder(tokenizer), random.Random(seed)
    for _ in range(cases):
        values = {name: "".join(rough(source)) for name in "abc"}
        contents = random_messages(source, values)
        by_hand = [
            "".join([values[piece[2:-2]] if piece.startswith("<<") else piece for piece in pieces])
            for pieces in contents
        ]
        messages = conversation(["".join(pieces) for pieces in contents])
        graph, hand = session(), session()
        producers = []
        for name in source.sample("abc", 3):
            if source.random() < 0.4:
                graph.set_values(graph.add_variable(name, values[name]))
            else:
                producers.append((name, producer_of(graph, name)))
        prompt = builder.chat(ChatInput(messages, references=EVERY_NAME), ANSWER)
        expected = builder.chat(ChatInput(conversation(by_hand)), ANSWER)

        def set_values(producers: Any = tuple(producers), values: Mapping[str, str] = values) -> None:
            for name, producer in producers:
                text = values[name]
                for begin in range(0, len(text), 3):
                    producer.output.append(Piece(text[begin : begin + 3], 1))
                producer.output.complete()

        found = await tokens_of(CallSpec(model="m", segments=prompt.segments), tokenizer, graph, set_values)
        whole = await tokens_of(CallSpec(model="m", segments=expected.segments), tokenizer, hand, lambda: None)
        assert found == whole, (seed, contents, values)


@pytest.mark.parametrize("family", FAMILIES)
async def test_references_with_the_default_vocabulary(family: str, tokenizer: Tokenizer) -> None:
    await check_conversations(with_template(tokenizer, TEMPLATES[family]), seed=1, cases=CASES)


@pytest.mark.parametrize("family", ["SmolLM2", "Llama 3.1", "Mistral 0.3", "Qwen3", "Phi-4 mini"])
async def test_references_in_answers_of_tools(family: str, tokenizer: Tokenizer) -> None:
    """Use templates that write such an answer as it is, as a JSON string, or inside an object."""
    await check_conversations(with_template(tokenizer, TEMPLATES[family]), 5, CASES // 2, tool_answers)


@pytest.mark.parametrize("family", ["SmolLM2", "Llama 2", "Llama 3"])
@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace", "composed", "one word", "gpt-4o"])
async def test_references_with_random_vocabularies(kind: str, family: str, tmp_path: Path) -> None:
    tokenizer = with_template(write_random(kind, tmp_path), TEMPLATES[family])
    await check_conversations(tokenizer, seed=2, cases=CASES // 2)


@pytest.mark.parametrize("write", [write_deepseek, write_mistral])
async def test_references_with_real_vocabularies(write: Callable[[Path], Tokenizer], tmp_path: Path) -> None:
    await check_conversations(with_template(write(tmp_path), TEMPLATES["Llama 3"]), seed=3, cases=CASES)


# every call ends


def random_turns(source: random.Random, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return messages of random roles with texts, references and slots at random places."""
    turns = []
    for _ in range(source.randint(1, 5)):
        pieces = [
            f"<<{source.choice(names)}>>" if source.random() < 0.5 else source.choice(["x ", "\n", "It is "])
            for _ in range(source.randint(0, 4))
        ]
        turns.append({"role": source.choice(["user", "assistant", "assistant"]), "content": "".join(pieces)})
    return turns


async def test_every_call_ends_whatever_the_order_of_its_slots(tokenizer: Tokenizer) -> None:
    """Use slots, also of several messages, references to them, and references to values that come later."""
    builder, source = TemplatePromptBuilder(tokenizer), random.Random(4)
    done = refused = 0
    for _ in range(800):
        slots = {name: Slot(name, GREEDY, heals=True) for name in source.sample(["s", "t", "u"], source.randint(0, 3))}
        names = [*slots, "early", "late"]
        try:
            chat = ChatInput(random_turns(source, names), references=EVERY_NAME, slots=slots)
            prompt = builder.chat(chat, ANSWER)
            graph = session()
            graph.set_values(graph.add_variable("early", "five"))
            graph.add_variable("late")
            deferred = source.random() < 0.5
            spec = CallSpec(model="m", segments=prompt.segments, parts=prompt.parts, deferred=deferred)
            call = graph.add(spec)
        except (RequestError, GraphError):
            refused += 1
            continue
        scheduler = Scheduler(FakeEngines(FakeEngine(tokenizer)), 10)
        scheduler.submit(call)
        await settle()
        assert scheduler.end_stuck([graph]) == []
        graph.set_values(graph.add_variable("late", "six"))
        async with asyncio.timeout(10):
            await scheduler.wait_idle()
        assert call.state.is_final
        assert call.failure is None or call.failure.code != "internal_error", call.failure
        assert all(variable.state.is_final for variable in call.outputs)
        done += call.failure is None
    assert done > 200
    assert refused > 50
