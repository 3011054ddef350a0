"""Tests of engine/healing.py: a text may begin inside what would be one token with the end of the prompt."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine import Engine, EngineConfig, SamplingParams
from engine.errors import ContextError
from engine.healing import PrefixMatcher, TokenTable
from engine.protocol import TokenLogprob
from engine.tokenizer import Tokenizer

CHAT = "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def table(tokenizer: Tokenizer) -> TokenTable:
    return TokenTable(tokenizer)


class Answer:
    """A generated text with what the engine reports about it."""

    def __init__(self, engine: Engine, prompt: str, *, heals: bool = True, **options: Any) -> None:
        sampling: Any = {"temperature": 0.0, "max_tokens": 12} | options
        self.text, self.tokens, self.finish = "", 0, ""
        self.logprobs: list[TokenLogprob] = []
        self.context: list[int] = []
        """Tokens of the context afterwards."""
        for _ in self._run(engine, engine.tokenizer.encode_template(prompt), SamplingParams(**sampling), heals):
            pass

    def _run(self, engine: Engine, tokens: list[int], sampling: SamplingParams, heals: bool) -> Iterator[None]:
        context = 1 + max(engine._sequences, default=0)
        engine.fill(context, tokens)
        try:
            engine.generate(context, sampling, heals=heals)
            while not self.finish:
                for update in engine.step():
                    if update.error is not None:
                        raise ContextError(*update.error)
                    self.text += update.text
                    self.tokens += len(update.tokens)
                    self.logprobs += update.logprobs
                    self.finish = update.finish or ""
                yield
            self.context = list(engine._sequences[context].tokens)
            engine.check_integrity()
        finally:
            engine.free_context(context)


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("It is ", " "),
        ("It is", " is"),
        ("The fruit is an app", " app"),
        ("x <|im_end|>", ""),  # the border of a control token is no border of a text
        ("<|im_start|>a", "a"),
        ("a", ""),  # something must stay, or the model has no input
    ],
)
def test_tokens_that_may_be_longer_are_taken_back(
    table: TokenTable, tokenizer: Tokenizer, prompt: str, taken: str
) -> None:
    tokens = tokenizer.encode_template(prompt)
    count, text = table.take_back(tokens)
    assert text.decode() == taken
    assert b"".join(map(tokenizer.token_bytes, tokens[len(tokens) - count :])) == text


def test_tokens_without_a_text_are_not_taken_back(table: TokenTable, tokenizer: Tokenizer) -> None:
    padding = tokenizer.vocabulary + 5
    assert table.take_back([1, 2, padding, padding]) == (0, b"")
    assert table.take_back([1, padding, *tokenizer.encode("It is ")]) == (1, b" ")


def test_whole_characters_are_taken_back(table: TokenTable, tokenizer: Tokenizer) -> None:
    source, found = random.Random(2), 0
    for _ in range(3000):
        count, text = table.take_back([1, *tokenizer.encode("".join(source.choices("aé漢字\U0001f600 ßñ한", k=4)))])
        assert text.decode().encode() == text
        found += count > 1
    assert found > 10, "characters of several tokens"


def test_allowed_tokens_agree_with_the_prefix(table: TokenTable, tokenizer: Tokenizer) -> None:
    for prefix in (b" ", b" th", b"\n\n", "é".encode(), b"\xf0\x9f"):
        bits = np.unpackbits(table.allowed_mask(prefix).view(np.uint8), bitorder="little")
        control = set(tokenizer.control.values())
        for token in range(tokenizer.vocabulary):
            text = tokenizer.token_bytes(token)
            fits = bool(text) and token not in control and (text.startswith(prefix) or prefix.startswith(text))
            assert bits[token] == fits, (prefix, text)


def test_the_prefix_is_consumed(table: TokenTable, tokenizer: Tokenizer) -> None:
    matcher = PrefixMatcher(table, tokenizer, b" the")
    assert not matcher.push(tokenizer.encode(" t")[0])
    bits = np.unpackbits(matcher.allowed_mask().view(np.uint8), bitorder="little")
    assert bits[tokenizer.encode("he")[0]]
    assert not bits[tokenizer.encode("x")[0]]


def test_an_answer_completes_a_word(engine: Engine) -> None:
    assert Answer(engine, CHAT + "The fruit is an app", heals=False).text.startswith("ort")
    assert Answer(engine, CHAT + "The fruit is an app").text == "le."


def test_an_answer_after_a_space_is_the_one_without_it(engine: Engine) -> None:
    """Use a prompt after which the model has no natural token: hardly any begins after a space."""
    direct = Answer(engine, CHAT + "It is", heals=False)
    healed = Answer(engine, CHAT + "It is ")
    assert " " + healed.text == direct.text
    assert healed.context == direct.context
    assert Answer(engine, CHAT + "It is ", heals=False).text != healed.text


def test_only_tokens_of_the_answer_count(engine: Engine) -> None:
    whole = Answer(engine, CHAT + "It is ", max_tokens=9)
    assert whole.tokens == 9
    assert whole.finish == "length"
    assert Answer(engine, CHAT + "It is ", max_tokens=1).text == whole.text.split(" ")[0]


def test_stop_strings_see_only_the_answer(engine: Engine) -> None:
    whole = Answer(engine, CHAT + "It is ").text
    word = whole.split(" ")[2]
    assert Answer(engine, CHAT + "It is ", stop=(word,)).text == whole.partition(word)[0]
    assert Answer(engine, CHAT + "It is ", stop=("is ",)).text != "", "the prompt's end is no stop string"


def test_a_constraint_holds_for_the_answer(engine: Engine) -> None:
    for regex in ("[a-z]+ [a-z]+", "[0-9]{3}", "le.{0,9}", "a/\\\nb"):
        for prompt in ("It is ", "The fruit is an app", "I like\n\n"):
            assert re.fullmatch(regex, Answer(engine, CHAT + prompt, regex=regex, max_tokens=40).text)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    schema["additionalProperties"] = False
    text = Answer(engine, CHAT + 'JSON: ""\\\n ', json_schema=json.dumps(schema), max_tokens=40).text
    assert isinstance(json.loads(text)["n"], int)


def test_log_probabilities_name_the_part_that_the_prompt_had(engine: Engine) -> None:
    answer = Answer(engine, CHAT + "The fruit is an app", logprobs=True, top_logprobs=2)
    tokenizer = engine.tokenizer
    cut = b"".join(tokenizer.token_bytes(entry.token)[entry.cut :] for entry in answer.logprobs)
    assert cut.decode() == answer.text == "le."
    assert [entry.cut for entry in answer.logprobs] == [len(" app"), 0]
    assert len(answer.logprobs) == answer.tokens - (answer.finish == "stop")


def test_random_models_begin_with_the_prefix(tiny_engine: Engine) -> None:
    """Use models that prefer anything: their tokens begin with the text taken back, which is not in the answer."""
    source, tokenizer = random.Random(1), tiny_engine.tokenizer
    words = ["a", " ", "é", "\U0001f600", "the", "\n", "x1", "th", " w"]
    for number in range(60):
        prompt = "".join(source.choices(words, k=source.randint(2, 8)))
        answer = Answer(tiny_engine, prompt, temperature=source.choice([0.0, 2.0]), seed=number, max_tokens=6)
        assert answer.tokens <= 6
        said = tokenizer.decode(answer.context, skip_special=False)
        if answer.finish == "length":
            assert said == prompt + answer.text or "\ufffd" in said
        else:
            assert said.startswith(prompt)


def test_a_rewritten_context_keeps_equal_tokens(engine: Engine) -> None:
    """Text that follows a generated one may change its tokens; those that stay are not computed again."""
    tokens = engine.tokenizer.encode_template(CHAT + "It is a fruit that grows on trees")
    engine.fill(1, tokens)
    engine.generate(1, SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))
    while engine.has_work:
        engine.step()
    said = list(engine._sequences[1].tokens)
    computed = engine._sequences[1].computed_tokens
    engine.fill(1, said[10:], start=10)
    assert engine._sequences[1].tokens == said
    assert engine._sequences[1].computed_tokens == computed
    engine.fill(1, [*said[10:18], 5, 6], start=10)
    assert engine._sequences[1].tokens == [*said[:18], 5, 6]
    assert engine._sequences[1].computed_tokens == 18
    with pytest.raises(ContextError, match="none begin at 99"):
        engine.fill(1, [5], start=99)
    with pytest.raises(ContextError, match="none begin at 0"):
        engine.fill(2, [5], start=0)
    engine.free_context(1)
    engine.check_integrity()


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_commands_keep_the_cache_intact(tiny_engine: Engine, overlaps: bool, seed: int) -> None:
    """Heal and rewrite contexts at any moment, also while the step before is still running, as on a GPU."""
    source = random.Random(seed)
    engine = Engine(tiny_engine.config)
    engine._overlaps = overlaps
    words, live, last = ["a", " ", "the", " th", "\n", "x1"], set[int](), 0

    def text() -> list[int]:
        return engine.tokenizer.encode("".join(source.choices(words, k=source.randint(1, 12))))

    def idle() -> int | None:
        contexts = [context for context in sorted(live) if engine._sequences[context].generation is None]
        contexts = [context for context in contexts if context not in engine._pending_generations]
        return source.choice(contexts) if contexts else None

    for _ in range(700):
        action, context = source.random(), idle()
        try:
            if action < 0.15 and len(live) < 5:
                last += 1
                engine.fill(last, [1, *text()], parent=context if source.random() < 0.4 else None)
                live.add(last)
            elif action < 0.25 and context is not None:
                engine.fill(context, text())
            elif action < 0.4 and context is not None:
                tokens = engine._sequences[context].tokens
                start = source.randint(0, len(tokens))
                engine.fill(context, tokens[start : source.randint(start, len(tokens))] + text(), start=start)
            elif action < 0.6 and context is not None:
                sampling = SamplingParams(
                    temperature=0.0,
                    max_tokens=source.randint(1, 12),
                    regex="[a-z ]+" if source.random() < 0.2 else None,
                )
                engine.generate(context, sampling, heals=source.random() < 0.7)
            elif action < 0.65 and context is not None:
                live.discard(context)
                engine.free_context(context)
            else:
                for update in engine.step():
                    if update.error is not None:
                        live.discard(update.context)
        except ContextError as error:  # the context is full, or empty
            if context is not None and error.code == "context_length_exceeded":
                live.discard(context)
                engine.free_context(context)
        engine.check_integrity()


def test_a_context_that_is_healed_again_keeps_its_blocks(engine: Engine) -> None:
    """Heal after each number of tokens, with overlapping steps: at a block's border nothing is left to compute."""
    overlapping = Engine(EngineConfig(kv_tokens=4096))
    overlapping._overlaps = True
    tokenizer, sampling = engine.tokenizer, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    prompt = tokenizer.encode_template(CHAT + "Once upon a time there was a small fox")
    more = tokenizer.encode(" and a dog" * 6)
    for length in range(17):
        contexts = []
        for subject in (overlapping, engine):
            subject.fill(900, [*prompt, *more[:length]])
            for heals in (False, True):
                subject.generate(900, sampling, heals=heals)
                while subject.has_work:
                    subject.step()
                    subject.check_integrity()
            contexts.append(list(subject._sequences[900].tokens))
            subject.free_context(900)
        assert contexts[0] == contexts[1]
