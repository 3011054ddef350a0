"""Translate the `calls` of a graph: bodies of chat completions, and forms."""

import asyncio
import dataclasses
import secrets
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel

from compat.openai import (
    FORM_KEYS,
    MAX_BODY,
    AgentForm,
    AgentOptions,
    BranchForm,
    ChatCompletionRequest,
    ConditionRequest,
    MapForm,
    RepeatForm,
    ToolForm,
)
from gateway.api.openai.chat import ChatSpecBuilder
from gateway.api.pipeline import build_spec
from gateway.api.semantic.extension import text_of
from gateway.api.semantic.maps import map_form
from gateway.api.semantic.tool_forms import ToolFormBuilder, limits_of
from gateway.api.services import SERVICES, models_of
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.graph.dag import order_calls
from gateway.graph.errors import Cycle, TooLarge
from gateway.graph.forms.expansion import own_names
from gateway.graph.forms.form import INDEX, Branch, Condition, Form, Map, Repeat, references_of
from gateway.graph.references import EVERY_NAME, Reference, check_name, check_references, parse
from gateway.graph.segments import Input, Slot
from gateway.http.json_body import validate_async
from gateway.http.middleware.auth import TENANT
from gateway.runtime import regex as patterns
from gateway.runtime.json_codec import encode_json

_MAX_REFERENCES = 100_000
"""Maximum number of references in all calls of one graph."""
_MAX_DEPTH = 8
"""Maximum number of forms inside each other."""
_MAX_AGENTS = 100
"""Maximum number of agents in one graph. The server reads the descriptions of an agent's tools for its first prompt."""
_BATCH = 20
"""Number of calls that are read before other requests get a turn."""
_SEED_BITS = 31
_CALLS = ("call", "calls", "then", "else")
"""Fields of forms with calls."""

_Schema = TypeVar("_Schema", bound=BaseModel)


class GraphCallBuilder:
    """Builder of the calls of one graph. Raises RequestError and GraphError for the first invalid call."""

    def __init__(self, request: web.Request, session: str | None, known: Container[str], average: int) -> None:
        """`session`: id that the graph names. `known`: names of the variables of the session and of the request.
        `average`: size of a call in the request, in bytes."""
        self._request = request
        self._session = session
        self._known = known
        self._average = average
        self._models = models_of(request)
        self._tools = ToolFormBuilder(request.app[SERVICES].tools, request[TENANT])
        self._references = 0
        self._count = 0
        self._agents = 0

    async def build_all(self, calls: Sequence[Any]) -> list[CallSpec]:
        """Return the calls in the order of the request."""
        made = _Names(self._known, raw_names(calls))
        specs = [await self._build(raw, f"calls.{index}", made) for index, raw in enumerate(calls)]
        return with_seeds(specs)

    async def _build(self, raw: Any, where: str, known: Container[str], depth: int = 0) -> CallSpec:
        """Return the call of an entry. `known`: names that it may read. `depth`: number of forms around it."""
        self._count += 1
        if self._count % _BATCH == 0:
            await asyncio.sleep(0)
        kind = form_key(raw)
        if kind is None:
            spec = await self._chat(raw, where, is_inner=depth > 0)
        elif depth == _MAX_DEPTH:
            message = f"forms are nested more than {_MAX_DEPTH} times"
            raise RequestError(400, message, code="unsupported_with_semantic", param=where)
        elif kind == "map":
            spec = await self._map(raw, where, known, depth)
        elif kind == "if":
            spec = await self._branch(raw, where, known, depth)
        elif kind == "repeat":
            spec = await self._repeat(raw, where, known, depth)
        elif kind == "tool":
            spec = await self._tool(raw, where)
        else:
            spec = await self._agent(raw, where)
        if not depth:
            self._references += len(spec.references)
            check_references(self._references, _MAX_REFERENCES, where)
        return spec

    async def _check_form(self, raw: Any, schema: type[_Schema], where: str) -> _Schema:
        """Validate an entry with a form. The error for another field lists those of the form."""
        fields = [field.alias or name for name, field in schema.model_fields.items()]
        other = next((key for key in raw if key not in fields), None)
        if other is not None:
            path = f"{where}.{other[:40]}"
            message = f"{path!r} is not supported: an entry with {form_key(raw)!r} may have {', '.join(fields)}"
            raise RequestError(400, message, code="unsupported_parameter", param=path)
        return await self._check(raw, schema, where)

    async def _check(self, raw: Any, schema: type[_Schema], where: str) -> _Schema:
        # the calls inside a form are checked later, one by one
        return await validate_async(self._request, raw, schema, encode_json(_without_calls(raw)), where)

    async def _chat(self, raw: Any, where: str, *, is_inner: bool) -> CallSpec:
        if isinstance(raw, dict) and "messages" not in raw and "model" not in raw:
            names = f"{', '.join(FORM_KEYS[:-1])} and {FORM_KEYS[-1]}"
            found = ", ".join(repr(key[:40]) for key in list(raw)[:5]) or "no field"
            message = f"{where} has {found}: it must have `messages`, or one of {names}"
            raise RequestError(400, message, code="invalid_value", param=where)
        chat = await self._check(raw, ChatCompletionRequest, where)
        semantic = chat.semantic
        if chat.stream:
            raise _unsupported("a call of a graph cannot be streamed; stream the graph instead", f"{where}.stream")
        if chat.choice_count > 1:
            raise _unsupported("n must be 1 for a call of a graph, which has one answer", f"{where}.n")
        if semantic is not None and semantic.session not in (None, self._session):
            message = f"the call names session {semantic.session!r}, but the graph names {self._session!r}"
            raise RequestError(400, message, code="session_conflict", param=f"{where}.semantic.session")
        if semantic is not None and semantic.each is not None:
            message = "a call of a graph has no semantic.each; use the form map"
            raise _unsupported(message, f"{where}.semantic.each")
        if is_inner and semantic is not None and semantic.inputs:
            message = "a call of a form has no inputs of its own; set them in the graph's variables"
            raise _unsupported(message, f"{where}.semantic.inputs")
        model = await self._models.get(chat.model, where)
        deferred = semantic is not None and bool(semantic.defer) and not is_inner
        length = sum([message.length for message in chat.messages])
        builder = ChatSpecBuilder(chat, references=EVERY_NAME, deferred=deferred, where=where)
        return await build_spec(builder, model, self._models.fallbacks_of(model), max(length, self._average))

    async def _map(self, raw: Any, where: str, known: Container[str], depth: int) -> CallSpec:
        body = await self._check_form(raw, MapForm, where)
        inner = body.map.call
        if raw_output(inner) is not None:
            message = "the answers of a map's call are named after the map's output; leave this name out"
            field = "semantic.output" if form_key(inner) is None else "output"
            raise _unsupported(message, f"{where}.map.call.{field}")
        names = _Names(known, {body.map.as_, INDEX})
        call = await self._build(inner, f"{where}.map.call", names, depth + 1)
        for name in (body.map.as_, INDEX):
            if name in call.names:
                message = f"the call of the map generates {name!r}, which is a name of the element; choose another one"
                raise RequestError(400, message, code="variable_already_set", param=f"{where}.map.as")
        return self._spec(map_form(body.map, call, f"{where}.map"), where, body.output)

    async def _branch(self, raw: Any, where: str, known: Container[str], depth: int) -> CallSpec:
        body = await self._check_form(raw, BranchForm, where)
        then = await self._body(body.then, f"{where}.then", known, depth)
        otherwise = await self._body(body.else_, f"{where}.else", known, depth)
        condition = _condition(body.if_, f"{where}.if")
        default = None if body.default is None else text_of(body.default)
        form = Branch(condition, then, otherwise, default)
        *more, output = own_names([*form.otherwise, *form.then])
        for part in references_of(form):
            if part.reference.name in (output, *more):
                message = f"{part.reference} is an output of the branch, but not of a call on this side of it"
                raise Cycle(message, part.where)
        return self._spec(form, where, output, more)

    async def _repeat(self, raw: Any, where: str, known: Container[str], depth: int) -> CallSpec:
        body = await self._check_form(raw, RepeatForm, where)
        repeat, place = body.repeat, f"{where}.repeat"
        inner = _Names(known, repeat.carry)
        calls = await self._body(repeat.calls, f"{place}.calls", inner, depth)
        made = own_names(calls)
        for name in repeat.carry:
            field = f"{place}.carry.{name}"
            check_name(name, field)
            if name in made:
                message = f"{name!r} is the output of a call of the repeat; carry it under another name"
                raise RequestError(400, message, code="variable_already_set", param=field)
        for index, name in enumerate(body.outputs):
            if name not in made and name not in repeat.carry:
                message = f"no call of the repeat generates {name!r}, and it is not carried"
                raise RequestError(400, message, code="unknown_variable", param=f"{where}.outputs.{index}")
        before = [name for name in repeat.carry if name in known and name not in body.outputs]
        first = {name: self._first(name, repeat.start, before, f"{place}.start.{name}") for name in repeat.carry}
        carry = {name: _template(text, f"{place}.carry.{name}") for name, text in repeat.carry.items()}
        until = _condition(repeat.until, f"{place}.until")
        form = Repeat(calls, first, carry, until, repeat.max, body.outputs, repeat.on_max)
        *more, output = body.outputs
        return self._spec(form, where, output, more)

    def _first(self, name: str, start: Mapping[str, Any], known: Container[str], where: str) -> Sequence[str | Input]:
        """Return the text of a carried name in the first round: that of `start`, or the variable of that name."""
        if name in start:
            return _template(text_of(start[name]), where)
        return [Input(Reference(name), where)] if name in known else []

    async def _body(self, calls: Sequence[Any], where: str, known: Container[str], depth: int) -> list[CallSpec]:
        """Return the calls of a branch's side or of a round, whose names must differ."""
        inner = _Names(known, raw_names(calls))
        specs = []
        seen: set[str] = set()
        for index, raw in enumerate(calls):
            place = f"{where}.{index}"
            spec = await self._build(raw, place, inner, depth + 1)
            if spec.output is None:
                field = "semantic.output" if form_key(raw) is None else "output"
                message = f"a call inside a branch or a repeat needs a name for its answer: set {field}"
                raise RequestError(400, message, code="invalid_value", param=f"{place}.{field}")
            for name in spec.names:
                check_name(name, place)
                if name in seen:
                    message = f"{name!r} is the output of two calls"
                    raise RequestError(409, message, code="variable_already_set", param=place)
                seen.add(name)
            specs.append(spec)
        _check_order(specs)
        return specs

    async def _tool(self, raw: Any, where: str) -> CallSpec:
        body = await self._check_form(raw, ToolForm, where)
        return self._spec(await self._tools.tool(body.tool, f"{where}.tool"), where, body.output)

    async def _agent(self, raw: Any, where: str) -> CallSpec:
        self._agents += 1
        if self._agents > _MAX_AGENTS:
            raise TooLarge(f"the graph has more than {_MAX_AGENTS} agents", where)
        body = await self._check_form(raw, AgentForm, where)
        place = f"{where}.agent"
        own = {key: value for key, value in body.agent.items() if key in AgentOptions.model_fields}
        options = await self._check(own, AgentOptions, place)
        if options.limits is not None and options.limits.cost is not None:
            self._request.app[SERVICES].check_limits(limits_of(options.limits))
        chat = {key: value for key, value in body.agent.items() if key not in AgentOptions.model_fields}

        async def build(chat: dict[str, Any]) -> CallSpec:
            return await self._chat(chat, place, is_inner=True)

        return self._spec(await self._tools.agent(chat, options, build, place), where, body.output)

    def _spec(self, form: Form, where: str, output: str | None, more: Sequence[str] = ()) -> CallSpec:
        return CallSpec(model="", form=form, output=output, more_outputs=more, where=where)


class _Names:
    """Names of an outer scope and of an inner one."""

    def __init__(self, outer: Container[str], inner: Container[str]) -> None:
        self._outer = outer
        self._inner = inner

    def __contains__(self, name: object) -> bool:
        return name in self._inner or name in self._outer


def form_key(raw: Any) -> str | None:
    """Return the key that makes an entry of `calls` a form; None for the body of a chat completion."""
    if not isinstance(raw, dict) or "messages" in raw:
        return None
    return next((key for key in FORM_KEYS if key in raw), None)


def _without_calls(raw: Any) -> Any:
    """Return an entry of `calls` without the calls inside it."""
    kind = form_key(raw)
    if kind is None:
        return raw
    parts = {key: value for key, value in raw.items() if key not in _CALLS}
    if isinstance(raw[kind], dict):
        parts[kind] = {key: value for key, value in raw[kind].items() if key not in _CALLS}
    return parts


def raw_names(calls: Iterable[Any]) -> set[str]:
    """Return the names that entries of `calls` generate, before they are checked."""
    return {name for raw in calls for name in _raw_names(raw) if isinstance(name, str)}


def raw_output(raw: Any) -> Any:
    """Return the name of the output of an entry of `calls`, before it is checked; None if it has none."""
    if not isinstance(raw, dict):
        return None
    holder = raw.get("semantic") if form_key(raw) is None else raw
    return holder.get("output") if isinstance(holder, dict) else None


def _raw_names(raw: Any, depth: int = 0) -> Iterator[Any]:
    """Yield what may be names of an entry. `depth`: number of branches around it; deeper ones are refused later."""
    yield raw_output(raw)
    if not isinstance(raw, dict):
        return
    outputs, semantic = raw.get("outputs"), raw.get("semantic")
    if isinstance(outputs, list):
        yield from outputs
    if isinstance(semantic, dict) and isinstance(semantic.get("slots"), dict):
        yield from semantic["slots"]
    if isinstance(semantic, dict) and isinstance(semantic.get("inputs"), dict):
        yield from semantic["inputs"]
    if form_key(raw) == "if" and depth < _MAX_DEPTH:
        for side in (raw.get("then"), raw.get("else")):
            if isinstance(side, list):
                for call in side[:MAX_BODY]:
                    yield from _raw_names(call, depth + 1)


def with_seeds(specs: Sequence[CallSpec]) -> list[CallSpec]:
    """Give calls that generate the list of a map a random seed, if they sample without one.

    A map adds calls while its list is generated. If the server stops meanwhile, the list is generated again, and has to
    be the same.
    """
    lists = {
        spec.form.over.reference.name
        for spec in specs
        if isinstance(spec.form, Map) and isinstance(spec.form.over, Input)
    }
    return [
        _with_seed(spec) if not spec.is_deterministic and not lists.isdisjoint(spec.names) else spec for spec in specs
    ]


def _with_seed(spec: CallSpec) -> CallSpec:
    seed = secrets.randbits(_SEED_BITS)

    def seeded(segment: Any) -> Any:
        if not isinstance(segment, Slot) or segment.sampling.is_deterministic:
            return segment
        return dataclasses.replace(segment, sampling=dataclasses.replace(segment.sampling, seed=seed))

    return dataclasses.replace(
        spec,
        segments=[seeded(segment) for segment in spec.segments],
        fallbacks=[
            dataclasses.replace(rendering, segments=[seeded(segment) for segment in rendering.segments])
            for rendering in spec.fallbacks
        ],
    )


def _template(text: str, where: str) -> list[str | Input]:
    return [Input(part, where) if isinstance(part, Reference) else part for part in parse(text)]


def _condition(body: ConditionRequest, where: str) -> Condition:
    """Return a condition. Raises RequestError if its pattern cannot be run."""
    value = _template(body.value, f"{where}.value")
    if body.equals is not None:
        return Condition(value, "equals", encode_json(body.equals).decode())
    if body.in_ is not None:
        return Condition(value, "in", encode_json(body.in_).decode())
    if body.less_than is not None:
        return Condition(value, "less_than", encode_json(body.less_than).decode())
    if body.matches is None:
        return Condition(value, "json", encode_json(body.json_).decode())
    try:
        patterns.compiled(body.matches)
    except patterns.BadPattern as error:
        param = f"{where}.matches"
        raise RequestError(400, f"{param}: {error}", code="invalid_value", param=param) from None
    return Condition(value, "matches", encode_json(body.matches).decode())


def _check_order(specs: Sequence[CallSpec]) -> None:
    """Raise Cycle if calls of a form would wait for each other, which would show only when they are added."""
    outputs = [spec.names for spec in specs]
    produced = {name: index for index, names in enumerate(outputs) for name in names}
    reads = []
    for spec in specs:
        own = set(spec.names)
        places = {part.reference.name: part.where for part in reversed(spec.references)}
        reads.append({name: where for name, where in places.items() if name in produced and name not in own})
    order_calls(specs, outputs, reads, produced, {}, len(specs))


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(400, message, code="unsupported_with_semantic", param=param)
