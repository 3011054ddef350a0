"""Translate the messages and sampling parameters of a call into a Messages request."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.sampling_params import SamplingParams
from gateway.engines.anthropic.thinking_memory import Block
from gateway.engines.openai.profiles import Profile
from gateway.engines.protocol import ContextRefused
from gateway.graph.segments import Messages
from gateway.prompts.tool_calls.formats import INVALID_JSON

RULES = {
    "messages": "roles stay; consecutive messages of one role are joined",
    "reasoning in messages": "the server's own thinking blocks with their signatures, if this gateway remembers the "
    "answer; other reasoning is left out, because only the server can sign it",
    "system and developer messages": "those at the beginning become `system`; later ones stay messages",
    "images": "`image` blocks; a PDF becomes a `document`; audio, video and other files are refused",
    "tools, tool_choice, parallel_tool_calls": "the same; `required` becomes `any`",
    "max_tokens": "the same, at most the limit that the server lists; that limit, or 8,192, if the client sets none",
    "temperature": "the same; refused above 1",
    "top_p, top_k": "the same",
    "stop": "`stop_sequences`",
    "response_format": "a schema becomes `output_config.format`; `json_object` without a schema is refused",
    "reasoning_effort, output_config.effort": "`output_config.effort`; `minimal` becomes `low`, and `none` turns "
    "thinking off",
    "thinking of a Messages request, metadata.user_id": "the same",
    "enable_thinking": "`adaptive` or `disabled`; without the field, the server decides. `disabled` as well after "
    "results of tools if the thinking blocks before the tool calls are not known",
    "cache_control": "if a Messages request has it anywhere, at the top of the request",
    "continue_final_message, slots": "the last message is an assistant's; some models of Anthropic refuse that",
    "seed, verbosity, prediction, name of a message": "dropped",
    "min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, logprobs, min_tokens, "
    "stop_token_ids, ignore_eos": "refused",
    "structured_outputs and guided_… with a regex, choice or grammar": "refused",
    "chat_template_kwargs, add_generation_prompt": "refused",
    "completions": "refused: the API has only messages",
}
"""Rule for each field of requests to this gateway. docs/engines.md has them as a table."""

RecallThinking = Callable[[str, Sequence[tuple[str, Any]]], Sequence[Block]]
"""Returns the thinking blocks of an answer with this text and these tool calls; none if they are not known."""
DEFAULT_LENGTH = 8_192
"""Maximum number of tokens of an answer if the client sets none."""
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_DROPPED = ("seed", "prediction", "given", "max_tokens", "skip_special_tokens", "top_logprobs", "thinks")
_PASSED = ("temperature", "top_p", "top_k")
_DEFAULTS = SamplingParams()
_CONSTRAINTS = ("json_schema", "regex", "grammar")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)
_INVALID_ID = re.compile(r"[^A-Za-z0-9_-]")
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def messages_request(
    conversation: Messages,
    sampling: SamplingParams,
    profile: Profile,
    *,
    recall: RecallThinking = lambda text, tool_calls: (),
    answer_tokens: int | None = None,
) -> dict[str, Any]:
    """Return the body of a Messages request, without the model.

    `recall`: returns thinking blocks of earlier answers. `answer_tokens`: maximum tokens of an answer, if the server
    reports it. Raises ContextRefused if the API lacks a feature that the call needs.
    """
    fields = dict(conversation.fields)
    body = _conversation(conversation.messages, profile, recall) | _sampling(sampling, profile, answer_tokens)
    tools, choice, parallel = (fields.pop(name, None) for name in ("tools", "tool_choice", "parallel_tool_calls"))
    if tools:
        body["tools"] = [_tool(tool["function"]) for tool in tools]
        body |= _tool_choice(choice, parallel)
    effort, enable_thinking = fields.pop("reasoning_effort", None) or fields.pop("effort", None), None
    if effort == "none":
        enable_thinking = False
    elif effort is not None and effort not in _EFFORTS:
        raise profile.unsupported_error(f"the reasoning effort {effort[:32]!r}", "reasoning_effort")
    elif effort is not None:
        body.setdefault("output_config", {})["effort"] = _EFFORTS[effort]
    enable_thinking = fields.pop("enable_thinking", enable_thinking)
    if enable_thinking is not None:
        body["thinking"] = {"type": "adaptive" if enable_thinking else "disabled"}
    if (thinking := fields.pop("thinking", None)) is not None:  # a Messages request's own field
        body["thinking"] = thinking
    if body.get("thinking", {}).get("type") not in (None, "disabled") and _lacks_thinking(body["messages"]):
        body["thinking"] = {"type": "disabled"}  # the server would refuse the conversation
    if (metadata := fields.pop("metadata", None)) is not None:
        body["metadata"] = metadata
    if fields.pop("cache_control", None):
        body["cache_control"] = {"type": "ephemeral"}
    for name in ("verbosity", "effort"):
        fields.pop(name, None)
    if fields:
        name = min(fields)
        raise profile.unsupported_error(name, name)
    return body


def _lacks_thinking(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an answer that called tools, since the last user's text, does not begin with a thinking block."""
    for message in reversed(messages):
        kinds = [block["type"] for block in message["content"]]
        if message["role"] == "assistant" and "tool_use" in kinds:
            return kinds[0] not in ("thinking", "redacted_thinking")
        if message["role"] == "user" and "tool_result" not in kinds:
            return False
    return False


def _sampling(sampling: SamplingParams, profile: Profile, answer_tokens: int | None) -> dict[str, Any]:
    length = sampling.max_tokens or answer_tokens or DEFAULT_LENGTH
    body: dict[str, Any] = {"max_tokens": length if answer_tokens is None else min(length, answer_tokens)}
    for name, value in sampling.with_positive_top_p.specified.items():
        if name in _PASSED:
            body[name] = value
        elif name == "stop":
            body["stop_sequences"] = list(value)
        elif name == "json_schema":
            body["output_config"] = {"format": {"type": "json_schema", "schema": _schema(value, profile)}}
        elif name not in _DROPPED and value != getattr(_DEFAULTS, name):
            raise profile.unsupported_error(name, None if name in _CONSTRAINTS else name)
    if body.get("temperature", 0.0) > 1.0:
        raise profile.unsupported_error("a temperature above 1", "temperature")
    return body


def _schema(text: str, profile: Profile) -> Any:
    schema = json.loads(text)
    if schema == {"type": "object"}:
        raise profile.unsupported_error("a JSON object without a schema", "response_format")
    return schema


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    tool = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    if function.get("description"):
        tool["description"] = function["description"]
    if function.get("strict"):
        tool["strict"] = True
    return tool


def _tool_choice(choice: Any, parallel: bool | None) -> dict[str, Any]:
    if choice is None and parallel is not False:
        return {}
    translated: dict[str, Any] = {"type": "auto"}
    if choice == "required":
        translated = {"type": "any"}
    elif isinstance(choice, Mapping):
        translated = {"type": "tool", "name": choice["function"]["name"]}
    if parallel is not None:
        translated["disable_parallel_tool_use"] = not parallel
    return {"tool_choice": translated}


def _conversation(messages: Sequence[Mapping[str, Any]], profile: Profile, recall: RecallThinking) -> dict[str, Any]:
    """Return the fields `system` and `messages`."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = message["role"]
        if role in ("system", "developer") and not turns:
            system += _blocks(message["content"], profile)
            continue
        if role == "tool":
            blocks = [_tool_result(message, profile)]
        elif role == "assistant":
            blocks = [*_blocks(message["content"], profile), *map(_tool_use, message.get("tool_calls") or ())]
            text = "".join(block["text"] for block in blocks if block["type"] == "text")
            calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
            blocks = [*map(dict, recall(text, calls)), *blocks]
        else:
            blocks = _blocks(message["content"], profile)
        role = {"tool": "user", "developer": "system"}.get(role, role)
        if not blocks:
            continue  # Anthropic refuses empty texts and messages
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return {**({"system": system} if system else {}), "messages": turns}


def _blocks(content: str | Sequence[Any] | None, profile: Profile) -> list[dict[str, Any]]:
    """Return a content as blocks, without empty texts."""
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for part in content:
        if isinstance(part, str) or part["type"] == "text":
            blocks += _blocks(part if isinstance(part, str) else part["text"], profile)
        else:
            blocks.append(_media(part, profile))
    return blocks


def _media(part: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """Return an image or a file as a block."""
    content = part.get(part["type"])
    url = (
        content.get("url" if part["type"] == "image_url" else "file_data") if isinstance(content, Mapping) else content
    )
    if part["type"] in ("image_url", "file") and isinstance(url, str):
        data = _DATA_URL.fullmatch(url)
        if data is not None and part["type"] == "image_url" and data[1] in _IMAGES:
            return {"type": "image", "source": {"type": "base64", "media_type": data[1], "data": data[2]}}
        if data is None and part["type"] == "image_url":
            return {"type": "image", "source": {"type": "url", "url": url}}
        if data is not None and part["type"] == "file" and data[1] == "application/pdf":
            source = {"type": "base64", "media_type": data[1], "data": data[2]}
            return {"type": "document", "source": source}
    raise profile.unsupported_error(f"this content of type {part['type']}")


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    # Anthropic's convention for arguments that are no object
    input = arguments if isinstance(arguments, Mapping) else {INVALID_JSON: str(arguments)}
    return {"type": "tool_use", "id": _id(call["id"]), "name": call["function"]["name"], "input": input}


def _tool_result(message: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    result = {"type": "tool_result", "tool_use_id": _id(message["tool_call_id"])}
    blocks = _blocks(message["content"], profile)
    return {**result, "content": blocks} if blocks else result


def _id(id: str) -> str:
    """Return an id of a tool call with the characters that Anthropic's API allows."""
    return _INVALID_ID.sub("_", id)


def text_refusal(profile: Profile) -> ContextRefused:
    """Return the error for a prompt that is a text without messages."""
    return profile.unsupported_error("prompts without messages")
