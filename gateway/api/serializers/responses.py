"""Serialize a call as a response of /v1/responses."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import cached_property
from typing import ClassVar

from compat.openai.responses import Response, ResponseRequest
from gateway.api.responses.agent_events import agent_events
from gateway.api.responses.builder import ResponseBuilder, encode_events
from gateway.api.responses.conversations import LocalTurns, Turn, new_response_id
from gateway.api.responses.mcp_setup import McpSetup
from gateway.api.schema_checks import AnswerChecker
from gateway.api.semantic.extension import Scope
from gateway.api.serializers.base import Serializer, check_done, reference_to
from gateway.errors import FailedCall
from gateway.graph.call import Call
from gateway.graph.variable import Piece
from gateway.prompts.served_models import ServedModel
from gateway.responses import ResponseStoreError


class ResponseSerializer(Serializer):
    """Serializer of one call as the items of a response. It stores the response before the answer ends."""

    ends_with_done: ClassVar[bool] = False
    opening_seconds: ClassVar[float] = 0.5

    def __init__(
        self,
        raw: bytes,
        body: ResponseRequest,
        model: ServedModel,
        scope: Scope,
        turn: Turn,
        checker: AnswerChecker | None,
        local: LocalTurns | None = None,
        setup: McpSetup | None = None,
    ) -> None:
        """`raw`: the body as the client sent it; it is stored with the response. `local`: turns of the client's
        connection, to which this is added. `setup`: MCP servers of the request, if it has any."""
        self._raw = raw
        self._body = body
        self._model = model
        self._scope = scope
        self._turn = turn
        self._checker = checker
        self._local = local
        self._setup = setup
        self._id = new_response_id()
        self.persists = turn.is_stored or body.conversation is not None

    @property
    def _call(self) -> Call:
        (call,) = self.calls
        return call

    @cached_property
    def _builder(self) -> ResponseBuilder:
        """Builder of the response. It needs the call, which exists once the request is submitted."""
        builder = ResponseBuilder(
            self._body,
            self._model,
            self._scope,
            self._call,
            self._id,
            checker=self._checker,
            is_stored=self._turn.is_stored,
            setup=self._setup,
        )
        builder.cost_of = self.cost_of
        return builder

    async def whole_response(self) -> Response:
        """Return the response with all of its items, once it is stored."""
        output = self._call.output
        if self._builder.is_agent:
            async for _ in agent_events(self._builder, self._call, self._model):
                pass
        else:
            self._builder.grow(output.value or "", output.pieces)
            self._builder.close()
        if (checking := self._builder.start_check()) is not None:
            await checking
        return await self._store()

    def reference_response(self) -> Response:
        """Return the response of a deferred call."""
        self._builder.add_text(reference_to(self._call))
        self._builder.close()
        return self._builder.finish()

    def reference_events(self) -> bytes:
        """Return the whole stream of a deferred call."""
        builder = self._builder
        events = [*builder.open(), *builder.add_text(reference_to(self._call)), *builder.close()]
        return encode_events([*events, builder.build_last_event(builder.finish())])

    def follow(self) -> AsyncIterator[bytes] | None:
        """Return the events of an agent's answers and tools, if the call is an agent."""
        return self._agent_events() if self._builder.is_agent else None

    async def _agent_events(self) -> AsyncIterator[bytes]:
        async for events in agent_events(self._builder, self._call, self._model):
            yield encode_events(events)

    def opening_events(self) -> bytes:
        """Return the first events of the response."""
        return encode_events(self._builder.open())

    def piece_events(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """Return the events for new pieces of the answer."""
        text = "".join([piece.text for piece in pieces])
        return encode_events([*self._builder.open(), *self._builder.grow(text, pieces)])

    def prepare_end(self, index: int) -> Awaitable[None] | None:
        """Begin the check of the answer against its schema."""
        return self._builder.start_check()

    def end_events(self, index: int) -> bytes:
        """Return the events for the ends of the last items. Raises FailedCall unless the call is done."""
        check_done(self._call)
        return encode_events([*self._builder.open(), *self._builder.close()])

    async def last_events(self) -> bytes:
        """Store the response and return its last event."""
        response = await self._store()
        return encode_events([self._builder.build_last_event(response)])

    def error_events(self, error: FailedCall) -> bytes:
        """Return the ends of the items that there are, and the event of the failure."""
        builder = self._builder
        events = [*builder.open(), *builder.interrupt()]
        return encode_events([*events, builder.build_last_event(builder.fail(error))])

    async def _store(self) -> Response:
        """Store the response, if the client may continue it later, and return it."""
        response = self._builder.finish()
        if self._builder.conversation is not None and not await self._turn.append(response, self._raw):
            self._builder.conversation = None  # the answer says that the conversation does not have it
            response = self._builder.finish()
        if self._builder.is_stored:
            try:
                await self._turn.store(response, self._raw, slots=self._call.spec.parts is not None)
            except ResponseStoreError:  # the answer is valid all the same; `store` says that it is not stored
                self._builder.is_stored = False
                response = self._builder.finish()
        if self._local is not None:
            self._local.remember(self._turn, response, self._raw)
        return response
