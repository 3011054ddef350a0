"""A session's graph, as it stands."""

from typing import Any

from aiohttp import web

from gateway.api.semantic import describe_failure, describe_variable
from gateway.api.services import SERVICES
from gateway.api.sessions import session_of
from gateway.graph.call import Call
from gateway.graph.objectives import objective
from gateway.graph.session import Session
from gateway.http.bodies import json_response
from gateway.scheduler import Scheduler

routes = web.RouteTableDef()


@routes.get("/v1/sessions/{id}/graph")
async def graph(request: web.Request) -> web.Response:
    """Calls, variables, and the edges between them."""
    session, scheduler = session_of(request), request.app[SERVICES].scheduler
    return json_response(
        {
            "calls": [_call(session, call, scheduler) for call in session.calls.values()],
            "variables": [describe_variable(variable) for variable in session.variables.values()],
            "edges": [edge for call in session.calls.values() for edge in _edges(call)],
        }
    )


def _call(session: Session, call: Call, scheduler: Scheduler) -> dict[str, Any]:
    return {
        "id": call.id,
        "model": call.spec.model,
        "state": call.state,
        "waiting_on": call.waiting_on,
        "inputs": list(call.inputs),
        "output": call.output.name,
        "slots": list(call.slots),
        "shared_with": call.leader.id if call.leader else None,
        "objective": objective(call),
        "priority": scheduler.rank(call),
        "engine": call.engine,
        "prompt_tokens": call.usage.prompt,
        "cached_tokens": call.usage.cached,
        "completion_tokens": call.usage.completion,
        "finish_reason": call.finish_reason,
        "error": describe_failure(call.failure),
        "prefix_hashes": session.prefix_hashes(call),
        "created": call.times.created,
        "queued": call.times.queued,
        "started": call.times.started,
        "first_token": call.times.first_token,
        "finished": call.times.finished,
    }


def _edges(call: Call) -> list[dict[str, str]]:
    reads = [{"from": name, "to": call.id} for name in call.inputs]
    return [*reads, *({"from": call.id, "to": variable.name} for variable in call.makes)]
