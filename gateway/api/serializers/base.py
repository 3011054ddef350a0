"""The interface of serializers, and their common functions."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from compat.openai import CompletionTokensDetails, CompletionUsage, PromptTokensDetails, SemanticInfo
from gateway.api.semantic.extension import Scope, describe_call
from gateway.errors import FailedCall
from gateway.graph.call import Call, CallState, Usage
from gateway.graph.errors import Failure
from gateway.graph.variable import Piece
from gateway.http.sse import HEARTBEAT

SemanticField = SemanticInfo | msgspec.UnsetType
"""The `semantic` object of an answer; absent if the session has no name."""


class EventSerializer(Protocol):
    """Serializer of growing values into server-sent events. Values are numbered."""

    def piece_events(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """Return the events for new pieces of the value number `index`."""

    def end_events(self, index: int) -> bytes:
        """Return the events for the end of the value number `index`. Raises FailedCall if the value has failed."""


class Serializer(ABC):
    """Serializer of a request's calls into the JSON and the events of its endpoint. There is one for each endpoint."""

    ends_with_done: ClassVar[bool] = True
    """Whether a stream ends with `data: [DONE]`."""
    opening_seconds: ClassVar[float] = 5.0
    """Longest wait of a stream before its status line and `opening_events`, in seconds: an early failure can have a
    status of its own."""
    persists: bool = False
    """Whether the answer is stored before the last events of its stream."""
    calls: Sequence[Call] = ()
    """The request's calls, once they are submitted."""
    cost_of: Callable[[Call], float] | None = None
    """Returns the cost of a call, if the client requests it."""

    @property
    def cost(self) -> float | msgspec.UnsetType:
        """The cost of all calls, if the client requests it."""
        return msgspec.UNSET if self.cost_of is None else sum(map(self.cost_of, self.calls))

    @abstractmethod
    async def whole_response(self) -> Any:
        """Return the JSON object of the finished calls."""

    @abstractmethod
    def reference_response(self) -> Any:
        """Return the JSON object of deferred calls: an ordinary answer whose texts are references to their outputs."""

    @abstractmethod
    def reference_events(self) -> bytes:
        """Return the whole stream of deferred calls."""

    @abstractmethod
    def piece_events(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """Return the events for new pieces of a call's output."""

    @abstractmethod
    def end_events(self, index: int) -> bytes:
        """Return the events for the end of a call's output. Raises FailedCall unless the call is done."""

    @abstractmethod
    def error_events(self, error: FailedCall) -> bytes:
        """Return the last events of a stream in which a call failed."""

    def heartbeat(self) -> bytes:
        """Return what a stream sends after a silence."""
        return HEARTBEAT

    def opening_events(self) -> bytes:
        """Return the events that a client gets before the first text. Later calls return none."""
        return b""

    def follow(self) -> AsyncIterator[bytes] | None:
        """Return the events of a call that adds calls, as they arrive; None if the events come from its own pieces."""
        return None

    def prepare_end(self, index: int) -> Awaitable[None] | None:
        """Return an awaitable that has to end before `end_events`, or None. Other outputs grow meanwhile."""
        return None

    async def last_events(self) -> bytes:
        """Return the events after the ends of all outputs."""
        return b""


def usage_of(usages: Sequence[Usage]) -> CompletionUsage:
    """Return the sum of the tokens of some calls."""
    prompt = cached = completion = accepted = rejected = reasoning = 0
    for usage in usages:
        prompt += usage.prompt
        cached += usage.cached
        completion += usage.completion
        accepted += usage.accepted
        rejected += usage.rejected
        reasoning += usage.reasoning
    has_details = accepted or rejected or reasoning
    details = CompletionTokensDetails(accepted, rejected, reasoning) if has_details else msgspec.UNSET
    return CompletionUsage(prompt, completion, prompt + completion, PromptTokensDetails(cached), details)


def semantic_field(scope: Scope, calls: Sequence[Call]) -> SemanticField:
    """Return the description of the calls for the `semantic` field of an answer."""
    if not scope.is_named:
        return msgspec.UNSET
    first, *others = (describe_call(scope.session, call) for call in calls)
    if others:
        first["others"] = others
    return first


def reference_to(call: Call) -> str:
    """Return the text of a deferred answer: a reference to the call's output."""
    return f"<<{call.output.name}>>"


def check_done(call: Call) -> None:
    """Raise FailedCall unless the call is done."""
    if call.state is not CallState.DONE:
        raise FailedCall(call.failure or Failure("internal_error", f"the call is {call.state}"))
