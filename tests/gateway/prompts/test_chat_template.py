"""Chat templates: agreement with transformers, and what each family supports."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.errors import RequestError
from gateway.graph.segments import Slot, Text
from gateway.prompts.chat_template import ChatTemplate, TemplateRefused
from gateway.prompts.prompt import ChatInput
from gateway.prompts.template_builder import TemplatePromptBuilder
from gateway.prompts.tool_calls.tools import Tool, Tools
from tests.gateway.chat_templates import TEMPLATES

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = Tool("weather", "Tells it, <b>& é</b>.", {"type": "object", "properties": {"city": {"type": "string"}}})
TALK = [
    {"role": "user", "content": " Hi <there> & é\n"},
    {"role": "assistant", "content": "Hello "},
    {"role": "user", "content": "And?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
WITH_THINK_TAGS = [TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}, TALK[2]]
REASONED = [TALK[0], {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}, TALK[2]]
ID = "call_0123456789abcdef01234567"


def called(*ids: str) -> list[dict[str, Any]]:
    """Return a conversation with parallel tool calls and their answers."""
    calls = [
        {"id": id, "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}} for id in ids
    ]
    results = [{"role": "tool", "tool_call_id": id, "content": "7"} for id in ids]
    return [TALK[0], {"role": "assistant", "content": "", "tool_calls": calls}, *results]


def rendered_by_transformers(
    source: str, messages: list[dict[str, Any]], *, opens: bool, tools: Any = None, **options: Any
) -> str:
    """Return the text that transformers renders for the messages."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=opens, **TOKENS, **options
    )
    assert isinstance(text, str)
    return text


def result_or_none(work: Any) -> Any:
    """Return the result of `work`, or None if the template refuses."""
    import jinja2

    try:
        return work()
    except (TemplateRefused, jinja2.TemplateError):
        return None


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": TALK[:1],
    "a system message": [SYSTEM, *TALK[:1]],
    "several turns": [SYSTEM, *TALK],
    "turns without a system message": TALK,
    "think tags": WITH_THINK_TAGS,
    "reasoning": REASONED,
    "users in a row": [TALK[0], TALK[2]],
    "a call": called("abcdef123"),
    "two calls": called("abcdef123", "abcdef124"),
}


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("talk", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [WEATHER.as_openai()]], ids=["plain", "tools"])
def test_templates_render_like_transformers(family: str, talk: str, tools: Any) -> None:
    source, messages = TEMPLATES[family], CONVERSATIONS[talk]
    template = ChatTemplate(source, TOKENS)
    for opens in (True, False):
        text = result_or_none(lambda opens=opens: template.render(messages, add_generation_prompt=opens, tools=tools))
        assert text == result_or_none(
            lambda opens=opens: rendered_by_transformers(source, messages, opens=opens, tools=tools)
        )


@pytest.mark.parametrize("family", ["Qwen3", "SmolLM3"])
def test_options_reach_the_template(family: str) -> None:
    source = TEMPLATES[family]
    text = ChatTemplate(source, TOKENS).render(TALK, add_generation_prompt=True, options={"enable_thinking": False})
    assert text == rendered_by_transformers(source, TALK, opens=True, enable_thinking=False)
    assert text.endswith("<think>\n\n</think>\n" + ("\n" if family == "Qwen3" else ""))


def builder_of(source: str, tokenizer: Tokenizer) -> TemplatePromptBuilder:
    methods: Any = {
        name: getattr(tokenizer, name)
        for name in ("encode", "adds_space", "minimum_tokens", "decode", "control", "control_pattern")
    }
    return TemplatePromptBuilder(SimpleNamespace(**methods, chat_template=source, special_texts=TOKENS))  # type: ignore[arg-type]


def rendered(prompts: TemplatePromptBuilder, tokenizer: Tokenizer, messages: Any, **options: Any) -> str:
    segments = prompts.chat(ChatInput(messages, **options), Slot(None, SamplingParams())).segments
    tokens = [token for segment in segments if isinstance(segment, Text) for token in segment.tokens]
    return tokenizer.decode(tokens, skip_special=False)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("choice", ["auto", "forced"])
def test_prompts_of_every_family_describe_tools(tokenizer: Tokenizer, family: str, choice: Any) -> None:
    prompts = builder_of(TEMPLATES[family], tokenizer)
    tools = Tools([WEATHER], choice, [WEATHER])
    for messages in (TALK[:1], TALK):
        text = rendered(prompts, tokenizer, messages, tools=tools)
        assert '"weather"' in text or "'weather'" in text, "also without a system message of the client"
        assert "Hi <there> & é" in text
    assert "7" in rendered(prompts, tokenizer, [*called(ID), *TALK[1:]], tools=tools)
    if family != "Llama 3.1":  # its template supports one call per message
        assert "7" in rendered(prompts, tokenizer, called(ID, "call_1"), tools=tools)


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_supported_features_of_each_family_are_detected(family: str) -> None:
    template = ChatTemplate(TEMPLATES[family], TOKENS)
    assert template.knows_tools == (family in ("Llama 3.1", "SmolLM3", "Mistral 0.3", "Qwen2.5", "Qwen3"))
    assert template.takes_system == (family not in ("Gemma 2", "Mistral 0.1", "Phi-4 reasoning"))
    late = ("Llama 3", "Llama 3.1", "SmolLM2", "Qwen2", "Qwen2.5", "Qwen3", "Gemma 3", "Phi-3", "Phi-4", "Phi-4 mini")
    assert template.takes_late_system == (family in late)
    assert template.alternates == (family in ("Llama 2", "Mistral 0.1", "Mistral 0.3", "Gemma 2", "Gemma 3"))
    assert template.short_ids == (family == "Mistral 0.3")


def test_tools_are_described_in_the_first_message_without_system_messages(tokenizer: Tokenizer) -> None:
    prompts = builder_of(TEMPLATES["Gemma 2"], tokenizer)
    text = rendered(prompts, tokenizer, TALK, tools=Tools([WEATHER]))
    assert text.startswith("<s><start_of_turn>user\nYou can call functions.")
    assert text.index("</tool_call>\n\n") < text.index("Hi <there>") < text.index("<start_of_turn>model")
    with pytest.raises(RequestError, match="System role not supported"):
        rendered(prompts, tokenizer, [SYSTEM, *TALK], tools=Tools([WEATHER]))
    with pytest.raises(RequestError, match="must alternate"):
        rendered(prompts, tokenizer, [TALK[0], TALK[2]], tools=Tools([WEATHER]))


@pytest.mark.parametrize("name", ["self", "messages", "tools", "add_generation_prompt", "bos_token", "raise_exception"])
def test_clients_cannot_set_reserved_names(tokenizer: Tokenizer, name: str) -> None:
    prompts = builder_of(TEMPLATES["SmolLM2"], tokenizer)
    with pytest.raises(RequestError, match=name) as refused:
        rendered(prompts, tokenizer, TALK, template_options={name: 1})
    assert (refused.value.status, refused.value.param) == (400, "chat_template_kwargs")


NAMES = [
    "self",
    "context",
    "environment",
    "l_0_messages",
    "caller",
    "loop",
    "args",
    "kwargs",
    "__class__",
    "",
    "é",
    "a b",
]


@pytest.fixture(scope="module")
def builders(tokenizer: Tokenizer) -> list[TemplatePromptBuilder]:
    """Return a builder for each template, which is slow to compile."""
    return [builder_of(source, tokenizer) for source in TEMPLATES.values()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"a": [1e308]}])
def test_template_options_cause_no_internal_errors(
    builders: list[TemplatePromptBuilder], tokenizer: Tokenizer, name: str, value: Any
) -> None:
    for builder in builders:
        try:
            rendered(builder, tokenizer, TALK, template_options={name: value})
        except RequestError as error:
            assert error.status == 400  # noqa: PT017


@pytest.mark.parametrize("options", [{"x": 0}, {"x": "a"}, {"x": None}, {"x": []}, {"x": {"y": 1}}])
def test_a_template_that_fails_on_options_refuses_them(options: Mapping[str, Any]) -> None:
    with pytest.raises(TemplateRefused, match=r"\w"):
        ChatTemplate("{{ 1 / x }}", {}).render([], add_generation_prompt=True, options=options)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ messages", "{% unknown %}", "{% generation %}", "{{ x | nothing }}"]
)
def test_an_invalid_template_is_refused_with_a_reason(source: str) -> None:
    with pytest.raises(TemplateRefused, match=r"line 1|nothing"):
        ChatTemplate(source, {})


def test_tojson_accepts_the_options_of_transformers() -> None:
    value = {"b": "é", "a": [1]}
    source = "{{ x | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}"
    written = ChatTemplate(source, {}).render([], add_generation_prompt=True, options={"x": value})
    assert written == json.dumps(value, separators=(",", ":"), sort_keys=True)
