"""Schemas and grammars of tool calls."""

import json
from typing import ClassVar

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from gateway.prompts.tool_calls.formats import HERMES, LLAMA, MISTRAL, ToolCallFormat
from gateway.prompts.tool_calls.grammar import answer_grammar, answer_schema, forced_grammar, text_call_head
from gateway.prompts.tool_calls.tools import Tool, Tools

TOOLS = [
    Tool("weather", "Of a city.", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("add", strict=True),
]


def test_a_forced_call_has_a_schema() -> None:
    single = answer_schema(Tools(TOOLS, "forced", TOOLS[:1]), LLAMA)
    assert single["properties"]["name"] == {"const": "weather"}
    assert single["required"] == ["name", "parameters"]
    assert len(answer_schema(Tools(TOOLS, "forced", TOOLS), HERMES)["anyOf"]) == 2
    several = answer_schema(Tools(TOOLS, "forced", TOOLS, parallel=True), HERMES)
    assert (several["type"], several["minItems"]) == ("array", 1)
    assert answer_schema(Tools(TOOLS, "forced", TOOLS[:1]), MISTRAL)["maxItems"] == 1
    assert answer_grammar(Tools(TOOLS[:1]), HERMES, {}) is None, "no tool is strict"


MARK = 300


class ByteVocabulary:
    """A vocabulary of bytes, an end token, and a control token that precedes calls."""

    eos_token_id = 256
    bos_token_id = None
    tokens: ClassVar = [bytes([byte]) for byte in range(256)] + [b"<end>", *[b""] * 43, b"[TOOL_CALLS]"]
    special_token_ids: ClassVar = [256, MARK]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL, "mistral with a control token"])
def test_calls_of_strict_tools_are_valid_if_the_model_chooses_to_call(format: ToolCallFormat | str) -> None:
    control = {"[TOOL_CALLS]": MARK} if isinstance(format, str) else {}
    format = MISTRAL if isinstance(format, str) else format
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = Tools([Tool("add", enforced=schema, strict=True), Tool("free")])
    grammar = answer_grammar(tools, format, control)
    assert grammar is not None
    vocabulary = LLTokenizer(TokenizerWrapper(ByteVocabulary()))

    def fits(name: str, arguments: str, before: str = "") -> bool:
        call = f'{{"name": "{name}", "{format.arguments}": {arguments}}}'
        tokens = list(before.encode())
        if name:
            call = f"[{call}]" if format.listed else call
            head, tail = format.begin, call + format.end
            if control:
                tokens.append(MARK)
                head = head.removeprefix("[TOOL_CALLS]")
            tokens += list((head + tail).encode())
        matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar))
        if matcher.validate_tokens(tokens) < len(tokens):
            return False
        matcher.consume_tokens(tokens)
        return bool(matcher.is_accepting())

    assert fits("add", '{"a": 3}')
    assert fits("free", '{"anything": ["x"]}')
    assert not fits("add", '{"a": "three"}')
    assert not fits("add", '{"a": 3, "b": 4}')
    assert not fits("other", "{}")
    assert fits("", "", before='Just text, with {"x": 1} in it.')
    if format is not LLAMA:
        assert fits("add", '{"a": 3}', before="Let me see. ")


def test_references_within_a_tools_schema_work_in_the_call_schema() -> None:
    part = {"type": "object", "properties": {"x": {"type": "integer"}, "next": {"$ref": "#/$defs/Part"}}}
    schema = {"type": "object", "$defs": {"Part": part}, "properties": {"part": {"$ref": "#/$defs/Part"}}}
    known = [
        Tool("move", enforced=schema),
        Tool("tree", enforced={"type": "array", "items": {"$ref": "#"}}),
        Tool("stop"),
    ]
    for callable_ in (known[:1], known):
        for parallel in (False, True):
            call_schema = answer_schema(Tools(known, "forced", callable_, parallel), HERMES)
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(call_schema))
            assert LLMatcher.validate_grammar(grammar) == ""
            call = {"name": "move", "arguments": {"part": {"x": 1, "next": {"x": 2}}}}
            jsonschema.validate([call] if parallel else call, call_schema)
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(json.loads(json.dumps(call).replace("2", '"two"')), call_schema)


LINES = 'start: begin line+ end\nbegin: "BEGIN" LF\nend: "END"\nline: "+" /(.*)/ LF\n%import common.LF\n'
ANYTHING = "start: SOURCE\nSOURCE: /[\\s\\S]+/\n"


def accepts(grammar: str | None, tokens: list[int]) -> bool:
    assert grammar is not None
    vocabulary = LLTokenizer(TokenizerWrapper(ByteVocabulary()))
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    if matcher.validate_tokens(tokens) < len(tokens):
        return False
    matcher.consume_tokens(tokens)
    return bool(matcher.is_accepting())


@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL, "mistral with a control token"])
def test_the_input_of_a_tool_with_a_grammar_is_a_text_that_matches_it(format: ToolCallFormat | str) -> None:
    control = {"[TOOL_CALLS]": MARK} if isinstance(format, str) else {}
    format = MISTRAL if isinstance(format, str) else format
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    known = [
        Tool("edit", input_lark=LINES, strict=True),
        Tool("run", input_lark=ANYTHING, strict=True),
        Tool("add", enforced=schema, strict=True),
    ]
    free = answer_grammar(Tools(known), format, control)
    forced = forced_grammar(Tools(known, "forced", known), format)

    def tokens(call: str, end: str) -> list[int]:
        before = [MARK, *format.begin.removeprefix("[TOOL_CALLS]").encode()] if control else list(format.begin.encode())
        return [*before, *call.encode(), *end.encode()]

    for call, is_valid in (
        (text_call_head("edit") + 'BEGIN\n+a "b"\n+\nEND', True),
        (text_call_head("edit") + "BEGIN\n-a\nEND", False),
        (text_call_head("edit") + "BEGIN\n+a\n", False),
        (text_call_head("edit") + "BEGIN\n+a\nEND and more", False),
        (text_call_head("run") + "let x = {};\n", True),
        (f'{{"name": "edit", "{format.arguments}": {{"input": "BEGIN"}}}}', False),
        (f'{{"name": "add", "{format.arguments}": {{"a": 3}}}}', True),
        (f'{{"name": "add", "{format.arguments}": {{"a": "3"}}}}', False),
    ):
        assert accepts(forced, list(call.encode())) == is_valid, call
        is_listed = format.listed and '"add"' in call
        assert accepts(free, tokens(f"[{call}]" if is_listed else call, format.end)) == is_valid, call
    assert accepts(free, list(b"Just text."))
    assert forced_grammar(Tools(known, "forced", known[2:]), format) is None, "a schema describes it"
    only = Tools(known[:2])
    assert accepts(answer_grammar(only, format, control), tokens(text_call_head("run") + "x", format.end))
