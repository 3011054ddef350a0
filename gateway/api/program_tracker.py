"""Join the calls of requests with the programs that they belong to. See docs/programs.md."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from compat.openai import Message
from compat.openai.custom_tools import CustomToolDefinition
from compat.openai.messages import ToolDefinition
from gateway.api.openai.tools import ToolCallParserFactory
from gateway.graph.call import Call, CallState
from gateway.programs import (
    AnswerFacts,
    CallRecord,
    Comparison,
    HeldPrompt,
    LostPrefix,
    ProgramCall,
    ProgramFacts,
    ProgramIndex,
    PromptMessage,
    ToolGaps,
    client_ids,
    compare_prompts,
    held_prompt,
    prompt_message,
    text_message,
    token_message,
)
from gateway.prompts.normalize import normalize_messages
from gateway.prompts.tool_calls.parser import parse_answer
from gateway.runtime.executors import offload

log = logging.getLogger("myna.programs")

_MAX_SEARCHED_PROMPTS = 4
"""Number of prompts of one request in which texts of earlier answers are looked for."""
_MAX_PARSED = 65_536
"""Length of an answer, in characters, beyond which its tool calls are not looked for."""
_MIN_COMPARED = 512
"""Length of a prompt of one message without tools, in characters, below which it is not compared with later ones: it
takes few blocks of a cache."""
_SHORT_CHARACTERS, _SHORT_COUNT = 8_192, 16
"""Length of a prompt without tools, in characters, and number of its messages, up to which it is compared without a
thread. Answers up to this length are parsed without one."""
_MAX_WAITING, _MAX_WAITING_CHARACTERS = 256, 32 << 20
"""Maximum number of prompts that wait for a comparison after their calls have ended, and their length together, in
characters. Further prompts are not compared."""
_MIN_LOST_TOKENS = 128
"""Number of tokens below which a lost prefix is not reported: engines cache whole blocks."""
_NEW_TEXT = ("never_seen", "diverged", "other_key")
"""Reasons that engines give for tokens of a text that they have not seen before."""


def chat_messages(messages: Sequence[Message]) -> list[PromptMessage]:
    """Return the messages of a conversation with their hashes. The time is linear in their texts."""
    found = []
    for message in messages:
        content, tool_calls = message.content, message.tool_calls
        if isinstance(content, str) and content and not tool_calls:
            found.append(text_message(message.role, content))
            continue
        media: Sequence[object] = ()
        calls: Sequence[tuple[str, str]] = ()
        if isinstance(content, list):
            texts = [part for part in message.parts if isinstance(part, str)]
            media = [part.original for part in message.media]
        else:
            texts = [content or message.refusal or ""]
        if tool_calls:
            calls = [(call.function.name, call.function.arguments) for call in tool_calls]
        found.append(prompt_message(message.role, texts, calls, media))
    return found


def text_messages(prompt: str | Sequence[int]) -> list[PromptMessage]:
    """Return the prompt of a completion as a conversation of one message. Prompts given as token ids have no text."""
    if isinstance(prompt, str):
        return [text_message("user", prompt)]
    return [token_message(prompt)]


@dataclass(slots=True)  # not frozen: each request makes one, and setting frozen fields takes three times as long
class PromptSource:
    """A conversation as the client sent it. `normalizes`: whether the model reads it normalized."""

    messages: Sequence[Message]
    tools: Sequence[ToolDefinition | CustomToolDefinition] = ()
    normalizes: bool = False

    @property
    def length(self) -> int:
        """Approximate length, in characters; at least `_SHORT_CHARACTERS` if there are tools or many messages."""
        length = 0
        for message in self.messages:
            length += message.length + len(message.reasoning_text or "")
            for call in message.tool_calls or ():
                length += len(call.function.arguments)
        return length + _SHORT_CHARACTERS if self.tools or len(self.messages) > _SHORT_COUNT else length

    def held(self) -> HeldPrompt | None:
        """Return what chat templates can read of it, or None if it is too large.

        Ids of tool calls are left out, because clients change them and few templates write them.
        """
        messages: Sequence[dict[str, Any]] = [_described_message(message) for message in self.messages]
        if self.normalizes:
            messages = normalize_messages(messages)
        for message in messages:
            if isinstance(message["content"], list):
                parts: list[Any] = message["content"]
                message["content"] = [_text_part(part) if isinstance(part, str) else part for part in parts]
        return held_prompt(messages, [_described_tool(tool) for tool in self.tools])


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _described_message(message: Message) -> dict[str, Any]:
    fields = message.template_fields
    if message.tool_calls:
        functions = [call.function for call in message.tool_calls]
        fields["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in functions]
    return fields


def _described_tool(tool: ToolDefinition | CustomToolDefinition) -> dict[str, Any]:
    function = tool.function
    return {"name": function.name, "description": function.description, "parameters": function.parameters}


def prompt_source(
    messages: Sequence[Message], tools: Sequence[ToolDefinition | CustomToolDefinition], *, normalizes: bool
) -> PromptSource | None:
    """Return the source of a prompt, or None if the prompt is too short to be compared."""
    if len(messages) == 1 and not tools and messages[0].length < _MIN_COMPARED:
        return None
    return PromptSource(messages, tools, normalizes)


@dataclass(slots=True)  # not frozen: each request makes one, and setting frozen fields takes three times as long
class RequestFacts:
    """Facts of a request about its program.

    `prompts`: messages of each prompt. Each prompt has the same number of consecutive calls (`n`). `prompt_cache_key`,
    `user_id`: fields of the request. `parser_factory`: finds the tool calls in answers; None if there are none.
    `source`: the conversation, if later ones are compared with it.
    """

    prompts: Sequence[Sequence[PromptMessage]]
    prompt_cache_key: str | None = None
    user_id: str | None = None
    parser_factory: ToolCallParserFactory | None = None
    source: PromptSource | None = None


def record_of(call: Call, cost: float | None = None) -> CallRecord:
    """Return the record of a call that its program retains, or shows while the call runs."""
    model = call.model or call.spec.model
    return CallRecord(model, call.state, call.engine, call.finish_reason, call.failure, call.times, call.usage, cost)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A call that has ended, its conversation with its length in characters, and the call that it continues."""

    member: ProgramCall
    source: PromptSource
    length: int
    continued: ProgramCall | None


class ProgramTracker:
    """Owner of the programs of a gateway: it records the beginning and the end of each call in the index."""

    def __init__(
        self,
        index: ProgramIndex,
        cost_of: Callable[[Call], float] | None = None,
        on_gap: Callable[[Call, Sequence[float]], None] = lambda call, returns: None,
        forget_service: Callable[[str], bool] = lambda tenant: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cost_of`: cost of a call that has ended, if the gateway has prices. `on_gap` is called when a gap begins
        after a call, with the durations to expect; see `ToolGaps.begin`. `forget_service`: see
        `ProgramService.forget_some`. `now`: clock of all ages, in seconds, which does not change with the time of
        day."""
        self.index = index
        self.gaps = ToolGaps()
        self.on_forgotten: Callable[[str], object] = lambda tenant: None
        """Called with each tenant that is forgotten, before the tracker forgets its programs."""
        self._forget_service = forget_service
        self.now = now
        """Clock of `gaps` and of all ages, in seconds."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._parsing = asyncio.Lock()
        """Held while a long answer is parsed."""
        self._cost_of = cost_of
        self._on_gap = on_gap
        self._waiting: deque[_Waiting] = deque()
        self._waiting_characters = 0
        self._comparing: asyncio.Task[None] | None = None

    def begin(self, calls: Sequence[Call], facts: RequestFacts, headers: Mapping[str, str], *, is_named: bool) -> None:
        """Give each of a request's calls its place in a program, before the scheduler sees them.

        `is_named`: whether the client named the session of the calls.
        """
        session = calls[0].session
        ids = client_ids(headers, facts.prompt_cache_key, facts.user_id)
        now, count = self.now(), len(calls) // len(facts.prompts)
        for number, messages in enumerate(facts.prompts):
            first, *copies = calls[number * count : (number + 1) * count]
            prompt = ProgramFacts(messages, session.id if is_named else None, ids)
            searches = number < _MAX_SEARCHED_PROMPTS
            member = self.index.begin(
                session.tenant, prompt, now, call_id=first.id, searches=searches, unix_time=first.times.created
            )
            self.gaps.end(member, now)
            self._join(first, member, facts)
            member.source = facts.source
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
        now = self.now()
        if member.parser_factory is None or len(value) > _MAX_PARSED:
            self._end_with(call, member, AnswerFacts(value, (), record.state), record, now)
        elif len(value) <= _SHORT_CHARACTERS:
            answer = _parsed_answer(call, member.parser_factory, value, record)
            self._end_with(call, member, answer, record, now)
        else:
            parse = partial(_parsed_answer, call, member.parser_factory, value, record)
            self._start(self._end_long(call, member, parse, len(value), record, now))

    async def _end_long(
        self,
        call: Call,
        member: ProgramCall,
        parse: Callable[[], AnswerFacts],
        length: int,
        record: CallRecord,
        now: float,
    ) -> None:
        """Record the end of a call with a long answer. Answers are parsed one after another, so that they take at most
        one thread."""
        async with self._parsing:
            answer = await offload(parse, length)
        self._end_with(call, member, answer, record, now)

    def _end_with(self, call: Call, member: ProgramCall, answer: AnswerFacts, record: CallRecord, now: float) -> None:
        """Record the end of a call. `now`: time of the end."""
        if member.source is not None and record.state is CallState.DONE:
            self._compare_later(member, member.source)
        self.index.end(member, answer, now, record)
        if member.is_done:
            has_gap = not member.is_forgotten and not member.is_extended  # extended while a long answer was parsed
            self._on_gap(call, self.gaps.begin(member, now) if has_gap else ())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget_tenant(self, tenant: str) -> None:
        """Forget the programs of a tenant and all that was learned from them, between other work of the event loop."""
        self.on_forgotten(tenant)
        self._start(self._forget(tenant))

    async def _forget(self, tenant: str) -> None:
        for forget_some in (self.index.forget_some, self.gaps.forget_some, self._forget_service):
            for _ in iter(partial(forget_some, tenant), False):
                await asyncio.sleep(0)

    # prompts

    async def settle(self) -> None:
        """Wait until all calls have ended here as well, their prompts are compared, and deleted tenants are
        forgotten."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        while self._comparing is not None:
            await asyncio.shield(self._comparing)

    async def close(self) -> None:
        """Stop comparing prompts."""
        self._waiting.clear()
        self._waiting_characters = 0
        await self.settle()

    def _compare_later(self, member: ProgramCall, source: PromptSource) -> None:
        """Queue the prompt of a finished call for comparison."""
        length = source.length
        if len(self._waiting) >= _MAX_WAITING or self._waiting_characters + length > _MAX_WAITING_CHARACTERS:
            return
        self._waiting.append(_Waiting(member, source, length, member.continued))
        self._waiting_characters += length
        if self._comparing is None:
            self._comparing = asyncio.get_running_loop().create_task(self._compare_all())

    async def _compare_all(self) -> None:
        """Compare prompts one after another, so that they take at most one thread."""
        try:
            while self._waiting:
                waiting = self._waiting.popleft()
                self._waiting_characters -= waiting.length
                await self._compare(waiting)
                await asyncio.sleep(0)  # many short prompts may have waited for a long one
        finally:
            self._comparing = None

    async def _compare(self, waiting: _Waiting) -> None:
        """Compare the prompt of a call with that of the call it continues, then retain it in place of that prompt.

        So if several calls continue the same call, only the first to end is compared.
        """
        member, continued = waiting.member, waiting.continued
        earlier = None if continued is None else self.index.prompt_of(continued)

        def work() -> tuple[HeldPrompt | None, Comparison | None]:
            later = waiting.source.held()
            return later, None if earlier is None or later is None else compare_prompts(earlier, later)

        length = max(waiting.length, 0 if earlier is None else earlier.size // 4)  # a message takes some 500 bytes
        later, result = work() if length < _SHORT_CHARACTERS else await offload(work, length)
        is_continued = result is not None and result.is_continued
        self.index.remember_prompt(member, later, continued if is_continued else None)
        if continued is None or result is None or result.difference is None:
            return
        tokens = lost_tokens(continued.record, member.record)
        if tokens is None or tokens >= _MIN_LOST_TOKENS:
            self.index.report(member, LostPrefix(continued.id, result.difference, tokens))


def _parsed_answer(call: Call, parser_factory: ToolCallParserFactory, value: str, record: CallRecord) -> AnswerFacts:
    try:
        text, tool_calls = parse_answer(parser_factory(), value, cut=record.finish_reason == "length")
    except Exception:  # the end must be recorded in any case: otherwise the program would count as running
        log.exception("the tool calls of call %s cannot be found", call.id)
        return AnswerFacts(value, (), record.state)
    return AnswerFacts(text, tool_calls, record.state)


def lost_tokens(earlier: CallRecord | None, later: CallRecord | None) -> int | None:
    """Return the number of tokens of the earlier prompt that the later call has computed again because its prompt
    differs; None if the engines do not report enough to know it.

    If the engine gives reasons, tokens that it has evicted do not count.
    """
    if earlier is None or later is None or earlier.engine != later.engine:
        return None
    before, after = earlier.usage, later.usage
    if not before.prompt or not (after.cached or after.missed):
        return None
    lost = max(0, min(before.prompt, after.prompt) - after.cached)
    return min(lost, sum(after.missed.get(reason, 0) for reason in _NEW_TEXT)) if after.missed else lost
