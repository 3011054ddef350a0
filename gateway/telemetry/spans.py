"""Describe calls as spans of OpenTelemetry, in the JSON form of its protocol OTLP.

A session is a trace, or the call joins the trace that its request names. A call is a span with links to the calls whose
outputs it read. It has a child for each phase: each time that it waited or worked. If a call had several attempts, its
children are the attempts, and the phases are theirs.

A form is a span that contains the spans of the calls that it adds. It has no token counts: those calls have them. A
tool has a child span for its run.

Attributes have the names of the semantic conventions for generative AI (opentelemetry.io/docs/specs/semconv/gen-ai).
The project's own names begin with `myna.`.
"""

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

from gateway.graph.call import Call, FailedAttempt, Times
from gateway.graph.forms.form import Agent, Form, ToolRun, form_name
from gateway.graph.trace_context import TraceContext
from gateway.telemetry.otlp_json import (
    INTERNAL,
    SERVER,
    error_status,
    interval,
    number_attribute,
    quote,
    text_attribute,
)

_ATTEMPT_IDS = 16
"""Distance between the ids of a call's attempts. The ids between them are for the phases of an attempt."""
_SAMPLING = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


def context_of(call: Call) -> TraceContext:
    """Return the position of a call's span. It depends only on the call, so that other spans can link to it."""
    trace = trace_of(call)
    trace_id = trace.trace_id if trace is not None else _session_trace(call)
    return TraceContext(trace_id, _own_id(call))


def trace_of(call: Call) -> TraceContext | None:
    """Return the span that a call joined by its request. A call that a form has added is in the trace of the form."""
    outer: Call | None = call
    while outer is not None and outer.trace is None:
        outer = _form_of(outer)
    return None if outer is None else outer.trace


def _form_of(call: Call) -> Call | None:
    """Return the call whose form added this one; None if no form did."""
    origin = call.spec.origin
    return None if origin is None else call.session.calls.get(origin.call)


def _own_id(call: Call) -> str:
    return blake2b(call.id.encode(), digest_size=8).hexdigest()


def traceparent_of(call: Call) -> str:
    """Return the header that makes the requests for a call parts of its span, or of the span of the current attempt if
    an attempt has failed before."""
    context, trace = context_of(call), trace_of(call)
    sampled = trace is None or trace.sampled
    if not call.failed_attempts:
        return context._replace(sampled=sampled).traceparent
    span_id = _span_id(int(context.span_id, 16) + _ATTEMPT_IDS * (1 + len(call.failed_attempts)))
    return context._replace(span_id=span_id, sampled=sampled).traceparent


def _session_trace(call: Call) -> str:
    session = call.session
    key = f"{session.tenant}\0{session.id}\0{session.created}" if session.id else call.id
    return blake2b(key.encode(), digest_size=16).hexdigest()


def encode_spans(call: Call, texts: str = "") -> list[str]:
    """Return the spans of a call that has ended, each as JSON: its own, then those of its phases and attempts.

    `texts`: further attributes of the call, as JSON; see `text_attributes`.
    """
    context, times = context_of(call), call.times
    end = max(times.created, times.created if times.finished is None else times.finished)
    form, outer = call.spec.form, _form_of(call)
    parent_id = call.trace.span_id if call.trace is not None else None if outer is None else _own_id(outer)
    parent = "" if parent_id is None else f'"parentSpanId":"{parent_id}",'
    name, kind, attributes = _describe(call) if form is None else _describe_form(call, form)
    status = "" if call.failure is None else f",{error_status(call.failure.code)}"
    links, texts = _links(call), f",{texts}" if texts else ""
    spans = [
        f'{{"traceId":"{context.trace_id}","spanId":"{context.span_id}",{parent}'
        f'"name":{quote(name)},"kind":{kind},{interval(times.created, end)},'
        f'"attributes":[{attributes}{texts}]{links}{status}}}'
    ]
    if form is not None:
        if isinstance(form, ToolRun):
            _add_tool_run(spans, call, form, context, end)
    elif call.failed_attempts:
        _add_attempts(spans, call, context, end)
    else:
        _add_phases(spans, context, times, end)
    return spans


def _span_id(number: int) -> str:
    return f"{number % 2**64 or 1:016x}"


def _add_phases(spans: list[str], parent: TraceContext, times: Times, end: float) -> None:
    """Add a span for each phase that took time."""
    number = int(parent.span_id, 16)
    head, parent_field = f'{{"traceId":"{parent.trace_id}","spanId":"', f'","parentSpanId":"{parent.span_id}","name":"'
    for index, (name, start, stop) in enumerate(_phases(times, end), 1):
        if stop > start:
            span_id = f"{(number + index) % 2**64 or 1:016x}"
            spans.append(f'{head}{span_id}{parent_field}{name}","kind":{INTERNAL},{interval(start, stop)}}}')


def _add_tool_run(spans: list[str], call: Call, form: ToolRun, parent: TraceContext, end: float) -> None:
    """Add a span for the wait for the arguments, and one for the run of the tool."""
    times = call.times
    started = times.started if call.has_run_tool else None
    # as in `_phases`, a call that has not begun has only waited
    waited = Times(times.created, queued=end if started is None else started)
    _add_phases(spans, parent, waited, end if started is None else started)
    if started is None:
        return
    pieces = [
        text_attribute("gen_ai.operation.name", "execute_tool"),
        text_attribute("gen_ai.tool.name", form.name),
        text_attribute("gen_ai.tool.type", "extension"),
        _id_attribute("gen_ai.tool.call.id", call.id),
        text_attribute("myna.tool.server", form.server),
    ]
    status = ""
    if call.failure is not None:
        pieces.append(text_attribute("error.type", call.failure.code))
        status = f",{error_status(call.failure.code)}"
    spans.append(
        f'{{"traceId":"{parent.trace_id}","spanId":"{_span_id(int(parent.span_id, 16) + _ATTEMPT_IDS)}",'
        f'"parentSpanId":"{parent.span_id}","name":{quote(f"execute_tool {form.name}")},"kind":{INTERNAL},'
        f'{interval(started, end)},"attributes":[{",".join(pieces)}]{status}}}'
    )


def _add_attempts(spans: list[str], call: Call, parent: TraceContext, end: float) -> None:
    """Add a span for each attempt, with spans for its phases."""
    last_times = dataclasses.replace(call.times, created=call.failed_attempts[-1].times.finished or end, finished=end)
    code = "" if call.failure is None else call.failure.code
    last = FailedAttempt(call.engine, call.model or call.spec.model, code, last_times)
    for index, attempt in enumerate((*call.failed_attempts, last), 1):
        times = attempt.times
        began, ended = times.created, max(times.created, times.finished or end)
        span_id = _span_id(int(parent.span_id, 16) + _ATTEMPT_IDS * index)
        pieces = [number_attribute("myna.attempt", index), text_attribute("gen_ai.request.model", attempt.model)]
        if attempt.engine is not None:
            pieces.append(text_attribute("myna.engine", attempt.engine))
        if attempt.model != call.spec.model:
            pieces.append('{"key":"myna.fallback","value":{"boolValue":true}}')
        status = ""
        if attempt.code:
            pieces.append(text_attribute("error.type", attempt.code))
            status = f",{error_status(attempt.code)}"
        spans.append(
            f'{{"traceId":"{parent.trace_id}","spanId":"{span_id}","parentSpanId":"{parent.span_id}",'
            f'"name":"attempt {index}","kind":{INTERNAL},{interval(began, ended)},'
            f'"attributes":[{",".join(pieces)}]{status}}}'
        )
        # the inputs, or a first token that a client has seen, may be those of an attempt before
        own_times = dataclasses.replace(
            times,
            queued=None if times.queued is None else max(began, times.queued),
            started=None if times.started is None else max(began, times.started),
            first_token=None if times.first_token is None else max(began, times.first_token),
        )
        _add_phases(spans, parent._replace(span_id=span_id), own_times, ended)


def _phases(times: Times, end: float) -> Iterator[tuple[str, float, float]]:
    """Yield name, start and end of what a call or an attempt did."""
    queued = end if times.queued is None else times.queued
    yield "wait for inputs", times.created, queued
    if times.queued is None:
        return
    started = end if times.started is None else times.started
    yield "queue", queued, started
    if times.started is None:
        return
    first_token = end if times.first_token is None else times.first_token
    # the engine reports durations: the waits are shown at the beginning of the prefill
    memory = min(started + times.starved, first_token)
    step = min(memory + times.held, first_token)
    yield "wait for memory", started, memory
    yield "wait for a step", memory, step
    yield "prefill", step, first_token
    yield "decode", first_token, end


def _links(call: Call) -> str:
    producers = {
        variable.producer.id: variable.producer
        for variable in call.inputs.values()
        if variable.producer is not None and _form_of(variable.producer) is not call  # those are in the call's span
    }
    if call.leader is not None:
        producers[call.leader.id] = call.leader
    if not producers:
        return ""
    contexts = [context_of(producer) for producer in producers.values()]
    links = ",".join(f'{{"traceId":"{context.trace_id}","spanId":"{context.span_id}"}}' for context in contexts)
    return f',"links":[{links}]'


def _describe(call: Call) -> tuple[str, int, str]:
    """Return the name, the kind and the attributes of a call's span."""
    operation = "text_completion" if call.spec.prompt_field == "prompt" else "chat"
    return f"{operation} {call.spec.model}", SERVER, _attributes(call, operation)


def _describe_form(call: Call, form: Form) -> tuple[str, int, str]:
    """Return the name, the kind and the attributes of the span of a form."""
    name = form_name(form)
    pieces = [text_attribute("myna.form", name)]
    if isinstance(form, ToolRun):
        name = f"tool {form.server}/{form.name}"
    elif isinstance(form, Agent):
        name = "invoke_agent"
        pieces.append(text_attribute("gen_ai.operation.name", name))
        pieces.append(text_attribute("gen_ai.provider.name", "myna"))
        pieces.append(text_attribute("gen_ai.request.model", form.model))
    pieces.append(_id_attribute("myna.call.id", call.id))
    pieces.append(text_attribute("myna.call.state", call.state.value))
    pieces += _session_attributes(call)
    return name, INTERNAL, ",".join(pieces)


def _attributes(call: Call, operation: str) -> str:
    spec, usage = call.spec, call.usage
    pieces = [
        _fixed_attributes(operation, spec.model, call.model, call.engine, call.finish_reason),
        f'{{"key":"gen_ai.usage.input_tokens","value":{{"intValue":"{usage.prompt}"}}}},'
        f'{{"key":"gen_ai.usage.output_tokens","value":{{"intValue":"{usage.completion}"}}}},'
        f'{{"key":"gen_ai.usage.cache_read.input_tokens","value":{{"intValue":"{usage.cached}"}}}},'
        f'{{"key":"myna.call.id","value":{{"stringValue":"{call.id}"}}}},'
        f'{{"key":"myna.call.state","value":{{"stringValue":"{call.state.value}"}}}}',
    ]
    pieces += _session_attributes(call)
    if usage.reasoning:
        pieces.append(number_attribute("gen_ai.usage.reasoning.output_tokens", usage.reasoning))
    if spec.slots:
        for name, value in spec.slots[-1].sampling.specified.items():
            if name in _SAMPLING and value is not None:
                pieces.append(number_attribute(_SAMPLING[name], value))
    return ",".join(pieces)


def _id_attribute(key: str, id: str) -> str:
    """Return an attribute whose value is the id of a call, which needs no escapes."""
    return f'{{"key":"{key}","value":{{"stringValue":"{id}"}}}}'


def _session_attributes(call: Call) -> list[str]:
    """Return the attributes of a call of any kind: its place in a session or program, and its error."""
    pieces = []
    if call.session.id:
        pieces.append(text_attribute("gen_ai.conversation.id", call.session.id))
        pieces.append(text_attribute("myna.output", call.output.name))
    elif call.program is not None:
        pieces.append(text_attribute("gen_ai.conversation.id", call.program.program_id))
    if call.leader is not None:
        pieces.append(text_attribute("myna.shared_with", call.leader.id))
    if call.failure is not None:
        pieces.append(text_attribute("error.type", call.failure.code))
    return pieces


@lru_cache(1_000)
def _fixed_attributes(
    operation: str, requested: str, model: str | None, engine: str | None, finish_reason: str | None
) -> str:
    """Return the attributes that are the same for most calls."""
    pieces = [
        text_attribute("gen_ai.operation.name", operation),
        text_attribute("gen_ai.provider.name", "myna"),
        text_attribute("gen_ai.request.model", requested),
    ]
    if model is not None:
        pieces.append(text_attribute("gen_ai.response.model", model))
    if engine is not None:
        pieces.append(text_attribute("myna.engine", engine))
    if finish_reason is not None:
        reasons = f'{{"values":[{{"stringValue":{quote(finish_reason)}}}]}}'
        pieces.append(f'{{"key":"gen_ai.response.finish_reasons","value":{{"arrayValue":{reasons}}}}}')
    return ",".join(pieces)
