"""GET /v1/programs: the applications behind the requests of a key, as far as the requests show them."""

import itertools
import time
from collections.abc import Iterator
from typing import cast

from aiohttp import web

from compat.openai import (
    CallObject,
    Edge,
    ProgramGraph,
    ProgramLink,
    ProgramList,
    ProgramObject,
    PromptDifference,
    VariableObject,
)
from gateway.api.program_tracker import record_of
from gateway.api.semantic.diagrams import dot, mermaid
from gateway.api.semantic.extension import describe_failure
from gateway.api.semantic.graphs import blocking_reason, missed_tokens
from gateway.api.services import SERVICES, Services
from gateway.errors import RequestError
from gateway.graph.call import CallState, Objective, Times
from gateway.http.json_body import json_response
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import operation
from gateway.http.query_params import choice_param, int_param
from gateway.programs import LostPrefix, Program, ProgramCall, ProgramIndex
from gateway.scheduler.objective import objective

routes = web.RouteTableDef()

_MAX_PAGE, _DEFAULT_PAGE = 1_000, 100
_MAX_QUERY = 200
"""Maximum length of a search text, in characters."""
_VARIABLE_STATES = {
    CallState.DONE: "ready",
    CallState.FAILED: "failed",
    CallState.CANCELLED: "cancelled",
    CallState.DECODE: "streaming",
}
"""State of an answer by the state of its call, if it is not pending."""


@routes.get("/v1/programs")
@operation(
    ProgramList,
    query={
        "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE},
        "after": {"type": "string"},
        "q": {"type": "string", "maxLength": _MAX_QUERY},
    },
    errors=(400, 503),
)
async def list_programs(request: web.Request) -> web.Response:
    """List the programs of the API key, the one with the latest request first.

    `q`: part of an id, or of the session's id. `after`: id of the last program of the page before.
    """
    services, tenant = request.app[SERVICES], request[TENANT]
    limit = int_param(request, "limit", _DEFAULT_PAGE, minimum=1, maximum=_MAX_PAGE)
    query = request.query.get("q", "")
    if len(query) > _MAX_QUERY:
        raise RequestError(400, f"q is longer than {_MAX_QUERY} characters", code="invalid_value", param="q")
    wanted = query.strip().lower()
    index = _index_of(services)
    found: Iterator[Program] = iter(()) if index is None else index.of_tenant(tenant)
    after = request.query.get("after")
    if after is not None:
        last = None if index is None else index.find(tenant, after)
        if last is None:
            raise RequestError(400, f"there is no program {after!r}", code="invalid_value", param="after")
        found = itertools.islice(itertools.dropwhile(lambda program: program is not last, found), 1, None)
    if wanted:
        found = (program for program in found if _matches(program, wanted))
    page = list(itertools.islice(found, limit + 1))
    data = [describe_program(program, services) for program in page[:limit]]
    return json_response(ProgramList(object="list", data=data, has_more=len(page) > limit))


@routes.get("/v1/programs/{id}")
@operation(
    ProgramGraph,
    others={"text/plain": None, "text/vnd.graphviz": None},
    query={"format": {"type": "string", "enum": ["json", "mermaid", "dot"]}},
    errors=(400, 404, 503),
)
async def get(request: web.Request) -> web.Response:
    """Return a program with its calls and the links between them; as JSON, or as text for mermaid or Graphviz.

    Calls, variables and edges are as in the graph of a session: the answer of a call is a variable, which later calls
    read.
    """
    services, id = request.app[SERVICES], request.match_info["id"]
    form = choice_param(request, "format", ("json", "mermaid", "dot"))
    index = _index_of(services)
    program = None if index is None else index.find(request[TENANT], id)
    if index is None or program is None:
        raise RequestError(404, f"there is no program {id!r}; idle programs are forgotten", code="program_not_found")
    graph = program_graph(program, index, services)
    if form == "json":
        return json_response(graph)
    drawn = {"calls": graph["calls"], "variables": [], "edges": graph["links"]}
    if form == "mermaid":
        return web.Response(text=mermaid(drawn))
    return web.Response(text=dot(drawn), content_type="text/vnd.graphviz")


def _index_of(services: Services) -> ProgramIndex | None:
    return None if services.programs is None else services.programs.index


def _matches(program: Program, wanted: str) -> bool:
    ids = (program.id, program.session or "", *program.former_ids)
    return any(wanted in id.lower() for id in ids)


def describe_program(program: Program, services: Services) -> ProgramObject:
    """Return the JSON object of a program."""
    described: ProgramObject = {
        "id": program.id,
        "object": "program",
        "created_at": int(program.created_at),
        "last_used_at": int(program.last_used_at),
        "state": "running" if program.running else "idle",
        "session": program.session,
        "usage": {
            "prompt_tokens": program.prompt_tokens,
            "cached_tokens": program.cached_tokens,
            "completion_tokens": program.completion_tokens,
            "calls": program.call_count,
        },
    }
    if services.prices:
        described["usage"]["cost"] = program.cost
    return described


def program_graph(program: Program, index: ProgramIndex, services: Services) -> ProgramGraph:
    """Return the JSON object of a program with its remembered calls, in the order of their requests."""
    members = sorted(program.calls.values(), key=lambda member: member.begun)
    outputs = {member.id: f"answer_{member.id.removeprefix('call_')}" for member in members}
    links = [link for member in members for link in _links(member, program, index)]
    inputs: dict[str, dict[str, None]] = {member.id: {} for member in members}
    readers: dict[str, dict[str, None]] = {member.id: {} for member in members}
    for link in links:
        if link["from"] in outputs:
            inputs[link["to"]][outputs[link["from"]]] = None
            readers[link["from"]][link["to"]] = None
    calls = [_describe_call(member, outputs[member.id], list(inputs[member.id]), services) for member in members]
    variables = [_describe_answer(call, outputs[call["id"]], list(readers[call["id"]])) for call in calls]
    reads: list[Edge] = [{"from": name, "to": id} for id, names in inputs.items() for name in names]
    answers: list[Edge] = [{"from": id, "to": name} for id, name in outputs.items()]
    return {
        **describe_program(program, services),
        "last_event_id": 0,
        "calls": calls,
        "variables": variables,
        "edges": [*reads, *answers],
        "links": links,
    }


def _links(member: ProgramCall, program: Program, index: ProgramIndex) -> Iterator[ProgramLink]:
    for edge in member.edges:
        source = program.calls.get(edge.source)
        other = index.find(program.tenant, edge.program)
        ended = None if source is None else source.ended
        yield {
            "from": edge.source,
            "to": member.id,
            "kind": edge.kind,
            "characters": edge.length,
            "gap_ms": None if ended is None else round(1e3 * max(0.0, member.begun - ended), 1),
            "program": (edge.program if other is None else other.id) if source is None else program.id,
        }


def _describe_call(member: ProgramCall, output: str, inputs: list[str], services: Services) -> CallObject:
    call = member.call
    record = member.record if call is None else record_of(call)
    if record is None:  # the call has ended this moment, or was not the gateway's
        times = Times(member.program.last_used_at, finished=member.program.last_used_at)
        usage = None
    else:
        times, usage = record.times, record.usage
    state = CallState.WAITING if record is None else record.state
    described: CallObject = {
        "id": member.id,
        "model": "" if record is None else record.model,
        "state": state,
        "waiting_on": [] if call is None else call.waiting_on,
        "why": None if call is None else blocking_reason(call),
        "waits_for": None if call is None else call.waits_for,
        "inputs": inputs,
        "output": output,
        "slots": [],
        "shared_with": call.leader.id if call is not None and call.leader is not None else None,
        "objective": Objective.LATENCY if call is None else objective(call),
        "priority": 0.0 if call is None else services.scheduler.rank(call),
        "engine": None if record is None else record.engine,
        "prompt_tokens": 0 if usage is None else usage.prompt,
        "cached_tokens": 0 if usage is None else usage.cached,
        "missed_tokens": {} if usage is None else missed_tokens(usage),
        "completion_tokens": 0 if usage is None else usage.completion,
        "finish_reason": None if record is None else record.finish_reason,
        "error": None if record is None else describe_failure(record.failure),
        "prefix_hashes": [],
        "created": times.created,
        "queued": times.queued,
        "started": times.started,
        "first_token": times.first_token,
        "finished": times.finished,
        "spent_ms": {phase: round(1e3 * seconds, 1) for phase, seconds in phases_of(times, time.time()).items()},
    }
    if services.prices and record is not None and record.cost is not None:
        described["cost"] = record.cost
    if member.lost_prefix is not None:
        described["prompt_difference"] = _describe_difference(member.lost_prefix)
    return described


def _describe_difference(lost: LostPrefix) -> PromptDifference:
    found = lost.difference
    return {
        "call": lost.earlier,
        "message": found.message,
        "role": found.role,
        "field": found.field,
        "offset": found.offset,
        "earlier": found.earlier,
        "later": found.later,
        "spoiler": found.spoiler.value,
        "lost_tokens": lost.tokens,
    }


def phases_of(times: Times, now: float) -> dict[str, float]:
    """Return how long a call without inputs has spent in each phase, in seconds. `now`: end of a phase that lasts."""
    end = now if times.finished is None else times.finished
    started = end if times.started is None else times.started
    first = end if times.first_token is None else max(started, times.first_token)
    prompt = max(0.0, first - started)
    memory = min(prompt, times.starved)
    held = min(prompt - memory, times.held)
    return {
        "inputs": 0.0,
        "tool": 0.0,
        "queue": max(0.0, started - times.created) + held,
        "memory": memory,
        "prompt": prompt - memory - held,
        "answer": max(0.0, end - first),
    }


def _describe_answer(call: CallObject, name: str, readers: list[str]) -> VariableObject:
    state = _VARIABLE_STATES.get(cast("CallState", call["state"]), "pending")
    return {
        "name": name,
        "state": state,
        "value": None,
        "error": call["error"],
        "producer": call["id"],
        "consumers": readers,
    }
