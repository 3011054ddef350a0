"""Stream the events of a session."""

from functools import partial
from typing import Any

from aiohttp import web

from gateway.api.semantic.extension import describe_failure
from gateway.api.semantic.sessions import session_of
from gateway.api.services import SERVICES
from gateway.api.subscription import subscribed
from gateway.graph.events import CallChanged, Change, Event, SessionEnded, VariableChanged, VariableDeleted
from gateway.graph.forms.form import form_name
from gateway.http.openapi import EVENTS, operation
from gateway.http.query_params import parse_integer
from gateway.http.sse import HEARTBEAT_WITH_IDS, EventStream, named_event

routes = web.RouteTableDef()

_BATCH = 200
"""Number of events that are written together, before the client has read earlier ones."""


@routes.get("/v1/sessions/{id}/events")
@operation(
    others={EVENTS: None},
    headers={"Last-Event-ID": {"type": "string", "pattern": "^[0-9]+$"}},
    errors=(400, 404, 410, 429, 503),
)
async def stream_events(request: web.Request) -> web.StreamResponse:
    """Stream every change of state of a session.

    The stream begins with the session, or after `Last-Event-ID`. It ends with the session.
    """
    session, position = session_of(request), _last_event(request)
    stream = EventStream(request, lambda: HEARTBEAT_WITH_IDS)
    if stream.is_empty:
        return await stream.end(done=False)
    with subscribed(request.app[SERVICES].scheduler, session=session):
        while events := await stream.with_heartbeats(partial(session.event_log.next_events, position)):
            for start in range(0, len(events), _BATCH):
                batch = events[start : start + _BATCH]
                await stream.write(b"".join([named_event(*describe_event(event), event.id) for event in batch]))
            position = events[-1].id
        return await stream.end(done=False)


def _last_event(request: web.Request) -> int:
    return parse_integer(request.headers.get("Last-Event-ID"), "Last-Event-ID", 0, minimum=0)


def describe_event(event: Event) -> tuple[str, dict[str, Any]]:
    """Return the event's name and its data."""
    kind, value = _describe_change(event.change)
    return kind, {"at": event.time, **value}


def _describe_change(change: Change) -> tuple[str, dict[str, Any]]:
    match change:
        case VariableChanged(variable, state, failure):
            return "variable", {"name": variable.name, "state": state, "error": describe_failure(failure)}
        case VariableDeleted(variable):
            return "variable", {"name": variable.name, "state": "deleted", "error": None}
        case CallChanged(call, state, failure):
            fields = {"id": call.id, "state": state, "output": call.output.name, "error": describe_failure(failure)}
            if call.spec.form is not None:
                fields["form"] = form_name(call.spec.form)
            if call.spec.origin is not None:
                fields["parent"] = call.spec.origin.call
            return "call", fields
        case SessionEnded(expired):
            return "session", {"state": "expired" if expired else "deleted"}
