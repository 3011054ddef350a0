"""Test with two hundred random JSON schemas: every finished answer is valid for its schema."""

import json
import random
from typing import Any

import jsonschema
import pytest

from engine import Engine, SamplingParams

_WORDS = [
    "name",
    "city",
    "age",
    "kind",
    "tags",
    "note",
    "price",
    "ok",
    "size",
    "items",
    "owner",
    "date",
    "code",
    "left",
    "right",
]
_PATTERNS = ["^[a-z]{2,6}$", "^(red|green|blue)$", "^[A-Z][a-z]+ [0-9]{1,3}$", r"^\d{2}:\d{2}$", "^x?y*z$"]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]


class RandomSchemas:
    """Random schemas with all commonly used keywords, nested a few levels deep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self) -> dict[str, Any]:
        """Return a schema, sometimes with definitions that it refers to."""
        result = self._any(3)
        if self._random.random() < 0.2:
            result = {"$defs": {"part": self._any(1)}, **self._object(2, {"$ref": "#/$defs/part"})}
        if self._random.random() < 0.1:
            node = {"type": "object", "properties": {"value": self._leaf(), "next": {"$ref": "#/$defs/node"}}}
            result = {"$defs": {"node": {**node, "required": ["value"], "additionalProperties": False}}}
            result |= {"$ref": "#/$defs/node"}
        return result

    def _any(self, depth: int) -> dict[str, Any]:
        kinds = [self._leaf, self._leaf]
        if depth:
            deeper = depth - 1
            kinds += [
                lambda: self._object(deeper),
                lambda: self._object(deeper),
                lambda: self._array(deeper),
                lambda: {"anyOf": [self._any(deeper) for _ in range(self._random.randint(2, 3))]},
                lambda: {"type": "array", "prefixItems": [self._leaf(), self._leaf()], "items": False, "minItems": 2},
            ]
        return self._random.choice(kinds)()

    def _leaf(self) -> dict[str, Any]:
        choose, number = self._random.choice, self._random.randint
        low = number(-50, 50)
        lengths = sorted((number(0, 6), number(0, 12)))
        return choose(
            [
                {"type": "string"},
                {"type": "string", "minLength": lengths[0], "maxLength": lengths[1]},
                {"type": "string", "pattern": choose(_PATTERNS)},
                {"type": "string", "format": choose(_FORMATS)},
                {"type": "integer"},
                {"type": "integer", "minimum": low, "maximum": low + number(0, 100)},
                {"type": "integer", "exclusiveMinimum": low, "multipleOf": choose([1, 3, 10])},
                {"type": "number", "minimum": low / 2, "exclusiveMaximum": low / 2 + number(1, 9)},
                {"type": "number"},
                {"type": "boolean"},
                {"type": "null"},
                {"enum": self._random.sample([1, "two", None, True, 3.5, ["a"], {"b": 1}, "ü"], number(1, 4))},
                {"const": choose(["fixed", 7, None, {"deep": [1, 2]}])},
                {"type": ["string", "null"], "maxLength": number(1, 9)},
            ]
        )

    def _object(self, depth: int, extra: dict[str, Any] | None = None) -> dict[str, Any]:
        names = self._random.sample(_WORDS, self._random.randint(1, 4))
        properties = {name: self._any(depth) for name in names}
        if extra is not None:
            properties["part"] = extra
        required = [name for name in properties if self._random.random() < 0.7]
        result: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        more = self._random.random()
        if more < 0.6:
            result["additionalProperties"] = False
        elif more < 0.8:
            result["additionalProperties"] = self._leaf()
        return result

    def _array(self, depth: int) -> dict[str, Any]:
        least = self._random.randint(0, 2)
        result = {"type": "array", "items": self._any(depth), "minItems": least}
        return result | {"maxItems": least + self._random.randint(0, 3)}


@pytest.mark.slow
def test_every_finished_answer_is_valid_for_its_schema(engine: Engine) -> None:
    result = RandomSchemas(20261125)
    schemas = [result.schema() for _ in range(200)]
    prompt = engine.tokenizer.encode_template("Some JSON:\n")
    texts = dict.fromkeys(range(len(schemas)), "")
    ends: dict[int, str] = {}
    for index, schema in enumerate(schemas):
        engine.fill(50_000 + index, prompt)
        sampling = SamplingParams(max_tokens=80, temperature=1.2, seed=index, json_schema=json.dumps(schema))
        engine.generate(50_000 + index, sampling)
    while engine.has_work:
        for update in engine.step():
            index = update.context - 50_000
            texts[index] += update.text
            if update.finish is not None:
                ends[index] = update.finish
                engine.free_context(update.context)
    assert len(ends) == len(schemas)
    finished = [index for index, end in ends.items() if end == "stop"]
    assert len(finished) > 110, "unbounded strings may continue forever; most end"
    wrong = []
    for index in finished:
        validator = jsonschema.Draft202012Validator(
            schemas[index], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        try:
            validator.validate(json.loads(texts[index]))
        except (ValueError, jsonschema.ValidationError) as error:
            wrong.append((schemas[index], texts[index], str(error).splitlines()[0]))
    assert not wrong, f"{len(wrong)} of {len(finished)}: {wrong[:5]}"
