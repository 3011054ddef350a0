"""Run a whole graph of calls, and show the graph of a session."""

import asyncio
import bisect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from aiohttp import web

from compat.openai import (
    CallObject,
    Edge,
    GraphAnswer,
    GraphObject,
    GraphRequest,
    VariableObject,
    VariableRequest,
)
from gateway.api.pipeline import join_trace
from gateway.api.semantic.diagrams import dot, mermaid
from gateway.api.semantic.events import describe_event
from gateway.api.semantic.extension import (
    AGENT_SESSION_HEADER,
    CALL_HEADERS,
    SESSION_HEADER,
    describe_failure,
    describe_variable,
    find_named_session,
)
from gateway.api.semantic.graph_calls import GraphCallBuilder
from gateway.api.semantic.sessions import session_of
from gateway.api.semantic.time_spent import time_spent
from gateway.api.semantic.tool_forms import limits_of
from gateway.api.semantic.variables import variable_spec
from gateway.api.serializers.base import usage_of
from gateway.api.services import SERVICES, Services
from gateway.api.subscription import subscribed
from gateway.errors import RequestError
from gateway.graph.call import Call, CallSpec, CallState, Objective, Usage
from gateway.graph.events import CallChanged, VariableChanged
from gateway.graph.forms.form import ToolRun, form_name
from gateway.graph.prefix_hash import prefix_hashes
from gateway.graph.session import Addition, Session, VariableSpec
from gateway.graph.variable import Variable
from gateway.http.json_body import read_json, validate
from gateway.http.json_stream import json_list, stream_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import EVENTS, operation
from gateway.http.query_params import choice_param, int_param, parse_bool
from gateway.http.sse import HEARTBEAT_WITH_IDS, EventStream, named_event
from gateway.runtime.json_codec import encode_json
from gateway.scheduler.objective import objectives_of

routes = web.RouteTableDef()

_MAX_REASONS = 20
"""Maximum number of missing inputs that the reason of a wait names: a map may wait for thousands."""
_BATCH = 20
"""Number of pieces of a document that are read before other requests get a turn."""


@routes.post("/v1/graphs")
@operation(
    GraphAnswer,
    body=GraphRequest,
    others={EVENTS: None},
    headers={name: CALL_HEADERS[name] for name in (SESSION_HEADER, AGENT_SESSION_HEADER)},
    errors=(404, 409, 410, 429, 503),
)
async def run(request: web.Request) -> web.StreamResponse:
    """Run a graph of calls.

    The whole graph is checked before any call starts. The answer has the outputs, or is a stream of the events.
    """
    services = request.app[SERVICES]
    body = await read_json(request, GraphRequest)
    variables = [_variable_spec(name, value) for name, value in body.variables.items()]
    session = find_named_session(request, body.session, "session")
    known = {*body.variables, *(() if session is None else session.variables)}
    average = len(await request.read()) // max(1, len(body.calls))
    builder = GraphCallBuilder(request, None if session is None else session.id, known, average)
    specs = await builder.build_all(body.calls)
    services.scheduler.admit(request[TENANT], continues=session is not None and bool(session.calls))
    await services.accounts.make_room(request[TENANT])
    is_new = session is None
    limits = limits_of(body.limits)
    if limits is not None and session is not None:
        message = "limits belong to a session: set them when you create it, or name no session for this graph"
        raise RequestError(400, message, code="unsupported_with_semantic", param="limits")
    services.check_limits(limits)
    session = session or services.sessions.create(request[TENANT], limits=limits)
    try:
        if body.outputs is not None:
            _check_outputs(body.outputs, session, specs, variables)
        fact_count = session.event_log.fact_count
        addition = session.add_all(specs, variables)
    except Exception:
        if is_new:
            services.sessions.delete(session)
        raise
    join_trace(request, services, addition.calls)
    graph = SubmittedGraph(session, addition, body.outputs, fact_count)
    return await graph.run(request, stream=body.stream)


def _variable_spec(name: str, value: Any) -> VariableSpec:
    where = f"variables.{name}"
    if isinstance(value, dict) and len(value) == 1 and ("value" in value or "template" in value):
        return variable_spec(validate(value, VariableRequest, where), name, where)
    return variable_spec(VariableRequest(value=value), name, where)


def _check_outputs(
    outputs: Sequence[str], session: Session, specs: Sequence[CallSpec], variables: Sequence[VariableSpec]
) -> None:
    """Raise GraphError if an output is neither in the request nor in the session."""
    names: set[str | None] = {variable.name for variable in variables}
    names |= {name for spec in specs for name in (*spec.names, *spec.inputs)}
    for index, name in enumerate(outputs):
        if name not in names:
            session.variable(name, f"outputs.{index}")


class SubmittedGraph:
    """A graph that was submitted, while its client waits."""

    def __init__(self, session: Session, addition: Addition, outputs: Sequence[str] | None, fact_count: int) -> None:
        """`outputs`: names of the variables that the client requests; if left out, those that no call reads.
        `fact_count`: number of facts of the session before the addition."""
        self._session = session
        self._addition = addition
        self._fact_count = fact_count
        if outputs is None:
            made = [variable for call in addition.calls for variable in _results(call)]
            unread = [variable for variable in made if not variable.consumers]
            self._outputs = {variable.name: variable for variable in unread}
        else:
            self._outputs = {name: session.variable(name) for name in outputs}

    async def run(self, request: web.Request, *, stream: bool) -> web.StreamResponse:
        """Start the calls and answer. Calls whose outputs are not needed do not run. If the client disconnects, all are
        cancelled."""
        scheduler, outputs = request.app[SERVICES].scheduler, self._outputs.values()
        with subscribed(scheduler, outputs, interactive=len(outputs) == 1):
            await scheduler.start(self._session, self._addition, promised=True)
            for call in self._addition.calls:
                scheduler.release(call.output)
            if stream:
                return await self._stream(EventStream(request, lambda: HEARTBEAT_WITH_IDS))
            for variable in outputs:
                await variable.wait_final()
            return await stream_json(request, self._pieces())

    async def _stream(self, stream: EventStream) -> web.StreamResponse:
        """Stream the events of the graph, then the answer."""
        own: set[Call | Variable] = {*self._addition.calls, *(variable for variable, _ in self._addition.values)}
        own |= {variable for call in self._addition.calls for variable in call.outputs}
        position = self._fact_count
        while position < self._session.event_log.last_id or not all(
            variable.state.is_final for variable in self._outputs.values()
        ):
            events = await stream.with_heartbeats(partial(self._session.event_log.next_events, position))
            if not events:
                break
            position = events[-1].id
            lines = []
            for event in events:
                match event.change:
                    case CallChanged(subject) | VariableChanged(subject) if self._is_own(subject, own):
                        lines.append(named_event(*describe_event(event), event.id))
            await stream.write(b"".join(lines))
        return await stream.end(named_event("graph", self._answer()), done=False)

    def _is_own(self, subject: Call | Variable, own: set[Call | Variable]) -> bool:
        """Return whether a call or variable is part of the graph. Calls that forms add are: they join `own`."""
        if subject in own:
            return True
        call = subject if isinstance(subject, Call) else subject.producer
        origin = None if call is None else call.spec.origin
        if call is None or origin is None or self._session.calls.get(origin.call) not in own:
            return False
        own.update((call, *call.outputs))
        return True

    def _pieces(self) -> Iterator[bytes]:
        """Yield the answer in pieces: the values may be as large as a session."""
        answer = self._answer()
        outputs = answer.pop("outputs")  # type: ignore[misc]
        yield encode_json(answer)[:-1] + b',"outputs":{'
        for number, (name, value) in enumerate(outputs.items()):
            yield (b"," if number else b"") + encode_json(name) + b":" + encode_json(value)
        yield b"}}"

    def _answer(self) -> GraphAnswer:
        values = {name: variable.value for name, variable in self._outputs.items()}
        errors = {
            name: describe_failure(variable.failure)
            for name, variable in self._outputs.items()
            if not variable.has_value
        }
        prefilled = [
            call for call in _with_children(self._addition.calls) if call.leader is None and call.times.started
        ]
        usage = usage_of([call.usage for call in prefilled])
        answer: GraphAnswer = {"session": self._session.id, "outputs": values, "usage": usage}
        if errors:
            answer["errors"] = errors
        return answer


def _results(call: Call) -> Sequence[Variable]:
    """Return the variables that are the results of a call, if no other call reads them."""
    return [call.output] if call.spec.form is None else call.outputs


def _with_children(calls: Sequence[Call]) -> Iterator[Call]:
    """Yield calls, and the calls that their forms have added."""
    stack = list(reversed(calls))
    while stack:
        call = stack.pop()
        yield call
        stack += call.children.values()


@routes.get("/v1/sessions/{id}/graph")
@operation(
    GraphObject,
    others={"text/plain": None, "text/vnd.graphviz": None},
    query={
        "format": {"type": "string", "enum": ["json", "mermaid", "dot"]},
        "fold": {
            "type": "boolean",
            "description": "in a diagram, draw each form as one node instead of a box around its calls",
        },
        "values": {"type": "string", "enum": ["full", "none"]},
        "after": {"type": "integer", "minimum": 0},
    },
    errors=(400, 404, 410, 503),
)
async def graph(request: web.Request) -> web.StreamResponse:
    """Return the calls, the variables and the edges between them; as JSON, or as text for mermaid or Graphviz.

    With `after`, only those that changed after the event of this id. With `values=none`, values of variables are null.
    With `fold`, a diagram has one node for each form; the JSON has all calls.
    """
    session = session_of(request)
    form = choice_param(request, "format", ("json", "mermaid", "dot"))
    has_values = choice_param(request, "values", ("full", "none")) == "full"
    after = int_param(request, "after", 0, minimum=0)
    fold = parse_bool(request.query.get("fold"), "fold", param="fold")
    pieces = _graph_pieces(session, request.app[SERVICES], after, has_values=has_values)
    return await send_graph(request, form, pieces, fold=fold)


async def send_graph(
    request: web.Request, form: str, pieces: Iterator[bytes], *, fold: bool = False
) -> web.StreamResponse:
    """Answer with a GraphObject, of which `pieces` is the JSON; with another `form`, as text for mermaid or Graphviz.
    Other requests get turns while the graph is read. `fold`: see `mermaid`."""
    if form == "json":
        return await stream_json(request, pieces)
    document = bytearray()
    for number, piece in enumerate(pieces):
        document += piece
        if number % _BATCH == 0:
            await asyncio.sleep(0)
    return await asyncio.to_thread(_draw, bytes(document), form, fold=fold)


def _draw(document: bytes, form: str, *, fold: bool) -> web.Response:
    """Return a GraphObject as text for mermaid or Graphviz."""
    graph = json.loads(document)  # `decode_json` has limits for what clients send
    if form == "mermaid":
        return web.Response(text=mermaid(graph, fold=fold))
    return web.Response(text=dot(graph, fold=fold), content_type="text/vnd.graphviz")


def _graph_pieces(session: Session, services: Services, after: int, *, has_values: bool) -> Iterator[bytes]:
    """Yield a GraphObject in pieces. The session may change meanwhile; calls and variables are those of the start."""
    calls, variables = list(session.calls.values()), list(session.variables.values())
    objectives = objectives_of(calls)
    last = session.event_log.last_id
    if after:
        changed = _changed_after(session, after)
        calls = [call for call in calls if call in changed]
        variables = [variable for variable in variables if variable in changed]
    spent = time_spent(session, calls)
    yield b'{"last_event_id":%d,' % last
    yield from json_list("calls", (_call_object(call, services, objectives[call.id], spent[call.id]) for call in calls))
    yield b","
    describe = describe_variable if has_values else _describe_without_value
    yield from json_list("variables", map(describe, variables))
    yield b","
    yield from json_list("edges", (edge for call in calls for edge in _edges(call)))
    yield b"}"


def _changed_after(session: Session, after: int) -> set[Call | Variable]:
    """Return the calls and variables that changed after the event of this id. A variable also changes when a new call
    reads it, and a call when it gets an input."""
    events = session.event_log.events
    changed: set[Call | Variable] = set()
    for event in events[bisect.bisect_right(events, after, key=lambda event: event.id) :]:
        match event.change:
            case CallChanged(call):
                changed.add(call)
                changed.update(call.inputs.values())
            case VariableChanged(variable, state):
                changed.add(variable)
                if state.is_final:
                    changed.update(variable.consumers)
    return changed


def _describe_without_value(variable: Variable) -> VariableObject:
    return {**describe_variable(variable), "value": None}


def _call_object(call: Call, services: Services, objective: Objective, spent: dict[str, float]) -> CallObject:
    described: CallObject = {
        "id": call.id,
        "model": call.spec.model,
        "state": call.state,
        "waiting_on": call.waiting_on,
        "why": blocking_reason(call),
        "waits_for": call.waits_for,
        "inputs": list(call.inputs),
        "output": call.output.name,
        "slots": list(call.slots),
        "form": None if call.spec.form is None else form_name(call.spec.form),
        "tool": tool_label(call),
        "parent": None if call.spec.origin is None else call.spec.origin.call,
        "shared_with": call.leader.id if call.leader else None,
        "objective": objective,
        "priority": services.scheduler.rank(call),
        "engine": call.engine,
        "prompt_tokens": call.usage.prompt,
        "cached_tokens": call.usage.cached,
        "missed_tokens": missed_tokens(call.usage),
        "completion_tokens": call.usage.completion,
        "finish_reason": call.finish_reason,
        "error": describe_failure(call.failure),
        "prefix_hashes": prefix_hashes(call),
        "created": call.times.created,
        "queued": call.times.queued,
        "started": call.times.started,
        "first_token": call.times.first_token,
        "finished": call.times.finished,
        "spent_ms": {phase: round(1e3 * seconds, 1) for phase, seconds in spent.items()},
    }
    if services.prices:
        described["cost"] = services.prices.cost_of_call(call)
    return described


def tool_label(call: Call) -> str | None:
    """Return the server and the name of the tool that the call runs; None if it runs none."""
    form = call.spec.form
    return f"{form.server}/{form.name}" if isinstance(form, ToolRun) else None


def missed_tokens(usage: Usage) -> dict[str, int]:
    """Return the tokens of the prompt that were not in the cache, by reason. They do not reveal that the
    prompt of another API key had the same tokens."""
    missed = Counter(usage.missed)
    missed["never_seen"] += missed.pop("other_key", 0)
    return {reason: tokens for reason, tokens in missed.items() if tokens}


def blocking_reason(call: Call) -> str | None:
    """Return the reason why the call does not generate its next token; None if there is none."""
    if waiting := [call.inputs[name] for name in call.waiting_on]:
        more = f"; and {len(waiting) - _MAX_REASONS} more" if len(waiting) > _MAX_REASONS else ""
        return "; ".join(map(_missing_input, waiting[:_MAX_REASONS])) + more
    if call.leader is not None and not call.state.is_final:
        return f"coalesced with the identical call {call.leader.id}, which is {call.leader.state}"
    match call.state:
        case CallState.QUEUED:
            return "queued: no engine has accepted it yet"
        case CallState.PREFILL:
            return f"engine {call.engine} is prefilling its prompt, or prompts with a higher priority"
        case CallState.RUNNING:
            return f"tool {tool_label(call)} is running"
    return None


def _missing_input(source: Variable) -> str:
    if source.producer is None:
        return f"{source.name} is declared, and no call or client has assigned it yet"
    return f"{source.name} is {source.state}: its producer {source.producer.id} is {source.producer.state}"


def _edges(call: Call) -> list[Edge]:
    reads: list[Edge] = [{"from": name, "to": call.id} for name in call.inputs]
    outputs: list[Edge] = [{"from": call.id, "to": variable.name} for variable in call.outputs]
    return [*reads, *outputs]
