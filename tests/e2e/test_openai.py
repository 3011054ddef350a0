"""More of OpenAI's API, and vLLM's extensions, through the SDK: several answers, constraints, tools, tokens."""

import json
import re
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel

from tests.fakes.gateway_harness import MODEL, GatewayHarness

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "unit", "days"],
            "additionalProperties": False,
        },
    },
}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


class Sum(BaseModel):
    right: bool


@pytest.fixture(scope="module")
def client(server: GatewayHarness) -> OpenAI:
    return server.client()


def chat(client: OpenAI, content: str = "Name a river.", **options: Any) -> Any:
    messages: Any = options.pop("messages", [{"role": "user", "content": content}])
    options.setdefault("max_tokens", 12)
    options.setdefault("temperature", 0)
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def refused(client: OpenAI, **options: Any) -> tuple[str | None, str]:
    """Return the `param` and the message of the error."""
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, **options)
    return error.value.param, str(error.value)


# several answers


@pytest.mark.usefixtures("batch_invariant")
def test_n_answers_differ_by_seed_and_count_their_prompt_once(client: OpenAI) -> None:
    alone = [chat(client, temperature=1, seed=seed) for seed in (5, 6, 7)]
    together = chat(client, temperature=1, seed=5, n=3)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.message.content for choice in together.choices] == [
        answer.choices[0].message.content for answer in alone
    ]
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert together.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone)
    assert together.usage.total_tokens == together.usage.prompt_tokens + together.usage.completion_tokens


@pytest.mark.usefixtures("batch_invariant")
def test_n_answers_are_streamed_side_by_side(client: OpenAI) -> None:
    whole = chat(client, temperature=1, seed=5, n=3)
    texts, finishes, roles, usage = ["", "", ""], [None] * 3, 0, None
    stream = chat(client, temperature=1, seed=5, n=3, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            roles += choice.delta.role == "assistant"
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert roles == 3
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_n_is_limited_and_excludes_slots(client: OpenAI) -> None:
    assert refused(client, n=0)[0] == "n"
    assert refused(client, n=129)[0] == "n"
    slots = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<<a>>"}], "n": 2}
    extra = {"semantic": {"slots": {"a": {}}}}
    headers = {"X-Semantic-Session": "n-and-slots"}
    assert refused(client, **slots, extra_body=extra, extra_headers=headers)[0] == "n"


def test_n_deferred_answers_have_separate_references(client: OpenAI) -> None:
    headers = {"X-Semantic-Session": "n-deferred"}
    answer = chat(client, n=2, temperature=1, extra_headers=headers, extra_body={"semantic": {"defer": True}})
    first, second = (choice.message.content for choice in answer.choices)
    assert first != second
    assert re.fullmatch(r"<<\w+>>", first)
    texts = chat(client, f"{first} {second}", extra_headers=headers).usage
    assert texts.prompt_tokens > 20


# completions


@pytest.mark.usefixtures("batch_invariant")
def test_completions_of_many_prompts(client: OpenAI) -> None:
    prompts = ["The sky is", "Two and two make"]
    alone = [client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0) for prompt in prompts]
    both = client.completions.create(model=MODEL, prompt=prompts, max_tokens=6, temperature=0, n=2, echo=True)
    texts = [answer.choices[0].text for answer in alone]
    assert [choice.text for choice in both.choices] == [
        prompt + text for prompt, text in zip(prompts, texts, strict=True) for _ in range(2)
    ]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone if answer.usage)


def test_a_prompt_of_tokens_gets_the_answer_of_its_text(client: OpenAI, server: GatewayHarness) -> None:
    tokens = post(server, "/tokenize", {"prompt": "The sky is"})["tokens"]
    options: Any = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    by_text = client.completions.create(prompt="The sky is", **options)
    by_tokens = client.completions.create(prompt=[tokens, tokens], **options)
    assert [choice.text for choice in by_tokens.choices] == [by_text.choices[0].text] * 2
    echoed = client.completions.create(prompt=tokens, echo=True, **options)
    assert echoed.choices[0].text == "The sky is" + by_text.choices[0].text


def test_completions_have_log_probabilities_and_text_offsets(client: OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "The sky is", "max_tokens": 5, "temperature": 0, "logprobs": 2}
    choice = client.completions.create(**options).choices[0]
    result = choice.logprobs
    assert result is not None
    assert "".join(result.tokens or ()) == choice.text
    assert result.text_offset == [len("".join((result.tokens or [])[:count])) for count in range(5)]
    for token, logprob, top in zip(
        result.tokens or (), result.token_logprobs or (), result.top_logprobs or (), strict=True
    ):
        assert top[token] == pytest.approx(logprob)
        assert len(top) == 2
    streamed = [chunk.choices[0] for chunk in client.completions.create(**options, stream=True)]
    offsets = [offset for part in streamed if part.logprobs for offset in part.logprobs.text_offset or ()]
    assert offsets == result.text_offset


def test_text_offsets_count_characters(client: OpenAI) -> None:
    text = "é😀 ok 🤖"
    options: Any = {"model": MODEL, "prompt": "x", "max_tokens": 20, "temperature": 0, "logprobs": 1}
    form = {"structured_outputs": {"choice": [text]}}
    choice = client.completions.create(**options, extra_body=form).choices[0]
    assert choice.text == text
    assert choice.logprobs is not None
    offsets, tokens = choice.logprobs.text_offset or [], choice.logprobs.tokens or []
    assert len(offsets) > len(set(offsets)), "a character takes several tokens"
    assert offsets == sorted(offsets)
    for offset, token in zip(offsets, tokens, strict=True):
        assert text[offset:].startswith(token) or "\ufffd" in token
    assert offsets[tokens.index(" ok")] == text.index(" ok")
    streamed = client.completions.create(**options, extra_body=form, stream=True)
    result = [part.choices[0].logprobs for part in streamed if part.choices and part.choices[0].logprobs]
    assert [offset for entry in result for offset in entry.text_offset or ()] == offsets


def test_impossible_tokens_have_a_finite_log_probability(client: OpenAI) -> None:
    form: Any = {"structured_outputs": {"choice": ["yes"]}}
    result = chat(client, extra_body=form, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert -9999.0 in {top.logprob for token in result for top in token.top_logprobs}
    made = client.completions.create(model=MODEL, prompt="x", max_tokens=5, logprobs=3, extra_body=form).choices[0]
    assert made.logprobs is not None
    assert -9999.0 in {logprob for top in made.logprobs.top_logprobs or () for logprob in top.values()}


def test_the_smallest_top_p_selects_the_most_likely_token(client: OpenAI) -> None:
    greedy = chat(client, temperature=0).choices[0].message.content
    assert chat(client, temperature=2, top_p=0).choices[0].message.content == greedy
    assert (
        client.responses.create(model=MODEL, input="Name a river.", top_p=0, max_output_tokens=12).output_text == greedy
    )
    slot = {"semantic": {"slots": {"a": {"temperature": 2}}}}
    messages = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "<<a>>"}]
    for number, extra in enumerate((slot, {"semantic": {"slots": {"a": {"top_p": 0, "temperature": 2}}}})):
        headers = {"X-Semantic-Session": f"smallest-nucleus-{number}"}
        answer = chat(client, messages=messages, top_p=0, extra_body=extra, extra_headers=headers)
        assert answer.choices[0].message.content == greedy


def test_best_of_returns_the_most_likely_answer(client: OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "Once upon a", "max_tokens": 4, "temperature": 1.5, "seed": 3}
    candidates = client.completions.create(**options, n=6, logprobs=0)

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = sorted(candidates.choices, key=mean, reverse=True)
    best = client.completions.create(**options, n=2, best_of=6)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage is not None
    assert candidates.usage is not None
    assert best.usage.completion_tokens == candidates.usage.completion_tokens, "the usage counts all candidates"
    assert best.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"suffix": "and so on"}, "suffix"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": [[1, 2], [10**6]]}, "prompt.1"),
    ],
)
def test_invalid_completions_are_refused(client: OpenAI, options: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(**{"model": MODEL, "prompt": "a", "max_tokens": 1, **options})
    assert error.value.param == param


# constraints


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"choice": ["yes, certainly", "no"]}}, r"(yes, certainly|no)"),
    ({"structured_outputs": {"regex": "[ab]{3}-[0-9]"}}, r"[ab]{3}-[0-9]"),
    ({"structured_outputs": {"grammar": 'start: "x" ("y" | "z") "!"'}}, r"x[yz]!"),
    ({"guided_choice": ["red", "green"]}, r"(red|green)"),
    ({"guided_regex": "a+b"}, r"a+b"),
    ({"guided_grammar": 'start: "one" " two"?'}, r"one( two)?"),
    ({"guided_json": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}}, r'\{"a": [12].*'),
    ({"structured_outputs": {"json": '{"enum": ["left", "right"]}'}}, r'"(left|right)"'),
]


@pytest.mark.parametrize(("extra", "pattern"), FORMS)
def test_structured_outputs_constrain_answers(client: OpenAI, extra: dict[str, Any], pattern: str) -> None:
    for endpoint in ("chat", "completions"):
        if endpoint == "chat":
            text = chat(client, extra_body=extra, max_tokens=40).choices[0].message.content
        else:
            made = client.completions.create(
                model=MODEL, prompt="Choose:", max_tokens=40, temperature=0, extra_body=extra
            )
            text = made.choices[0].text
        assert re.fullmatch(pattern, text), (endpoint, text)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"structured_outputs": {"choice": ["a"], "regex": "b"}}, "exactly one of"),
        ({"structured_outputs": {}}, "exactly one of"),
        ({"structured_outputs": {"regex": "("}}, "cannot be enforced"),
        ({"guided_grammar": "no grammar"}, "cannot be enforced"),
        ({"guided_json": {"type": "no type"}}, "cannot be enforced"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "only one of"),
    ],
)
def test_invalid_constraints_are_refused(client: OpenAI, extra: dict[str, Any], words: str) -> None:
    assert words in refused(client, extra_body=extra)[1]


def test_unsupported_fields_are_refused_with_the_reason(client: OpenAI) -> None:
    param, words = refused(client, extra_body={"use_beam_search": True})
    assert param == "use_beam_search"
    assert "beam search is not supported" in words
    param, words = refused(client, functions=[{"name": "f"}])
    assert (param, "tool_choice" in words or "tools" in words) == ("functions", True)
    assert refused(client, extra_body={"no_such_thing": 1})[0] == "no_such_thing"


# prompts


def post(server: GatewayHarness, path: str, body: Any, status: int = 200) -> Any:
    import httpx2 as httpx

    response = httpx.post(f"{server.address}{path}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_tokens_of_texts_and_conversations(server: GatewayHarness) -> None:
    text = "Rivers, bread & 7 bridges <|im_end|>"
    result = post(server, "/tokenize", {"prompt": text, "return_token_strs": True})
    assert result["count"] == len(result["tokens"]) == len(result["token_strs"])
    assert "".join(result["token_strs"]) == text
    assert result["max_model_len"] == 8192
    assert post(server, "/v1/detokenize", {"model": MODEL, "tokens": result["tokens"]}) == {"prompt": text}
    messages = [{"role": "user", "content": "Hi"}]
    opened = post(server, "/v1/tokenize", {"messages": messages})["tokens"]
    closed = post(server, "/v1/tokenize", {"messages": messages, "add_generation_prompt": False})["tokens"]
    assert opened[: len(closed)] == closed
    assert len(opened) > len(closed)
    assert post(server, "/tokenize", {}, 400)["error"]["code"] == "invalid_value"
    assert post(server, "/detokenize", {"tokens": [10**7]}, 400)["error"]["param"] == "tokens"
    assert post(server, "/tokenize", {"prompt": "a", "model": "none"}, 404)["error"]["code"] == "model_not_found"
    longer = "What is the tide? " * 30_000
    assert post(server, "/tokenize", {"prompt": longer})["count"] == 5 * 30_000 + 1, (
        "the context window does not limit /tokenize"
    )
    for body in ({"prompt": "é" * 500_001}, {"messages": [{"role": "user", "content": "x" * 1_000_001}]}):
        error = post(server, "/tokenize", body, 400)["error"]
        assert (error["code"], error["param"]) == ("string_above_max_length", min(body))
    assert post(server, "/detokenize", {"tokens": [1] * 1_000_001}, 400)["error"]["param"] == "tokens"
    embedded = post(server, "/v1/embeddings", {"input": "a", "model": MODEL}, 400)["error"]
    assert (embedded["code"], embedded["param"]) == ("unsupported_by_engine", "model")


def test_the_answer_can_continue_the_last_message(client: OpenAI, server: GatewayHarness) -> None:
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two, "}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    tokens = post(server, "/tokenize", {"messages": messages, **options})["tokens"]
    assert post(server, "/detokenize", {"tokens": tokens})["prompt"].endswith("<|im_start|>assistant\nOne, two, ")
    answer = chat(client, messages=messages, extra_body=options, max_tokens=6)
    messages[1]["content"] = "One, two,"  # a model has no tokens that begin after a space
    shorter = post(server, "/tokenize", {"messages": messages, **options})["tokens"]
    by_tokens = client.completions.create(model=MODEL, prompt=shorter, max_tokens=6, temperature=0)
    assert " " + str(answer.choices[0].message.content) == by_tokens.choices[0].text
    assert answer.usage.prompt_tokens == len(tokens) == len(shorter) + 1
    assert "needs an assistant's message" in refused(client, extra_body={"continue_final_message": True})[1]


def test_chat_template_kwargs_reach_the_template_except_reserved_names(client: OpenAI) -> None:
    chat(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}}, max_tokens=1)
    assert "the server sets it" in refused(client, extra_body={"chat_template_kwargs": {"messages": []}})[1]


def test_cache_salts_isolate_caches(client: OpenAI) -> None:
    prompt = "A long and unusual sentence about salted lighthouses and their keepers. " * 4

    def cached(salt: str | None) -> int:
        usage = chat(client, prompt, max_tokens=1, extra_body={"cache_salt": salt} if salt else {}).usage
        return int(usage.prompt_tokens_details.cached_tokens)

    assert cached("a") == cached("b") == 0
    assert cached(None) <= 16, "at most the beginning that the chat template writes"
    assert min(cached("a"), cached("b"), cached(None)) > 30


# tools


def arguments(call: Any) -> Any:
    return json.loads(call.function.arguments)


def check_weather(result: Any) -> None:
    assert set(result) == {"city", "unit", "days"}
    assert len(result["city"]) <= 12
    assert result["unit"] in ("celsius", "fahrenheit")
    assert 1 <= result["days"] <= 7


NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def test_a_forced_call_is_valid_for_the_schema(client: OpenAI) -> None:
    for choice in (NAMED, "required"):
        tools = [WEATHER] if choice == "required" else [ADD, WEATHER]
        answer = chat(client, "What is the weather in Paris?", tools=tools, tool_choice=choice, max_tokens=80)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        assert call.type == "function"
        assert call.id.startswith("call_")
        assert call.function.name == "get_weather"
        check_weather(arguments(call))


def test_a_forced_call_uses_one_of_several_tools(client: OpenAI) -> None:
    for seed in range(3):
        answer = chat(client, tools=[ADD, WEATHER], tool_choice="required", max_tokens=90, temperature=1, seed=seed)
        (call,) = answer.choices[0].message.tool_calls
        result = arguments(call)
        if call.function.name == "add":
            assert 0 <= result["a"] <= 99
        else:
            check_weather(result)
    answer = chat(client, tools=[ADD], tool_choice="required", parallel_tool_calls=True, max_tokens=400)
    calls = answer.choices[0].message.tool_calls
    assert 1 <= len(calls) <= 16
    assert {call.function.name for call in calls} == {"add"}


def test_calls_are_streamed_with_growing_arguments(client: OpenAI) -> None:
    options: Any = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 80}
    whole = chat(client, "Weather in Rome?", **options).choices[0].message.tool_calls[0]
    name, ids, pieces, finish = None, [], [], None
    for chunk in chat(client, "Weather in Rome?", stream=True, **options):
        for choice in chunk.choices:
            assert not choice.delta.content
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or ():
                assert delta.index == 0
                name = delta.function.name or name
                ids += [delta.id] if delta.id else []
                pieces += [delta.function.arguments] if delta.function.arguments else []
    assert (name, finish, len(ids)) == ("get_weather", "tool_calls", 1)
    assert len(pieces) > 3
    assert json.loads("".join(pieces)) == arguments(whole)


MOVE: Any = {"syntax": "regex", "definition": r"move [a-h][1-8]\n"}
EDIT: Any = {"syntax": "lark", "definition": 'start: ("+" | "-") /[a-z]{1,4}/ NL "END"\nNL: "\\n"\n'}


@pytest.mark.parametrize(
    ("grammar", "pattern"), [(MOVE, r"move [a-h][1-8]\n"), (EDIT, r"[+-][a-z]{1,4}\nEND"), (None, ".+")]
)
def test_the_input_of_a_custom_tool_matches_its_grammar(client: OpenAI, grammar: Any, pattern: str) -> None:
    custom: Any = {"name": "play", "description": "Play."}
    if grammar is not None:
        custom["format"] = {"type": "grammar", "grammar": grammar}
    tool: Any = {"type": "custom", "custom": custom}
    named: Any = {"type": "custom", "custom": {"name": "play"}}
    options: Any = {"tools": [ADD, tool], "tool_choice": named, "max_tokens": 100}
    (choice,) = chat(client, "Say a word.", **options).choices
    (call,) = choice.message.tool_calls or ()
    assert choice.finish_reason == "tool_calls"
    assert (call.type, call.custom.name) == ("custom", "play")
    assert re.fullmatch(pattern, call.custom.input)
    chunks = list(chat(client, "Say a word.", stream=True, **options))
    entries = [entry for chunk in chunks for entry in chunk.choices[0].delta.tool_calls or ()]
    assert entries[0].to_dict() | {"id": ""} == {
        "index": 0,
        "id": "",
        "type": "custom",
        "custom": {"name": "play", "input": ""},
    }
    pieces = [entry.to_dict()["custom"]["input"] for entry in entries]
    assert "".join(map(str, pieces)) == call.custom.input
    history: Any = [
        {"role": "user", "content": "Say a word."},
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    assert chat(client, messages=history, tools=[tool], tool_choice="none", max_tokens=4).choices[0].message.content


@pytest.mark.parametrize("streamed", [False, True])
def test_only_the_token_limit_cuts_off_a_forced_call(client: OpenAI, streamed: bool) -> None:
    options: Any = {"tools": [WEATHER], "tool_choice": "required", "stream": streamed}

    def ask(**more: Any) -> tuple[str, list[Any], str]:
        """Return the content, the called functions and the finish reason."""
        answer = chat(client, "What is the weather in Paris?", **options, **more)
        if not streamed:
            choice = answer.choices[0]
            return choice.message.content or "", choice.message.tool_calls or [], choice.finish_reason
        state: Any = ChatCompletionStreamState()
        for chunk in answer:
            state.handle_chunk(chunk)
        choice = state.current_completion_snapshot.choices[0]
        return choice.message.content or "", choice.message.tool_calls or [], choice.finish_reason

    for stop in ("{", "get_", "city", '"'):
        content, (call,), finish = ask(stop=stop, max_tokens=80)
        assert (content, finish) == ("", "tool_calls")
        check_weather(arguments(call))
    names = []
    for limit in range(1, 24):
        content, calls, finish = ask(max_tokens=limit)
        assert (content, finish) == ("", "length")
        names += [call.function.name for call in calls]
    assert set(names) == {"get_weather"}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the package serializes parsed objects
def test_objects_of_the_packages_helpers_can_be_sent_back(client: OpenAI) -> None:
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    question: Any = [{"role": "user", "content": "Add."}]
    options: Any = {"model": MODEL, "tools": [strict], "tool_choice": "required", "max_tokens": 40}
    parsed: Any = client.chat.completions.parse(messages=question, **options)
    with client.chat.completions.stream(messages=question, **options) as stream:
        streamed: Any = stream.get_final_completion()
    form: Any = client.chat.completions.parse(model=MODEL, messages=question, max_tokens=40, response_format=Sum)
    for message in (parsed.choices[0].message, streamed.choices[0].message, form.choices[0].message):
        results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in message.tool_calls or ()]
        assert chat(client, messages=[*question, message, *results]).choices
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments is not None
    assert form.choices[0].message.parsed is not None


def test_invalid_arguments_appear_in_the_prompt_as_text(client: OpenAI, server: GatewayHarness) -> None:
    for arguments_, shown in (('{"ci', '"{\\"ci"'), ("[1]", '"[1]"'), ("", "{}"), ('{"a": 1}', '{"a": 1}')):
        called = {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments_}}
        messages: Any = [
            {"role": "user", "content": "Add."},
            {"role": "assistant", "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "1", "content": "error: the arguments are cut off"},
        ]
        assert chat(client, messages=messages, max_tokens=1).choices
        tokens = post(server, "/tokenize", {"messages": messages})["tokens"]
        text = post(server, "/detokenize", {"tokens": tokens})["prompt"]
        assert f'{{"name": "add", "arguments": {shown}}}' in text


def test_references_within_a_schema_of_arguments_are_enforced(client: OpenAI) -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["x"]}
    parameters = {
        "type": "object",
        "$defs": {"Point": point},
        "properties": {"begin": {"$ref": "#/$defs/Point"}, "end": {"$ref": "#/$defs/Point"}},
        "required": ["begin", "end"],
    }
    move: Any = {"type": "function", "function": {"name": "move", "parameters": parameters}}
    for tools in ([move], [move, ADD]):
        named = {"type": "function", "function": {"name": "move"}}
        answer = chat(client, "Go!", tools=tools, tool_choice=named, max_tokens=80, temperature=1, seed=5)
        (call,) = answer.choices[0].message.tool_calls or ()
        arguments = json.loads(call.function.arguments)
        assert {name: set(part) for name, part in arguments.items()} == {"begin": {"x"}, "end": {"x"}}, (
            "no other members"
        )


def test_results_of_tools_appear_in_the_prompt(client: OpenAI, server: GatewayHarness) -> None:
    conversation: Any = [
        {"role": "user", "content": "Weather in Rome?"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 31 degrees."},
    ]
    answer = chat(client, messages=conversation, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content
    tokens = post(server, "/tokenize", {"messages": conversation})["tokens"]
    text = post(server, "/detokenize", {"tokens": tokens})["prompt"]
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert "<tool_response>\nSunny, 31 degrees.\n</tool_response>" in text


def test_tools_work_inside_sessions(client: OpenAI) -> None:
    headers = {"X-Semantic-Session": "tools-in-session"}

    def ask(content: str, semantic: dict[str, Any], **options: Any) -> Any:
        return chat(client, content, extra_headers=headers, extra_body={"semantic": semantic}, **options)

    ask("Weather?", {"output": "wanted", "defer": True}, tools=[WEATHER], tool_choice=NAMED, max_tokens=80)
    city = ask("City: <<wanted.arguments.city>>", {"output": "said", "defer": True}).choices[0].message.content
    assert city == "<<said>>"
    conversation: Any = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "In words: <<said>>"},
    ]
    answer = chat(client, messages=conversation, tools=[WEATHER], tool_choice="none", extra_headers=headers)
    assert answer.choices[0].message.content


def test_references_in_tools_are_plain_text(client: OpenAI) -> None:
    headers = {"X-Semantic-Session": "tools-with-brackets"}
    tool: Any = {"type": "function", "function": {"name": "f", "description": "Reads <<nothing>>."}}
    called: Any = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "<<no>>"}'}}
    conversation: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Go."},
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "Done."},
    ]
    assert chat(client, messages=conversation, tools=[tool], extra_headers=headers).choices
    conversation[1]["content"] = "Go <<there>>."
    assert refused(client, messages=conversation, tools=[tool], extra_headers=headers)[0] == "messages.1.content"
    del conversation[0]
    assert refused(client, messages=conversation, tools=[tool], extra_headers=headers)[0] == "messages.0.content"


def test_a_forced_call_has_no_slots(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<<a>>"}]
    extra = {"semantic": {"slots": {"a": {}}}}
    headers = {"X-Semantic-Session": "tools-and-slots"}
    options: Any = {"messages": messages, "tools": [ADD], "tool_choice": "required"}
    assert refused(client, **options, extra_body=extra, extra_headers=headers)[0] == "tool_choice"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER, WEATHER]}, "two tools have the same name"),
        ({"tools": [ADD], "tool_choice": NAMED}, "the tools are add"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "no type"}, "strict": True}}
                ]
            },
            "tools.0.function.parameters",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "assistant", "content": None}]}, "needs content"),
    ],
)
def test_invalid_tools_are_refused(client: OpenAI, options: dict[str, Any], words: str) -> None:
    assert words in refused(client, **options)[1]


@pytest.mark.usefixtures("batch_invariant")  # otherwise predictions fail to match
def test_a_prediction_changes_only_the_speed(client: OpenAI) -> None:
    ask = "Write a short Python class for a bank account."
    plain = chat(client, ask, max_tokens=80)
    text = plain.choices[0].message.content
    assert plain.usage.completion_tokens_details is None
    for content in (text, [{"type": "text", "text": text[:40]}, {"type": "text", "text": text[40:]}]):
        result = chat(client, ask, max_tokens=80, prediction={"type": "content", "content": content})
        assert result.choices[0].message.content == text
        assert result.usage.completion_tokens == plain.usage.completion_tokens
        details = result.usage.completion_tokens_details
        assert details.accepted_prediction_tokens > result.usage.completion_tokens // 2
        assert details.rejected_prediction_tokens < details.accepted_prediction_tokens
    wrong = chat(client, ask, max_tokens=80, prediction={"type": "content", "content": "Of a bank in the river. " * 9})
    assert wrong.choices[0].message.content == text
    chunks = list(
        chat(
            client,
            ask,
            max_tokens=80,
            stream=True,
            stream_options={"include_usage": True},
            prediction={"type": "content", "content": text},
        )
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == text
    assert len(pieces) < plain.usage.completion_tokens // 2
    assert chunks[-1].usage.completion_tokens_details.accepted_prediction_tokens > 0
    assert refused(client, prediction={"type": "tokens", "content": "x"})[0] == "prediction.type"
    assert refused(client, prediction={"type": "content"})[0] == "prediction.content"


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_tool_that_is_not_strict_may_have_any_schema(client: OpenAI, choice: Any) -> None:
    odd: list[dict[str, Any]] = [
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"a": {"type": "any", "uniqueItems": True, "pattern": "^(?!x)"}}},
        {"$ref": "#/$defs/nowhere"},
        {"type": "object", "properties": {"a": {"const": 12345678901234567890}}},
    ]
    for schema in odd:
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
        made = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Call it."}],
            tools=[tool],
            tool_choice=choice,
            max_tokens=40,
            temperature=0,
        )
        assert made.choices[0].finish_reason in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_with_a_too_complex_grammar_fails(client: OpenAI, stream: bool) -> None:
    # With nested counts, the first bytes are quickly known, but not which tokens of a vocabulary are allowed.
    extra = {"structured_outputs": {"regex": "((((a{200}){200}){200}){200}){200}"}}
    with pytest.raises(openai.APIError) as failed:
        made: Any = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "x"}],
            stream=stream,
            max_tokens=400,
            extra_body=extra,
        )
        list(made)
    assert failed.value.code == "grammar_too_complex"
    assert "panic" not in str(failed.value)
    if not stream:
        assert isinstance(failed.value, openai.UnprocessableEntityError)


def test_choices_that_crash_the_library_are_refused(client: OpenAI) -> None:
    words = refused(
        client, extra_body={"structured_outputs": {"choice": [f"text number {index}" for index in range(100_000)]}}
    )[1]
    assert "at most 10000 choices" in words


# schemas without `strict`: dropped keywords are checked


ONES: Any = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
"""A schema that every enforced answer violates, since `uniqueItems` is dropped."""


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_reports_a_violated_keyword(client: OpenAI, streamed: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "ones", "schema": ONES}}
    answer = chat(client, response_format=form, stream=streamed, max_tokens=40)
    choice = [chunk for chunk in answer if chunk.choices][-1].choices[0] if streamed else answer.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.schema_violation == "$: uniqueItems: the items are not unique"
    valid = {**form, "json_schema": {"name": "ones", "schema": {**ONES, "uniqueItems": False}}}
    assert not hasattr(chat(client, response_format=valid, max_tokens=40).choices[0], "schema_violation")


def test_a_forced_call_reports_a_violated_keyword(client: OpenAI) -> None:
    parameters = {"type": "object", "properties": {"ones": ONES}, "required": ["ones"]}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    choice = chat(client, tools=[tool], tool_choice="required", max_tokens=60).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"ones": [1, 1]}
    assert choice.schema_violation == "in a call of add: ones: uniqueItems: the items are not unique"


def test_a_response_reports_a_violated_keyword(client: OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "ones", "schema": ONES}}
    response: Any = client.responses.create(model=MODEL, input="Go.", text=form, max_output_tokens=40)
    assert response.schema_violation == "$: uniqueItems: the items are not unique"
