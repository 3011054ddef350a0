"""For every accepted schema, a finished answer is valid. No schema hangs, crashes, or fails without a message.

Schemas are random: with endless references, contradictory parts, and numbers that no float represents.
"""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.policy import Enforcement
from engine.grammar import Grammars
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from tests.engine.matchers import compile_matcher

NAMES = st.sampled_from(["a", "b", "score", "next"])
INTEGERS = st.integers(-20, 20) | st.integers(-(2**65), 2**65) | st.sampled_from([2**53 + 1, -(2**63), 10**25])
NUMBERS = INTEGERS | st.sampled_from([0.5, -1.25, 1e-9, 1e300])
REFERENCES = st.sampled_from(["#", "#/$defs/x", "#/$defs/y", "#/$defs/nowhere"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null", "object", "array"])


def optional(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {}, optional={key.removesuffix("_").replace("__", "$"): strategy for key, strategy in keywords.items()}
    )


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = optional(
        type=st.just("object"),
        properties=st.dictionaries(NAMES, inner, max_size=3),
        required=st.lists(NAMES, max_size=2, unique=True),
        additionalProperties=st.just(False) | inner,
        patternProperties=st.dictionaries(st.sampled_from(["^score$", "^(a|b)$", "^s", "x$"]), inner, max_size=1),
        minProperties=st.integers(0, 2),
        unevaluatedProperties=st.booleans(),
    )
    arrays = optional(
        type=st.just("array"), items=inner, prefixItems=st.lists(inner, max_size=2), minItems=st.integers(0, 2)
    )
    joins = optional(
        type=TYPES,
        allOf=st.lists(inner, min_size=1, max_size=2),
        anyOf=st.lists(inner, min_size=1, max_size=2),
        oneOf=st.lists(inner, min_size=1, max_size=2),
        __ref=REFERENCES,
        properties=st.dictionaries(NAMES, inner, max_size=1),
        required=st.lists(NAMES, max_size=1),
        not_=inner,
    )
    return objects | arrays | joins


LEAVES = st.one_of(
    st.booleans(),
    optional(type=TYPES),
    optional(const=VALUES),
    optional(enum=st.lists(VALUES, max_size=3)),
    optional(__ref=REFERENCES),
    optional(
        type=st.sampled_from(["integer", "number"]),
        minimum=NUMBERS,
        maximum=NUMBERS,
        exclusiveMinimum=NUMBERS,
        exclusiveMaximum=NUMBERS,
        multipleOf=st.sampled_from([1, 3, 0.1, 0.25, 997, 99_999_999, 0, 1e-300]),
    ),
    optional(
        type=st.just("string"),
        minLength=st.integers(0, 3),
        maxLength=st.integers(0, 6),
        pattern=st.sampled_from(["^[a-c]+$", "b", "^(?!x)", "[^\\s\\S]", "^a{200}$"]),
        format=st.sampled_from(["date", "uuid", "nothing"]),
    ),
)
PARTS = st.recursive(LEAVES, containers, max_leaves=6)
SCHEMAS = st.builds(
    lambda top, definitions: {**top, "$defs": definitions} if isinstance(top, dict) else top,
    containers(PARTS),
    st.fixed_dictionaries({"x": PARTS, "y": PARTS}),
)


def answers(grammars: Grammars, schema: dict[str, Any], seed: int) -> list[tuple[str, tuple[str, str] | None]]:
    """Return random texts that the schema constrains, with their failures. Texts that become too long are omitted."""
    random, ended = np.random.default_rng(seed), []
    for _ in range(3):
        matcher = compile_matcher(grammars, SamplingParams(json_schema=json.dumps(schema)))
        tokens: list[int] = []
        eos = grammars._tokenizer.eos_id
        for _ in range(60):
            allowed = np.flatnonzero(np.unpackbits(matcher.allowed_mask().view(np.uint8), bitorder="little"))
            if matcher.failure is not None:
                ended.append(("", matcher.failure))
                break
            token = eos if eos in allowed else int(random.choice(allowed))
            tokens.append(token)
            if matcher.push(token):
                ended.append((grammars._tokenizer.decode([token for token in tokens if token != eos]), matcher.failure))
                break
    return ended


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


@given(schema=SCHEMAS, seed=st.integers(0, 1000))
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
def test_every_finished_answer_is_valid(grammars: Grammars, schema: Any, seed: int) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    try:
        enforced = enforced_schema(schema)
    except ValueError:
        return
    for text, failure in answers(grammars, enforced, seed):
        if failure is None:
            value = json.loads(text)
            assert validator.is_valid(value), (enforced, text)
        else:
            assert failure[0] in ("grammar_dead_end", "grammar_too_complex")


@given(schema=SCHEMAS, seed=st.integers(0, 1000))
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
def test_every_schema_is_accepted_if_the_enforcement_is_lenient(grammars: Grammars, schema: Any, seed: int) -> None:
    for text, failure in answers(grammars, enforced_schema(schema, Enforcement.LENIENT), seed):
        if failure is None:
            json.loads(text)
