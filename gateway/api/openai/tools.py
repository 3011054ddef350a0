"""Read the tools of a request, and find tool calls in an answer."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

from compat.openai import ChatCompletionRequest
from compat.openai.custom_tools import CustomFunction
from engine.sampling_params import SamplingParams
from gateway.prompts.served_models import ServedModel
from gateway.prompts.tool_calls.grammar import answer_grammar, answer_schema, forced_grammar
from gateway.prompts.tool_calls.parser import ToolCallParser
from gateway.prompts.tool_calls.tools import Tool, Tools

ToolCallParserFactory = Callable[[], ToolCallParser]
"""Creates a parser that finds tool calls in one answer."""


@dataclass(frozen=True)
class _ToolCallParserFactory:
    names: list[str]
    text_names: list[str]
    forced: bool
    repairs: bool

    def __call__(self) -> ToolCallParser:
        return ToolCallParser(self.names, forced=self.forced, repairs=self.repairs, text_names=self.text_names)


def tools_of(body: ChatCompletionRequest) -> Tools | None:
    """Return the tools of a request and which of them the model may or must call; None if there are no tools."""
    if not body.tools:
        return None
    forced = _is_forced(body)
    known = [
        Tool(
            tool.function.name,
            tool.function.description or "",
            tool.function.parameters or {"type": "object", "properties": {}},
            bool(tool.function.strict),
            tool.function.enforced if forced or tool.function.strict else {"type": "object"},
            tool.function.input_lark if isinstance(tool.function, CustomFunction) else None,
        )
        for tool in body.tools
    ]
    choice, parallel = body.tool_choice, body.parallel_tool_calls
    if body.named_tool is not None:
        named = [tool for tool in known if tool.name == body.named_tool]
        return Tools(known, "forced", named, parallel_tool_calls=parallel)
    if choice == "required":
        return Tools(known, "forced", known, bool(parallel), parallel)
    return Tools(known, "none" if choice == "none" else "auto", parallel_tool_calls=parallel)


def tool_call_parser_factory(body: ChatCompletionRequest, model: ServedModel) -> ToolCallParserFactory | None:
    """Return a factory that creates a parser for each answer of a request; None if the request allows no tool calls."""
    # `tools_of` is not used: it compiles the schemas, which may take long
    if not body.tools or body.tool_choice == "none":
        return None
    # a transform may replace the text of a tool call by any other text
    transformed = body.semantic is not None and body.semantic.transform is not None
    forced = _is_forced(body) and not model.is_passthrough and not transformed
    # the engine of an upstream server repairs its tool calls, unless the operator wants them as they are
    functions = [tool.function for tool in body.tools]
    with_text = [function.name for function in functions if isinstance(function, CustomFunction)]
    names = [function.name for function in functions]
    return _ToolCallParserFactory(names, with_text, forced, not model.is_passthrough)


def unenforced_warning(body: ChatCompletionRequest, model: ServedModel) -> str:
    """Return a warning that names the keywords of schemas which do not constrain a forced tool call; "" if there is
    nothing to say."""
    if not body.tools or not _is_forced(body) or model.is_passthrough:
        return ""
    parts = []
    for tool in body.tools:
        if body.named_tool not in (None, tool.function.name):
            continue
        if keywords := tool.function.unenforced:
            parts.append(f"{tool.function.name}: {', '.join(keywords)}")
    return f"not enforced in the arguments of {'; '.join(parts)}" if parts else ""


def _is_forced(body: ChatCompletionRequest) -> bool:
    """Return whether the answer must be a tool call."""
    return body.tool_choice == "required" or body.named_tool is not None


def constrain_tool_calls(sampling: SamplingParams, tools: Tools, model: ServedModel) -> SamplingParams:
    """Return the sampling of an answer with tools. The schema of a forced tool call replaces any other
    constraint.

    Stop strings do not apply to a forced tool call: the client does not see the text in which they would be found.
    """
    if model.is_passthrough:  # the upstream server constrains tool calls
        return sampling
    format = model.prompts.tool_call_format
    if tools.choice == "forced":
        grammar = forced_grammar(tools, format)
        schema = json.dumps(answer_schema(tools, format)) if grammar is None else None
        sampling = dataclasses.replace(sampling, stop=(), stop_token_ids=())
        return dataclasses.replace(sampling, regex=None, json_schema=schema, grammar=grammar)
    if sampling.regex is None and sampling.json_schema is None and sampling.grammar is None:
        return dataclasses.replace(sampling, grammar=answer_grammar(tools, format, model.known_tokenizer.control))
    return sampling
