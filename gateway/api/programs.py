"""GET /v1/programs: the applications behind the requests of a key, as far as the requests show them."""

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Iterator, Sequence
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
from gateway.api.semantic.extension import describe_failure
from gateway.api.semantic.graphs import blocking_reason, missed_tokens, send_graph
from gateway.api.services import SERVICES, Services
from gateway.errors import RequestError
from gateway.graph.call import CallState, Objective, Times
from gateway.http.json_stream import json_list, stream_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import operation
from gateway.http.query_params import choice_param, int_param
from gateway.programs import LostPrefix, Program, ProgramCall, ProgramIndex
from gateway.runtime.json_codec import encode_json
from gateway.scheduler.objective import objective

routes = web.RouteTableDef()

_MAX_PAGE, _DEFAULT_PAGE = 1_000, 100
_MAX_QUERY = 200
"""Maximum length of a search text, in characters."""
_BATCH = 1_000
"""Number of programs that are searched before other requests get a turn."""
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
async def list_programs(request: web.Request) -> web.StreamResponse:
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
    last: Program | None = None
    if (after := request.query.get("after")) is not None:
        last = None if index is None else index.find(tenant, after)
        if last is None:
            raise RequestError(400, f"there is no program {after!r}", code="invalid_value", param="after")
    page = [] if index is None else await find_programs(index, tenant, wanted, last, limit + 1)
    return await stream_json(request, _list_pieces(page[:limit], services, has_more=len(page) > limit))


def _list_pieces(page: Sequence[Program], services: Services, *, has_more: bool) -> Iterator[bytes]:
    """Yield a ProgramList in pieces."""
    yield b'{"object":"list",'
    yield from json_list("data", (describe_program(program, services) for program in page))
    yield b',"has_more":%b}' % encode_json(has_more)


@routes.get("/v1/programs/{id}")
@operation(
    ProgramGraph,
    others={"text/plain": None, "text/vnd.graphviz": None},
    query={"format": {"type": "string", "enum": ["json", "mermaid", "dot"]}},
    errors=(400, 404, 503),
)
async def get(request: web.Request) -> web.StreamResponse:
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
    if form == "json":
        return await send_graph(request, form, _graph_pieces(program, index, services))
    return await send_graph(request, form, _drawn_pieces(program, index, services))


def _index_of(services: Services) -> ProgramIndex | None:
    return None if services.programs is None else services.programs.index


async def find_programs(
    index: ProgramIndex, tenant: str, wanted: str, last: Program | None, most: int
) -> Sequence[Program]:
    """Return at most `most` programs of a tenant, the one with the latest request first, whose ids have the text
    `wanted`. `last`: only programs that come after this one. Other requests get turns during a long search."""
    if last is None and not wanted:
        return list(itertools.islice(index.of_tenant(tenant), most))
    end = math.inf if last is None else last.order  # before the orders change, during the turns of other requests
    programs = index.all_of(tenant)
    found: list[tuple[int, Program]] = []
    for begin in range(0, len(programs), _BATCH):
        if begin:
            await asyncio.sleep(0)
        for program in programs[begin : begin + _BATCH]:
            if program.order < end and _matches(program, wanted) and index.find(tenant, program.id) is program:
                found.append((program.order, program))
    return [program for _, program in heapq.nlargest(most, found)]


def _matches(program: Program, wanted: str) -> bool:
    if wanted in program.id:
        return True
    if program.session is None and not program.former_ids:
        return False
    return any(wanted in id.lower() for id in (program.session or "", *program.former_ids))


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


def _members(program: Program) -> list[ProgramCall]:
    """Return the remembered calls of a program in the order of their requests."""
    return sorted(program.calls.values(), key=lambda member: member.begun)


def _graph_pieces(program: Program, index: ProgramIndex, services: Services) -> Iterator[bytes]:
    """Yield a ProgramGraph in pieces. The program may change meanwhile; calls are those of the start."""
    members = _members(program)
    outputs = {member.id: f"answer_{member.id.removeprefix('call_')}" for member in members}
    inputs: dict[str, list[str]] = {}
    readers: dict[str, list[str]] = {name: [] for name in outputs.values()}
    calls: list[CallObject] = []

    def described() -> Iterator[CallObject]:
        for member in members:
            names = dict.fromkeys([outputs[edge.source] for edge in member.edges if edge.source in outputs])
            for name in names:
                readers[name].append(member.id)
            inputs[member.id] = list(names)
            calls.append(_describe_call(member, outputs[member.id], inputs[member.id], services))
            yield calls[-1]

    yield encode_json({**describe_program(program, services), "last_event_id": 0})[:-1] + b","
    yield from json_list("calls", described())
    yield b","
    names = zip(calls, outputs.values(), strict=True)
    yield from json_list("variables", (_describe_answer(call, name, readers[name]) for call, name in names))
    yield b","
    reads: Iterator[Edge] = ({"from": name, "to": id} for id, names in inputs.items() for name in names)
    answers: Iterator[Edge] = ({"from": id, "to": name} for id, name in outputs.items())
    yield from json_list("edges", itertools.chain(reads, answers))
    yield b","
    yield from json_list("links", (link for member in members for link in _links(member, program, index)))
    yield b"}"


def _drawn_pieces(program: Program, index: ProgramIndex, services: Services) -> Iterator[bytes]:
    """Yield the calls of a program, with the links as edges, in pieces of a GraphObject."""
    members = _members(program)
    yield b"{"
    yield from json_list("calls", (_describe_call(member, "", [], services) for member in members))
    yield b',"variables":[],'
    yield from json_list("edges", (link for member in members for link in _links(member, program, index)))
    yield b"}"


def _links(member: ProgramCall, program: Program, index: ProgramIndex) -> Iterator[ProgramLink]:
    for edge in member.edges:
        source = program.calls.get(edge.source)
        other = program if source is not None else index.find(program.tenant, edge.program)
        ended = None if source is None else source.ended
        yield {
            "from": edge.source,
            "to": member.id,
            "kind": edge.kind,
            "characters": edge.length,
            "gap_ms": None if ended is None else round(1e3 * max(0.0, member.begun - ended), 1),
            "program": edge.program if other is None else other.id,
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
