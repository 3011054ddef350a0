"""Tests of engine/grammar.py: texts match their constraint, whatever the model predicts."""

import json
import re
import threading
from concurrent.futures import Future
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from engine import Engine, SamplingParams
from engine.errors import ContextError
from engine.grammar import Grammars, Matcher, _CompileQueues, _CpuBudget
from engine.protocol import Update
from engine.tokenizer import Tokenizer
from tests.engine.matchers import compile_matcher

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


def text_of(engine: Engine, prompt: str, **sampling: Any) -> tuple[str, str | None]:
    updates = list(engine.stream(prompt, SamplingParams(**{"max_tokens": 200, **sampling})))
    return "".join(update.text for update in updates), updates[-1].finish


@pytest.mark.parametrize("schema", ["true", " true\n", "{}"])
def test_schema_without_constraints(tiny_engine: Engine, schema: str) -> None:
    updates = list(
        tiny_engine.stream([40, 41], SamplingParams(json_schema=schema, max_tokens=200, temperature=1.0, seed=3))
    )
    text = "".join(update.text for update in updates)
    if updates[-1].finish == "stop":
        json.loads(text)
    assert text.strip()[0] in '{["tfn-0123456789'


@pytest.mark.parametrize("schema", ["false", "[1]", "3", '"x"', "null", "{", "", '{"type": 5}', '{"$ref": "#/nope"}'])
def test_invalid_schema_is_rejected(tiny_engine: Engine, schema: str) -> None:
    with pytest.raises(ContextError) as refused:
        list(tiny_engine.stream([40, 41], SamplingParams(json_schema=schema, max_tokens=20)))
    assert refused.value.code == "bad_grammar"
    assert str(refused.value)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-z]{2,5}", r"(yes|no)", r"ä+ß?\.", r"\d{4}-\d{2}-\d{2}"])
def test_whole_text_matches_the_regex(engine: Engine, pattern: str, temperature: float) -> None:
    for seed in range(3 if temperature else 1):
        text, finish = text_of(engine, "Say:", regex=pattern, temperature=temperature, seed=seed, max_tokens=400)
        if finish == "stop":
            assert re.fullmatch(pattern, text), text
        else:
            assert finish == "length"
            assert "+" in pattern, "only that regex may continue forever"


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_json_is_valid_and_ends(engine: Engine, ignore_eos: bool) -> None:
    for seed in range(3):
        text, finish = text_of(
            engine,
            "An animal as JSON:",
            json_schema=json.dumps(SCHEMA),
            temperature=1.0,
            seed=seed,
            ignore_eos=ignore_eos,
        )
        assert finish == "stop"
        value = json.loads(text)
        assert set(value) == {"name", "age", "kind", "tags"}
        assert len(value["name"]) <= 12
        assert 0 <= value["age"] <= 150
        assert value["kind"] in ("cat", "dog")
        assert len(value["tags"]) <= 2
        assert "\n" not in text, "each value has one spelling"


def test_text_cut_at_the_limit_finishes_with_length(engine: Engine) -> None:
    assert text_of(engine, "Go", regex="x{50}", temperature=0.0, max_tokens=3)[1] == "length"


def test_grammar_decides_when_the_text_ends(engine: Engine) -> None:
    assert text_of(engine, "Go", regex="yes", temperature=0.0, min_tokens=30) == ("yes", "stop")


def test_other_rows_of_the_step_are_unconstrained(engine: Engine) -> None:
    alone, _ = text_of(engine, "Once upon a time", temperature=0.0, max_tokens=12)
    for context, sampling in (
        (1001, SamplingParams(max_tokens=12, temperature=0.0)),
        (1002, SamplingParams(max_tokens=12, temperature=0.0, regex="[0-9]+")),
    ):
        engine.fill(context, engine.tokenizer.encode_template("Once upon a time"))
        engine.generate(context, sampling)
    texts = {1001: "", 1002: ""}
    while engine.has_work:
        for update in engine.step():
            texts[update.context] += update.text
    for context in texts:
        engine.free_context(context)
    assert texts[1002].isdecimal()
    if engine.decoder.kernels.is_batch_invariant:
        assert texts[1001] == alone


def test_invalid_grammar_is_rejected(engine: Engine) -> None:
    with pytest.raises(ContextError, match="regex"):
        text_of(engine, "Go", regex="([")


FORCED = {"const": "the quick brown fox jumps over the lazy dog, and once more over the other lazy dog"}
"""One text of some twenty tokens can come."""


def answers_of(engine: Engine, samplings: list[SamplingParams], prompt: list[int]) -> list[list[Update]]:
    """Return the updates of some generations in one batch."""
    received: dict[int, list[Update]] = {2000 + index: [] for index in range(len(samplings))}
    for context, sampling in zip(received, samplings, strict=True):
        engine.fill(context, prompt)
        engine.generate(context, sampling)
    while engine.has_work:
        for update in engine.step():
            received[update.context] += [update] if update.tokens or update.error else []
    engine.check_integrity()
    for context, updates in received.items():
        if updates[-1].finish == "length":  # otherwise the engine corrected it for a later fill
            assert engine._sequences[context].tokens == prompt + [
                token for update in updates for token in update.tokens
            ]
        engine.free_context(context)
    return list(received.values())


def test_forced_tokens_are_appended_together(engine: Engine) -> None:
    [updates] = answers_of(engine, [SamplingParams(json_schema=json.dumps(FORCED), temperature=0.0)], [40, 41])
    tokens = [token for update in updates for token in update.tokens]
    assert "".join(update.text for update in updates) == engine.tokenizer.decode(tokens) == json.dumps(FORCED["const"])
    assert updates[-1].finish == "stop"
    assert len(tokens) > 15
    assert len(updates) <= 4, [update.tokens for update in updates]


@pytest.mark.parametrize("sampling", [{"logprobs": True}, {"logit_bias": {100: 1.0}}])
def test_forced_tokens_run_the_model_if_logprobs_or_bias_are_requested(
    engine: Engine, sampling: dict[str, Any]
) -> None:
    one = SamplingParams(json_schema=json.dumps(FORCED), temperature=0.0, **sampling)
    [updates] = answers_of(engine, [one], [40, 41])
    assert "".join(update.text for update in updates) == json.dumps(FORCED["const"])
    assert all(len(update.tokens) == 1 for update in updates)


@pytest.mark.parametrize("most", range(1, 12))
def test_forced_tokens_end_with_the_generation(engine: Engine, most: int) -> None:
    [updates] = answers_of(
        engine, [SamplingParams(json_schema=json.dumps(FORCED), temperature=0.0, max_tokens=most)], [40, 41]
    )
    tokens = [token for update in updates for token in update.tokens]
    assert len(tokens) == most
    assert updates[-1].finish == "length"
    assert "".join(update.text for update in updates) == engine.tokenizer.decode(tokens)


@pytest.mark.parametrize("stop", ["brown", "own f", " lazy dog, and"])
def test_stop_string_in_forced_tokens_is_found(engine: Engine, stop: str) -> None:
    one = SamplingParams(json_schema=json.dumps(FORCED), temperature=0.0, stop=(stop,))
    [updates] = answers_of(engine, [one], [40, 41])
    assert "".join(update.text for update in updates) == json.dumps(FORCED["const"]).partition(stop)[0]
    assert updates[-1].finish == "stop"


@pytest.mark.parametrize("shape", [{"step_tokens": 8}, {"step_tokens": 64, "kv_tokens": 96}, {"max_batch": 3}])
def test_many_sequences_with_forced_tokens(tiny_engine: Engine, shape: dict[str, Any]) -> None:
    """More sequences than a step, a batch or the pool holds; each gets its own text, next to unconstrained ones."""
    engine = Engine(msgspec.structs.replace(tiny_engine.config, **shape))
    texts = [f"number {index}: {'abc ' * index}" for index in range(8)]
    fixed = [SamplingParams(json_schema=json.dumps({"const": text}), temperature=0.0) for text in texts]
    *answers, other = answers_of(
        engine, [*fixed, SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)], [40, 41]
    )
    for text, updates in zip(texts, answers, strict=True):
        assert "".join(update.text for update in updates) == json.dumps(text)
        assert updates[-1].finish == "stop"
    assert sum(len(update.tokens) for update in other) == 20
    assert any(len(update.tokens) > 1 for updates in answers for update in updates)


PATTERNS = [
    "(ä|ö)x",  # the forced text begins inside a character
    "(日|旦)本語(です|でした)",
    "🙂(🙃|🙂){2}done",
    "naïve (café|cafetière) für (Größe|Größen)",
    "the (quick|quirk) brown fox",
    "\u00e9{5}\u0301{3}ok",
    "  (  )?x\n\n\ny\t\tz",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_between_forced_tokens_is_complete(tokenizer: Tokenizer, pattern: str) -> None:
    grammars, random, forced = Grammars(tokenizer), np.random.default_rng(0), 0
    for _ in range(20):
        matcher = compile_matcher(grammars, SamplingParams(regex=pattern))
        tokens: list[int] = []
        coming: list[int] = []
        over = False
        while not over:
            if not coming:
                allowed = np.flatnonzero(np.unpackbits(matcher.allowed_mask().view(np.uint8), bitorder="little"))
                coming = [int(random.choice(allowed))]
            tokens.append(coming.pop(0))
            over = matcher.push(tokens[-1])
            if not over and not coming:
                coming = matcher.forced_tokens()
                forced += len(coming)
        assert re.fullmatch(pattern, tokenizer.decode([token for token in tokens if token not in tokenizer.eos_ids]))
    assert forced


AGE = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
FORMS: list[tuple[dict[str, str], list[str], list[str]]] = [
    ({"json_schema": AGE}, ['{"a": 1}'], ["x", '{"b": 1}', '{"a":1}']),
    ({"json_schema": "true"}, ["3", '{"b": [1]}'], ["x"]),
    ({"regex": r"(a|b/)[c\\/]{2}\n?"}, ["acc", "b/c/", "a//\n", "acc\n"], ["cc", "b"]),
    ({"grammar": 'start: "x" y\ny: /[0-9]+/'}, ["x1", "x25"], ["1", "y"]),
]


@cache
def _grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def accepts(tokenizer: Tokenizer, text: str, **sampling: Any) -> bool:
    """Return whether the grammar accepts the whole text."""
    matcher = compile_matcher(_grammars(tokenizer), SamplingParams(**sampling))
    for token in tokenizer.encode(text):
        allowed = matcher.allowed_mask()
        if not allowed[token // 32] >> (token % 32) & 1:
            return False
        matcher.push(token)
    return bool(matcher._matcher.is_accepting())


@pytest.mark.parametrize(("form", "good", "bad"), FORMS)
def test_reasoning_may_precede_constrained_text(
    tokenizer: Tokenizer, form: dict[str, str], good: list[str], bad: list[str]
) -> None:
    thoughts = ["</think>", "Hm</think>\n\n", "\n{x} <th </thin k>\n</think>\n"]
    for text in good:
        assert accepts(tokenizer, text, **form)
        assert accepts(tokenizer, text, **form, thinks="perhaps")
        assert not accepts(tokenizer, f"\n{text}", **form, thinks="perhaps"), (
            "without reasoning, the text is the constrained answer alone"
        )
        for thought in thoughts:
            assert accepts(tokenizer, thought + text, **form, thinks="begun")
            assert accepts(tokenizer, f"<think>{thought}{text}", **form, thinks="perhaps")
            assert not accepts(tokenizer, thought, **form, thinks="begun"), "the answer has not come yet"
    for text in bad:
        for before, thinks in (("", "perhaps"), ("<think>\nHm</think>\n\n", "perhaps"), ("Hm</think>\n\n", "begun")):
            assert not accepts(tokenizer, before + text, **form, thinks=thinks)


@pytest.mark.parametrize(
    "form",
    [
        {"json_schema": "false"},
        {"json_schema": "{"},
        {"json_schema": '{"type": 5}'},
        {"regex": "("},
        {"grammar": "start"},
    ],
)
def test_invalid_grammar_with_reasoning_is_rejected(tiny_engine: Engine, form: dict[str, Any]) -> None:
    with pytest.raises(ContextError) as refused:
        list(tiny_engine.stream([40, 41], SamplingParams(**form, thinks="begun", max_tokens=20)))
    assert refused.value.code == "bad_grammar"


def test_random_model_ends_with_the_grammar(tiny_engine: Engine) -> None:
    for seed in range(20):
        held = SamplingParams(regex="[a-z]{3}", thinks="perhaps", max_tokens=40, temperature=2.0, seed=seed)
        updates = list(tiny_engine.stream([40, 41], held))
        text = "".join(update.text for update in updates)
        if not text.startswith("<think>"):
            assert re.fullmatch("[a-z]{3}", text)
            assert updates[-1].finish == "stop"


def test_reasoning_is_followed_by_a_constrained_answer(engine: Engine) -> None:
    """Use a prompt whose earlier answers contain reasoning."""
    turn = 'Question: What is {a} + {b}?\n<think>\nI add {a} and {b}, which is {c}.\n</think>\n\n{{"sum": {c}}}\n\n'
    before = "".join(turn.format(a=a, b=b, c=a + b) for a, b in ((2, 2), (3, 4), (1, 5), (4, 4)))
    schema = json.dumps({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]})
    for begun in ("", "<think>\n"):
        how: Any = {"json_schema": schema, "thinks": "begun" if begun else "perhaps", "temperature": 0.0}
        text, finish = text_of(engine, f"{before}Question: What is 3 + 3?\n{begun}", **how)
        assert finish == "stop"
        thought, end, answer = (begun + text).partition("</think>\n\n")
        assert thought.startswith("<think>\nI add 3 and 3"), "reasoning was optional"
        assert end
        assert json.loads(answer) == {"sum": 6}


DEAD_ENDS: list[dict[str, str]] = [
    {"json_schema": '{"$ref": "#/$defs/n", "$defs": {"n": {"$ref": "#/$defs/n"}}}'},
    {"json_schema": '{"$ref": "#"}'},
    {"regex": "[^\\s\\S]"},
    {"regex": "a[^\\s\\S]b"},
    {"grammar": 'start: "x" y\ny: /[^\\s\\S]/'},
]


@pytest.mark.parametrize("form", DEAD_ENDS)
def test_text_that_cannot_be_finished_fails(tiny_engine: Engine, form: dict[str, Any]) -> None:
    with pytest.raises(ContextError) as failed:
        list(tiny_engine.stream([40, 41], SamplingParams(**form, max_tokens=100, temperature=1.0, seed=1)))
    assert failed.value.code in ("grammar_dead_end", "bad_grammar")
    assert "\n" not in str(failed.value)
    assert not tiny_engine.has_work


def test_dead_end_fails_the_request(tiny_engine: Engine) -> None:
    """After a comma a name must follow that no text can be."""
    score = {"score": {"type": "integer", "minimum": 0, "maximum": 9}}
    schema = {"type": "object", "properties": score, "required": ["score"], "additionalProperties": False}
    schema["patternProperties"] = {"^score$": {"type": "integer"}}
    ends = []
    for seed in range(12):
        text = ""
        try:
            for update in tiny_engine.stream([40, 41], SamplingParams(json_schema=json.dumps(schema), seed=seed)):
                text += update.text
            json.loads(text)
            ends.append("stop")
        except ContextError as error:
            ends.append(error.code)
    assert set(ends) <= {"stop", "grammar_dead_end"}
    assert "grammar_dead_end" in ends


def test_endless_grammar_is_bounded(tiny_engine: Engine) -> None:
    """Force more tokens than one step may process."""
    with pytest.raises(ContextError) as failed:
        list(tiny_engine.stream([40, 41], SamplingParams(grammar='start: a\na: "x" a', max_tokens=30)))
    assert failed.value.code == "grammar_too_complex"


HARD: list[dict[str, str]] = [
    {"regex": "((((a{200}){200}){200}){200}){200}"},
    {"grammar": 'start: start start | "a" | ""'},
    {"json_schema": json.dumps({"allOf": [{"type": "string", "pattern": f"^.*{c}.{{18}}"} for c in "ab"]})},
]


@pytest.mark.parametrize("form", HARD)
def test_grammar_time_of_one_text_is_bounded(
    tiny_engine: Engine, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set the CPU time budget to 0, so that it is exceeded immediately, where no limit of the library applies."""
    monkeypatch.setattr("engine.grammar._BUDGET_SECONDS", 0.0)
    monkeypatch.setattr("engine.grammar._QUICK_SECONDS", 0.0)
    monkeypatch.setattr("engine.grammar._CHEAP_SECONDS", 0.0)
    monkeypatch.setattr("engine.grammar._OVERDRAFT_SECONDS", 0.0)
    monkeypatch.setattr(tiny_engine._pending_generations._grammars, "_budgets", {})
    with pytest.raises(ContextError) as failed:
        bias = {tiny_engine.tokenizer.encode("a")[0]: 100.0}
        list(tiny_engine.stream([40, 41], SamplingParams(**form, max_tokens=400, temperature=0.0, logit_bias=bias)))
    assert failed.value.code == "grammar_too_complex"
    assert len(str(failed.value)) < 400
    assert list(tiny_engine.stream([40, 41], SamplingParams(max_tokens=3, ignore_eos=True))), "other requests continue"


def test_a_cheap_text_continues_after_others_used_up_the_budget(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.grammar._QUICK_SECONDS", 0.0)
    budget = _CpuBudget()
    monkeypatch.setattr(tiny_engine._pending_generations._grammars, "_budgets", {"": budget})
    assert not budget.spend(2.05)
    assert 0 < budget.seconds_until_positive <= 0.5
    made = list(tiny_engine.stream([40, 41], SamplingParams(regex="[0-9]{3}", max_tokens=20)))
    assert made[-1].finish == "stop"


def test_grammars_of_a_scope_wait_for_its_budget() -> None:
    owes = {"greedy": 0.05, "modest": 0.0}
    queues = _CompileQueues()
    for scope in ("greedy", "greedy", "modest"):
        queues.put(scope, (Future(), SamplingParams()))
    assert queues.get(owes.__getitem__)[0] == "modest"

    def delay(scope: str) -> float:
        owes[scope] -= 0.05
        return owes[scope] + 0.05

    assert queues.get(delay)[0] == "greedy", "its turn comes when the budget is refilled"
    assert queues.get(delay)[0] == "greedy"


def test_a_budget_owes_a_bounded_time() -> None:
    budget = _CpuBudget()
    for _ in range(100):
        budget.spend(1.0)
    assert budget.seconds_until_positive <= 10
    assert not budget.is_full


def test_other_requests_continue_while_a_grammar_compiles(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, release = Grammars._compile, threading.Event()

    def compile_slowly(self: Grammars, sampling: SamplingParams, budget: _CpuBudget, prefix: str) -> Matcher:
        assert release.wait(30)
        return compiled(self, sampling, budget, prefix)

    monkeypatch.setattr(Grammars, "_compile", compile_slowly)
    engine = Engine(tiny_engine.config)
    for context, sampling in (
        (1, SamplingParams(regex="[0-9]{3}")),
        (2, SamplingParams(max_tokens=5, ignore_eos=True)),
    ):
        engine.fill(context, [40, 41])
        engine.generate(context, sampling)
    with pytest.raises(ContextError, match="generating"):
        engine.generate(1, SamplingParams())
    with pytest.raises(ContextError, match="generating"):
        engine.fill(1, [42])
    texts = {1: "", 2: ""}
    while not any(update.finish for update in step(engine, texts) if update.context == 2):
        pass
    assert texts[1] == ""
    assert engine.has_work
    engine.generate(2, SamplingParams(regex="[a-z]{3}"))
    engine.free_context(2)  # its grammar is not compiled yet
    release.set()
    while engine.has_work:
        step(engine, texts)
    assert re.fullmatch("[0-9]{3}", texts[1])
    assert engine.active_contexts == 0
    engine.check_integrity()


def step(engine: Engine, texts: dict[int, str]) -> list[Update]:
    updates = engine.step()
    for update in updates:
        texts[update.context] += update.text
    return updates


def test_failure_after_a_token_fails_the_request(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    push = Matcher.push

    def fails(matcher: Matcher, token: int) -> bool:
        push(matcher, token)
        matcher._fail("grammar_dead_end", "no token can follow")
        return True

    monkeypatch.setattr(Matcher, "push", fails)
    with pytest.raises(ContextError, match="no token can follow") as failed:
        list(tiny_engine.stream([40, 41], SamplingParams(regex="[0-9]{3}", max_tokens=20)))
    assert failed.value.code == "grammar_dead_end"
    tiny_engine.check_integrity()


def test_scopes_take_turns_in_compiling_grammars() -> None:
    jobs = _CompileQueues()
    for scope in ["a"] * 4 + ["b", "c", "b"]:
        jobs.put(scope, (Future(), SamplingParams(regex=scope)))
    assert "".join(jobs.get(lambda scope: 0.0)[0] for _ in range(7)) == "abcabaa"


def test_scope_has_one_budget_that_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("engine.grammar.time.monotonic", lambda: now)
    grammars = Grammars.__new__(Grammars)
    grammars._budgets = {}
    mine, yours = grammars._budget("me"), grammars._budget("you")
    assert grammars._budget("me") is mine
    assert mine.spend(1.5)
    assert not mine.spend(1.0)
    assert yours.spend(1.5)
    now = 6.0
    assert mine.spend(0.0), "0.1 s per second"
    assert not mine.is_full
    now = 100.0
    assert mine.is_full
    assert not mine.spend(2.5), "never more than at the beginning"
