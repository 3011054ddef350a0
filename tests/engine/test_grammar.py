"""engine/grammar.py: texts that fit, whatever the model would have liked to say."""

import json
import re
from typing import Any

import pytest

from engine import Engine, Sampling
from engine.errors import ContextError

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
    updates = list(engine.stream(prompt, Sampling(**{"max_tokens": 200, **sampling})))
    return "".join(update.text for update in updates), updates[-1].finish


@pytest.mark.parametrize("schema", ["true", " true\n", "{}"])
def test_a_schema_that_holds_nothing_back(tiny_engine: Engine, schema: str) -> None:
    updates = list(tiny_engine.stream([40, 41], Sampling(json_schema=schema, max_tokens=200, temperature=1.0, seed=3)))
    text = "".join(update.text for update in updates)
    if updates[-1].finish == "stop":
        json.loads(text)
    assert text.strip()[0] in '{["tfn-0123456789'


@pytest.mark.parametrize("schema", ["false", "[1]", "3", '"x"', "null", "{", "", '{"type": 5}', '{"$ref": "#/nope"}'])
def test_a_schema_that_is_none_is_refused(tiny_engine: Engine, schema: str) -> None:
    with pytest.raises(ContextError) as refused:
        list(tiny_engine.stream([40, 41], Sampling(json_schema=schema, max_tokens=20)))
    assert refused.value.code == "bad_grammar"
    assert str(refused.value)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-z]{2,5}", r"(yes|no)", r"ä+ß?\.", r"\d{4}-\d{2}-\d{2}"])
def test_the_whole_text_matches(engine: Engine, pattern: str, temperature: float) -> None:
    for seed in range(3):
        text, finish = text_of(engine, "Say:", regex=pattern, temperature=temperature, seed=seed, max_tokens=400)
        if finish == "stop":
            assert re.fullmatch(pattern, text), text
        else:
            assert finish == "length"
            assert "+" in pattern, "only that one may go on for ever"


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_json_is_valid_and_ends_by_itself(engine: Engine, ignore_eos: bool) -> None:
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
        assert "\n" not in text, "there is one way to write it"


def test_a_text_cut_short_says_so(engine: Engine) -> None:
    assert text_of(engine, "Go", regex="x{50}", temperature=0.0, max_tokens=3)[1] == "length"


def test_a_grammar_says_when_a_text_ends(engine: Engine) -> None:
    assert text_of(engine, "Go", regex="yes", temperature=0.0, min_tokens=30) == ("yes", "stop")


def test_others_in_the_step_are_not_touched(engine: Engine) -> None:
    alone, _ = text_of(engine, "Once upon a time", temperature=0.0, max_tokens=12)
    for context, sampling in (
        (1001, Sampling(max_tokens=12, temperature=0.0)),
        (1002, Sampling(max_tokens=12, temperature=0.0, regex="[0-9]+")),
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
    if engine.decoder.batch_invariant:
        assert texts[1001] == alone


def test_what_is_no_grammar_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextError, match="regex"):
        text_of(engine, "Go", regex="([")
