"""Join the calls of requests with the programs that they belong to. See docs/programs.md."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compat.openai import Message
from gateway.api.openai.tools import ToolCallParserFactory
from gateway.graph.call import Call, CallState
from gateway.programs import (
    AnswerFacts,
    CallRecord,
    ProgramCall,
    ProgramFacts,
    ProgramIndex,
    PromptMessage,
    ToolGaps,
    client_ids,
    prompt_message,
)
from gateway.prompts.tool_calls.parser import parse_answer

_MAX_PARSED = 262_144
"""Length of an answer, in characters, beyond which its tool calls are not looked for."""


def chat_messages(messages: Sequence[Message]) -> list[PromptMessage]:
    """Return the messages of a conversation with their hashes. The time is linear in their texts."""
    found = []
    for message in messages:
        content = message.content
        if isinstance(content, list):
            texts = [part for part in message.parts if isinstance(part, str)]
            media = [part.original for part in message.media]
        else:
            texts, media = [content or message.refusal or ""], []
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        found.append(prompt_message(message.role, texts, calls, media))
    return found


def text_messages(prompt: str | Sequence[int]) -> list[PromptMessage]:
    """Return the prompt of a completion as a conversation of one message. Numbers of tokens have no text."""
    if isinstance(prompt, str):
        return [prompt_message("user", [prompt])]
    return [prompt_message("user", [], media=[prompt])]


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Facts of a request about its program.

    `prompts`: messages of each prompt, each of which equally many consecutive calls have. `prompt_cache_key`,
    `user_id`: fields of the request. `parser_factory`: finds the tool calls in answers; None if there are none.
    """

    prompts: Sequence[Sequence[PromptMessage]]
    prompt_cache_key: str | None = None
    user_id: str | None = None
    parser_factory: ToolCallParserFactory | None = None


def record_of(call: Call, cost: float | None = None) -> CallRecord:
    """Return what a program keeps of a call, or shows of it now."""
    model = call.model or call.spec.model
    return CallRecord(model, call.state, call.engine, call.finish_reason, call.failure, call.times, call.usage, cost)


class ProgramTracker:
    """Owner of the programs of a gateway: it tells the index of each call's beginning and end."""

    def __init__(
        self,
        index: ProgramIndex,
        cost_of: Callable[[Call], float] | None = None,
        on_gap: Callable[[Call, Sequence[float]], None] = lambda call, returns: None,
    ) -> None:
        """`cost_of`: cost of a call that has ended, if the gateway has prices. `on_gap` is called when a gap begins
        after a call, with the durations to expect; see `ToolGaps.begin`."""
        self.index = index
        self.gaps = ToolGaps()
        self._cost_of = cost_of
        self._on_gap = on_gap

    def begin(self, calls: Sequence[Call], facts: RequestFacts, headers: Mapping[str, str], *, is_named: bool) -> None:
        """Give each of a request's calls its place in a program, before the scheduler sees them.

        `is_named`: whether the client named the session of the calls.
        """
        session = calls[0].session
        ids = client_ids(headers, facts.prompt_cache_key, facts.user_id)
        now, count = time.time(), len(calls) // len(facts.prompts)
        for number, messages in enumerate(facts.prompts):
            first, *copies = calls[number * count : (number + 1) * count]
            prompt = ProgramFacts(messages, session.id if is_named else None, ids)
            member = self.index.begin(session.tenant, prompt, now, call_id=first.id)
            self.gaps.end(member, now)
            self._join(first, member, facts)
            for copy in copies:
                self._join(copy, self.index.begin_beside(member, now, call_id=copy.id), facts)

    def _join(self, call: Call, member: ProgramCall, facts: RequestFacts) -> None:
        self.index.attach(member, call)
        member.parser_factory = facts.parser_factory
        call.program = member

    def observe(self, call: Call) -> None:
        """Record the end of a call, after the tasks that wait for its answer had their turn."""
        member = call.program
        if isinstance(member, ProgramCall):
            value = call.output.value or "" if call.state is CallState.DONE else ""
            record = record_of(call, None if self._cost_of is None else self._cost_of(call))
            asyncio.get_running_loop().call_soon(self._end, call, member, value, record)

    def _end(self, call: Call, member: ProgramCall, value: str, record: CallRecord) -> None:
        tool_calls: Sequence[tuple[str, str]] = ()
        if member.parser_factory is not None and len(value) <= _MAX_PARSED:
            value, tool_calls = parse_answer(member.parser_factory(), value, cut=record.finish_reason == "length")
        now = time.time()
        self.index.end(member, AnswerFacts(value, tool_calls, record.state), now, record)
        if member.is_done and not member.is_forgotten:
            self._on_gap(call, self.gaps.begin(member, now))
