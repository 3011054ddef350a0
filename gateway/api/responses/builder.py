"""Build a response from a call's answer, and the events that describe its growth."""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import count

import msgspec

from compat.openai import TokenLogprob
from compat.openai.responses import (
    ConversationReference,
    ErrorCode,
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    McpListTools,
    OutputTokensDetails,
    ReasoningConfig,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseEventType,
    ResponseRequest,
    ResponseUsage,
    Status,
    TextConfig,
)
from gateway.api.openai.chat import forwarded_fields
from gateway.api.openai.logprobs import token_logprobs
from gateway.api.openai.tools import ToolCallParserFactory, tool_call_parser_factory
from gateway.api.responses.agent_items import AgentItems
from gateway.api.responses.items import Event as ItemsEvent
from gateway.api.responses.items import Items, item_events, item_id, mcp_events
from gateway.api.responses.mcp_setup import McpSetup
from gateway.api.schema_checks import AnswerChecker
from gateway.api.semantic.extension import Scope
from gateway.api.serializers.base import semantic_field, usage_of
from gateway.errors import FailedCall
from gateway.graph.call import Call, Usage
from gateway.graph.forms.form import Agent
from gateway.graph.variable import Piece, reasoning_of
from gateway.http.sse import named_event
from gateway.prompts.served_models import ServedModel
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallEvent
from gateway.responses import StoredResponse

Event = ResponseEvent | ItemsEvent

_LAST: dict[str, ResponseEventType] = {"completed": "response.completed", "incomplete": "response.incomplete"}
"""Type of the last event by the status; `response.failed` for all others."""


class ResponseBuilder:
    """Builder of one response. The answer is added piece by piece, or as a whole."""

    def __init__(
        self,
        body: ResponseRequest,
        model: ServedModel,
        scope: Scope,
        call: Call | None,
        id: str,
        *,
        checker: AnswerChecker | None,
        is_stored: bool,
        created: int | None = None,
        setup: McpSetup | None = None,
    ) -> None:
        """`call`: the call for the answer, if there is one. `checker`: checks the answer against the request's schema.
        `is_stored`: whether the response is stored. `created`: time of creation in Unix seconds; now if left out.
        `setup`: MCP servers of the request; then the call is an agent."""
        self.id = id
        self.is_stored = is_stored
        self.conversation = body.conversation_id
        """Id of the conversation that the response is added to."""
        self._body = body
        self._checker = checker
        self._model = model
        self._scope = scope
        self._calls = [] if call is None else [call]
        self._created = int(time.time()) if created is None else created
        self._numbers = count()
        encrypts = body.includes_encrypted_reasoning
        self._items = Items(self._numbers, id, body.flat_tools, encrypts=encrypts)
        parser_factory = None
        if setup is None:
            parser_factory = tool_call_parser_factory(body.chat, model)
        elif call is not None and isinstance(call.spec.form, Agent):
            self._items = AgentItems(self._numbers, id, body.flat_tools, setup, call.spec.form, encrypts=encrypts)
        self._parser = None if parser_factory is None else parser_factory()
        self._pending_logprobs: list[TokenLogprob] = []
        """Log probabilities of tokens whose text is in no event yet."""
        self._is_open = False
        self.cost_of: Callable[[Call], float] | None = None
        """Returns the cost of a call, if the client requests it."""

    @property
    def _call(self) -> Call:
        """The call for the answer."""
        (call,) = self._calls
        return call

    def queue(self) -> list[Event]:
        """Return the first events of a response in the background."""
        response = self.build_response("queued")
        return [self.build_event("response.created", response), self.build_event("response.queued", response)]

    def open(self) -> list[Event]:
        """Return the first events of the answer. Later calls return none."""
        if self._is_open:
            return []
        self._is_open = True
        response = self.build_response("in_progress")
        created = [] if self._body.background else [self.build_event("response.created", response)]
        return [*created, self.build_event("response.in_progress", response)]

    def grow(self, text: str, pieces: Sequence[Piece]) -> list[Event]:
        """Add text of the model to the answer. `pieces`: the pieces of this text, with log probabilities and
        reasoning."""
        if self._body.includes_logprobs:
            self._pending_logprobs += token_logprobs(self._model, pieces)
        reasoning = reasoning_of(pieces)
        events = self._items.add_reasoning(reasoning) if reasoning else []
        return [*events, *self._add_events([AnswerText(text)] if self._parser is None else self._parser.push(text))]

    def add_text(self, text: str) -> list[Event]:
        """Add text that the model did not generate."""
        return self._add_events([AnswerText(text)])

    def _add_events(self, found: Iterable[ToolCallEvent]) -> list[Event]:
        events: list[Event] = []
        for event in found:
            if isinstance(event, AnswerText) and event.text:
                logprobs, self._pending_logprobs = self._pending_logprobs, []
                events += self._items.add(event, logprobs)
            elif not isinstance(event, AnswerText):
                events += self._items.add(event)
        return events

    @property
    def is_agent(self) -> bool:
        """Whether the call is an agent. Its items come from `agent_events`."""
        return isinstance(self._items, AgentItems)

    @property
    def agent_items(self) -> AgentItems:
        """The items of an agent."""
        assert isinstance(self._items, AgentItems)
        return self._items

    def add_failed_listing(self, label: str, reason: str) -> list[Event]:
        """Add the item of a server that could not list its tools."""
        item = McpListTools(id=item_id("mcpl", self.id, 0), server_label=label, tools=[], error=reason)
        self._items.done.append(item)
        return [*mcp_events(item, 0, self._numbers)]

    def begin_answer(self, parser_factory: ToolCallParserFactory | None) -> None:
        """Begin an answer of the agent. `parser_factory`: None if it has no tool calls."""
        self._parser = None if parser_factory is None else parser_factory()
        self.agent_items.begin_answer()

    def end_answer(self, call: Call) -> list[Event]:
        """End an answer of the agent. Return the events of its last items."""
        is_cut_off = call.finish_reason == "length"
        events = [] if self._parser is None else self._add_events(self._parser.finish(cut=is_cut_off))
        if not self.agent_items.has_items:
            events += self._items.add(AnswerText(""))
        ended = not is_cut_off and (self._parser is None or self._parser.whole)
        return [*events, *self._items.end("completed" if ended else "incomplete")]

    def close(self) -> list[Event]:
        """End the last items and return their events. Call `finish` next."""
        if self.is_agent:  # `agent_events` has ended the items; here only a reference is open
            return [*self._items.end()]
        events: list[Event] = (
            [] if self._parser is None else self._add_events(self._parser.finish(cut=self._is_cut_off))
        )
        if self._items.is_unanswered:
            events += self._items.add(AnswerText(""))
        ended = not self._is_cut_off and (
            self._parser is None or self._parser.whole
        )  # a stop string may cut off a call
        return [*events, *self._items.end("completed" if ended else "incomplete")]

    def start_check(self) -> Awaitable[None] | None:
        """Begin the check of the whole answer against its schema. Return an awaitable if the check runs in a thread,
        else None."""
        return None if self._checker is None else self._checker.start(0, self._call)

    def finish(self) -> Response:
        """Return the response of an answer that is complete or cut off."""
        status: ItemStatus = "incomplete" if self._is_cut_off else "completed"
        response = self.build_response(status, [] if self._scope.is_deferred else [self._call.usage])
        if self.cost_of is not None and response.usage is not None:
            calls = self._call.children.values() if self.is_agent else [self._call]
            usage = msgspec.structs.replace(response.usage, cost=sum(map(self.cost_of, calls)))
            response = msgspec.structs.replace(response, usage=usage)
        violation = None if self._checker is None else self._checker.violation(0)
        return response if violation is None else msgspec.structs.replace(response, schema_violation=violation)

    @property
    def _is_cut_off(self) -> bool:
        """Whether a token limit cut off the answer."""
        return self._call.finish_reason == "length" and not self._scope.is_deferred

    def interrupt(self) -> list[Event]:
        """End the items of a failed answer and return their events. Call `fail` next."""
        return [*self._items.interrupt()]

    def fail(self, error: FailedCall) -> Response:
        """Return the failed response."""
        return self.build_response("failed", error=error_of(error))

    def build_event(self, type: ResponseEventType, response: Response) -> Event:
        """Return an event with the current response."""
        return ResponseEvent(type=type, sequence_number=next(self._numbers), response=response)

    def build_last_event(self, response: Response) -> Event:
        """Return the last event of the stream."""
        return self.build_event(_LAST.get(response.status, "response.failed"), response)

    def build_response(
        self, status: Status, usages: Sequence[Usage] | None = None, error: ResponseError | None = None
    ) -> Response:
        """Return the response in its current state. `usages`: usage of its calls, once it has ended; none for a
        reference."""
        body = self._body
        return Response(
            id=self.id,
            created_at=self._created,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            background=bool(body.background),
            conversation=None if self.conversation is None else ConversationReference(self.conversation),
            error=error,
            incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            metadata=body.metadata or {},
            reasoning=ReasoningConfig(self._hints.get("reasoning_effort")),
            model=next((call.model for call in self._answers if call.model), self._model.id),  # that of a fallback
            output=list(self._items.done),
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            prompt_cache_key=body.prompt_cache_key,
            prompt_cache_retention=body.prompt_cache_retention,
            safety_identifier=body.safety_identifier,
            store=self.is_stored,
            temperature=1.0 if body.temperature is None else body.temperature,
            text=TextConfig(body.echoed_format, self._hints.get("verbosity", "medium")),
            tool_choice=body.echoed_tool_choice,
            tools=body.echoed_tools,
            top_logprobs=body.top_logprobs or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            usage=None if usages is None else response_usage(usages),
            user=body.user,
            semantic=semantic_field(self._scope, self._calls),
        )

    @property
    def _answers(self) -> Iterable[Call]:
        """The calls of models."""
        return [*self._calls, *(child for call in self._calls for child in call.children.values())]

    @property
    def _hints(self) -> dict[str, str]:
        """Hints in effect: those that the model's server supports."""
        return forwarded_fields(self._body.chat, self._model)


def encode_events(events: Iterable[Event]) -> bytes:
    """Serialize events as server-sent events."""
    return b"".join([named_event(event.type, event) for event in events])


def last_event_of(response: Response, number: int) -> bytes:
    """Return the last event of an ended response, serialized."""
    type = _LAST.get(response.status, "response.failed")
    return encode_events([ResponseEvent(type=type, sequence_number=number, response=response)])


def replay_events(response: Response) -> bytes:
    """Return the events of an ended response, serialized, as if it were generated now in one piece."""
    numbers = count()
    unset_fields = dict.fromkeys(("completed_at", "usage", "error", "incomplete_details"))
    started = msgspec.structs.replace(
        response, status="in_progress", output=[], schema_violation=msgspec.UNSET, **unset_fields
    )
    opening: tuple[ResponseEventType, ...] = ("response.created", "response.in_progress")
    events: list[Event] = [
        ResponseEvent(type=type, sequence_number=next(numbers), response=started) for type in opening
    ]
    for index, item in enumerate(response.output):
        events += item_events(item, index, numbers)
    return encode_events(events) + last_event_of(response, next(numbers))


def stored_response(row: StoredResponse) -> Response:
    """Return the response of a stored row."""
    return msgspec.json.decode(row.answer, type=Response)


def error_of(error: FailedCall) -> ResponseError:
    """Return an error with one of OpenAI's few codes, and with this server's code as its type."""
    codes: dict[int, ErrorCode] = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
    code = codes.get(error.status, "server_error")
    if error.code == "context_length_exceeded":  # clients such as Codex shorten the conversation then
        code = "context_length_exceeded"
    return ResponseError(code, str(error), error.code or error.type)


def response_usage(usages: Sequence[Usage]) -> ResponseUsage:
    """Return the sum of the tokens of some calls."""
    summed = usage_of(usages)
    return ResponseUsage(
        input_tokens=summed.prompt_tokens,
        input_tokens_details=InputTokensDetails(summed.prompt_tokens_details.cached_tokens),
        output_tokens=summed.completion_tokens,
        output_tokens_details=OutputTokensDetails(sum(usage.reasoning for usage in usages)),
        total_tokens=summed.total_tokens,
    )
