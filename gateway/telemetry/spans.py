"""Describe calls as spans of OpenTelemetry, in the JSON form of its protocol OTLP.

A session is a trace, or the call joins the trace that its request names. A call is a span with a child for each time
that it waited or worked, and with links to the calls whose outputs it read. Spans have no texts of prompts or answers.

Attributes have the names of the semantic conventions for generative AI (opentelemetry.io/docs/specs/semconv/gen-ai).
The project's own names begin with `myna.`. The JSON is written as text, because creating the same spans as objects, or
with OpenTelemetry's package, would cost several per cent of a request.
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import msgspec

from gateway.graph.call import Call
from gateway.graph.trace_context import TraceContext

_INTERNAL, _SERVER = 1, 2
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
    trace_id = call.trace.trace_id if call.trace is not None else _session_trace(call)
    return TraceContext(trace_id, blake2b(call.id.encode(), digest_size=8).hexdigest())


def traceparent_of(call: Call) -> str:
    """Return the header that makes the requests for a call parts of its span."""
    sampled = call.trace is None or call.trace.sampled
    return context_of(call)._replace(sampled=sampled).traceparent


def _session_trace(call: Call) -> str:
    session = call.session
    key = f"{session.tenant}\0{session.id}\0{session.created}" if session.id else call.id
    return blake2b(key.encode(), digest_size=16).hexdigest()


def encode_spans(call: Call) -> list[str]:
    """Return the spans of a call that has ended, each as JSON: its own, then one for each phase."""
    context, times = context_of(call), call.times
    end = max(times.created, times.created if times.finished is None else times.finished)
    operation = "text_completion" if call.spec.prompt_field == "prompt" else "chat"
    parent = "" if call.trace is None else f'"parentSpanId":"{call.trace.span_id}",'
    status = "" if call.failure is None else f',"status":{{"code":2,"message":{_quote(call.failure.code)}}}'
    links = _links(call)
    spans = [
        f'{{"traceId":"{context.trace_id}","spanId":"{context.span_id}",{parent}'
        f'"name":{_quote(f"{operation} {call.spec.model}")},"kind":{_SERVER},{_interval(times.created, end)},'
        f'"attributes":[{_attributes(call, operation)}]{links}{status}}}'
    ]
    number = int(context.span_id, 16)
    for index, (name, start, stop) in enumerate(_phases(call, end), 1):
        if stop > start:
            span_id = f"{(number + index) % 2**64 or 1:016x}"
            spans.append(
                f'{{"traceId":"{context.trace_id}","spanId":"{span_id}","parentSpanId":"{context.span_id}",'
                f'"name":"{name}","kind":{_INTERNAL},{_interval(start, stop)}}}'
            )
    return spans


def _interval(start: float, end: float) -> str:
    """Return the times of a span, in nanoseconds of the Unix clock. OTLP has integers of 64 bits as texts."""
    return f'"startTimeUnixNano":"{start * 1e9:.0f}","endTimeUnixNano":"{end * 1e9:.0f}"'


def _phases(call: Call, end: float) -> Iterator[tuple[str, float, float]]:
    """Yield name, start and end of what the call did."""
    times = call.times
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
        variable.producer.id: variable.producer for variable in call.inputs.values() if variable.producer is not None
    }
    if call.leader is not None:
        producers[call.leader.id] = call.leader
    if not producers:
        return ""
    contexts = [context_of(producer) for producer in producers.values()]
    links = ",".join(f'{{"traceId":"{context.trace_id}","spanId":"{context.span_id}"}}' for context in contexts)
    return f',"links":[{links}]'


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
    if call.session.id:
        pieces.append(_text("gen_ai.conversation.id", call.session.id))
        pieces.append(_text("myna.output", call.output.name))
    if usage.reasoning:
        pieces.append(_number("gen_ai.usage.reasoning.output_tokens", usage.reasoning))
    if call.leader is not None:
        pieces.append(_text("myna.shared_with", call.leader.id))
    if call.failure is not None:
        pieces.append(_text("error.type", call.failure.code))
    if spec.slots:
        for name, value in spec.slots[-1].sampling.specified.items():
            if name in _SAMPLING and value is not None:
                pieces.append(_number(_SAMPLING[name], value))
    return ",".join(pieces)


@lru_cache(1_000)
def _fixed_attributes(
    operation: str, requested: str, model: str | None, engine: str | None, finish_reason: str | None
) -> str:
    """Return the attributes that are the same for most calls."""
    pieces = [
        _text("gen_ai.operation.name", operation),
        _text("gen_ai.provider.name", "myna"),
        _text("gen_ai.request.model", requested),
    ]
    if model is not None:
        pieces.append(_text("gen_ai.response.model", model))
    if engine is not None:
        pieces.append(_text("myna.engine", engine))
    if finish_reason is not None:
        reasons = f'{{"values":[{{"stringValue":{_quote(finish_reason)}}}]}}'
        pieces.append(f'{{"key":"gen_ai.response.finish_reasons","value":{{"arrayValue":{reasons}}}}}')
    return ",".join(pieces)


def _text(key: str, value: str) -> str:
    return f'{{"key":"{key}","value":{{"stringValue":{_quote(value)}}}}}'


def _number(key: str, value: float) -> str:
    kind = f'"intValue":"{value}"' if isinstance(value, int) else f'"doubleValue":{value!r}'
    return f'{{"key":"{key}","value":{{{kind}}}}}'


@lru_cache(1_000)
def _quote(text: str) -> str:
    """Return a text as JSON."""
    return msgspec.json.encode(text).decode()
