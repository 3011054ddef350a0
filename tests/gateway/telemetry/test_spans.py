"""gateway/telemetry/spans.py: calls as spans, checked against OpenTelemetry's own messages."""

from typing import Any

import msgspec
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from engine.sampling_params import SamplingParams
from gateway.graph.call import Call, CallSpec, CallState, FailedAttempt, Times
from gateway.graph.errors import Failure
from gateway.graph.forms.form import Agent, Map, Origin, ToolRun
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Slot
from gateway.graph.session import Session
from gateway.graph.trace_context import TraceContext, parse_traceparent
from gateway.telemetry.spans import context_of, encode_spans, traceparent_of

SAMPLING = SamplingParams(max_tokens=9, temperature=0.5, given=("max_tokens", "temperature"))


def session_with_chain() -> tuple[Session, Call, Call]:
    """Return a session with two calls; the second reads the output of the first."""
    session = Session("s", "tenant", 1000.0, 60.0, clock=lambda: 1001.0)
    first = CallSpec(model="m", segments=[Characters("secret prompt"), Slot(None, SAMPLING)], output="a")
    second = CallSpec(
        model="m", segments=[Input(Reference("a"), "messages.0.content"), Slot(None, SAMPLING)], output="b"
    )
    one, two = session.add_all([first, second]).calls
    return session, one, two


def end(call: Call, state: CallState = CallState.DONE) -> None:
    times = call.times
    times.queued, times.started, times.first_token, times.finished = 1002.0, 1002.5, 1004.0, 1007.0
    times.held, times.starved = 0.25, 0.5
    call.usage.prompt, call.usage.cached, call.usage.completion = 20, 5, 7
    call.engine, call.model, call.finish_reason = "e", "m", "stop"
    call.state = state


def exported(call: Call) -> list[dict[str, Any]]:
    """Return the spans as a collector reads them. Raises ParseError if they are not OTLP."""
    spans = [msgspec.json.decode(span) for span in encode_spans(call)]
    data = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    for span in spans:  # JSON has hexadecimal ids, the message has bytes: base64 in its own JSON
        assert int(span["traceId"], 16)
        assert len(span["traceId"]) == 32
        assert len(span["spanId"]) == 16
    plain = [{key: value for key, value in span.items() if not key.endswith("Id")} for span in spans]
    for span in plain:
        span.pop("links", None)
    data["resourceSpans"][0]["scopeSpans"][0]["spans"] = plain
    parsed = ParseDict(data, TracesData())
    assert len(parsed.resource_spans[0].scope_spans[0].spans) == len(spans)
    return spans


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}


def test_a_call_and_its_phases() -> None:
    _, call, _ = session_with_chain()
    end(call)
    span, *children = exported(call)
    assert (span["name"], span["kind"]) == ("chat m", 2)
    assert (span["startTimeUnixNano"], span["endTimeUnixNano"]) == ("1001000000000", "1007000000000")
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "myna",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": {"values": [{"stringValue": "stop"}]},
        "gen_ai.usage.input_tokens": "20",
        "gen_ai.usage.output_tokens": "7",
        "gen_ai.usage.cache_read.input_tokens": "5",
        "gen_ai.request.max_tokens": "9",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.conversation.id": "s",
        "myna.call.id": call.id,
        "myna.call.state": "done",
        "myna.engine": "e",
        "myna.output": "a",
    }
    phases = [
        (child["name"], (int(child["endTimeUnixNano"]) - int(child["startTimeUnixNano"])) / 1e9) for child in children
    ]
    assert phases == [
        ("wait for inputs", 1.0),
        ("queue", 0.5),
        ("wait for memory", 0.5),
        ("wait for a step", 0.25),
        ("prefill", 0.75),
        ("decode", 3.0),
    ]
    assert {child["parentSpanId"] for child in children} == {span["spanId"]}
    assert len({child["spanId"] for child in children}) == 6
    assert "secret" not in str(encode_spans(call)), "spans have no texts"


def test_a_session_is_a_trace_with_links_along_its_edges() -> None:
    _, one, two = session_with_chain()
    for call in (one, two):
        end(call)
    first, second = exported(one)[0], exported(two)[0]
    assert first["traceId"] == second["traceId"]
    assert first["spanId"] != second["spanId"]
    assert second["links"] == [{"traceId": first["traceId"], "spanId": first["spanId"]}]
    other = Session("s", "another tenant", 1000.0, 60.0)
    (foreign,) = other.add_all([CallSpec(model="m", segments=[Slot(None, SAMPLING)], output="a")]).calls
    assert context_of(foreign).trace_id != first["traceId"]


def test_a_call_joins_the_trace_of_its_request() -> None:
    _, one, two = session_with_chain()
    one.trace = TraceContext("1" * 32, "2" * 16)
    end(one)
    end(two)
    span, second = exported(one)[0], exported(two)[0]
    assert (span["traceId"], span["parentSpanId"]) == ("1" * 32, "2" * 16)
    assert second["links"] == [{"traceId": "1" * 32, "spanId": span["spanId"]}], "in the other trace"
    assert parse_traceparent(traceparent_of(one)) == TraceContext("1" * 32, span["spanId"])
    one.trace = TraceContext("1" * 32, "2" * 16, sampled=False)
    assert traceparent_of(one).endswith("-00")


def test_a_call_that_failed_before_it_ran() -> None:
    _, call, _ = session_with_chain()
    call.state, call.failure = CallState.FAILED, Failure("engine_unavailable", "no engine of secret", call.id)
    call.times.finished = 1003.0
    span, child = exported(call)
    assert span["status"] == {"code": 2, "message": "engine_unavailable"}
    assert attributes(span)["error.type"] == "engine_unavailable"
    assert child["name"] == "wait for inputs"
    assert "secret" not in str(encode_spans(call)), "a message may quote the client's text"


def test_names_of_any_characters() -> None:
    _, call, _ = session_with_chain()
    end(call)
    call.spec = CallSpec(model='a"b\\c\n\u2028\U0001f600', segments=[Slot(None, SAMPLING)], output="a")
    call.engine, call.finish_reason = 'e"', "f\t"
    span = exported(call)[0]
    assert span["name"] == 'chat a"b\\c\n\u2028\U0001f600'
    assert attributes(span)["myna.engine"] == 'e"'


def test_attempts_are_children_with_phases_of_their_own() -> None:
    _, call, _ = session_with_chain()
    end(call)
    failed = Times(1001.0, queued=1002.0, started=1002.25, first_token=1002.5, finished=1003.0)
    down = Times(1003.0, queued=1002.0, finished=1003.5)
    call.failed_attempts = (
        FailedAttempt("lost", "m", "engine_failed", failed),
        FailedAttempt(None, "m", "engine_unavailable", down),
    )
    call.times.started, call.model = 1003.75, "other"
    span, *children = exported(call)
    attempts = [child for child in children if child["name"].startswith("attempt")]
    assert {attempt["parentSpanId"] for attempt in attempts} == {span["spanId"]}
    assert [(attempt["name"], *seconds(attempt)) for attempt in attempts] == [
        ("attempt 1", 1001.0, 1003.0),
        ("attempt 2", 1003.0, 1003.5),
        ("attempt 3", 1003.5, 1007.0),
    ]
    assert [attributes(attempt) for attempt in attempts] == [
        {"myna.attempt": "1", "gen_ai.request.model": "m", "myna.engine": "lost", "error.type": "engine_failed"},
        {"myna.attempt": "2", "gen_ai.request.model": "m", "error.type": "engine_unavailable"},
        {"myna.attempt": "3", "gen_ai.request.model": "other", "myna.engine": "e", "myna.fallback": True},
    ]
    assert [attempt.get("status", {}).get("message") for attempt in attempts] == [
        "engine_failed",
        "engine_unavailable",
        None,
    ]
    phases = {
        attempt["name"]: [
            (child["name"], *seconds(child)) for child in children if child["parentSpanId"] == attempt["spanId"]
        ]
        for attempt in attempts
    }
    assert phases == {
        "attempt 1": [
            ("wait for inputs", 1001.0, 1002.0),
            ("queue", 1002.0, 1002.25),
            ("prefill", 1002.25, 1002.5),
            ("decode", 1002.5, 1003.0),
        ],
        "attempt 2": [("queue", 1003.0, 1003.5)],
        "attempt 3": [
            ("queue", 1003.5, 1003.75),
            ("wait for memory", 1003.75, 1004.0),
            ("decode", 1004.0, 1007.0),
        ],
    }
    assert len({each["spanId"] for each in (span, *children)}) == 1 + len(children)


def seconds(span: dict[str, Any]) -> tuple[float, float]:
    return int(span["startTimeUnixNano"]) / 1e9, int(span["endTimeUnixNano"]) / 1e9


def test_a_call_whose_last_attempt_failed() -> None:
    _, call, _ = session_with_chain()
    end(call, CallState.FAILED)
    call.failure = Failure("engine_unavailable", "none", call.id)
    call.failed_attempts = (FailedAttempt("e", "m", "engine_failed", Times(1001.0, finished=1003.0)),)
    call.engine = call.model = None
    call.times = Times(1001.0, finished=1004.0)
    span, first, _, second, _ = exported(call)
    assert span["status"] == second["status"] == {"code": 2, "message": "engine_unavailable"}
    assert first["status"]["message"] == "engine_failed"
    assert seconds(second) == (1003.0, 1004.0)
    assert "myna.engine" not in attributes(second)


def test_requests_of_a_later_attempt_join_its_span() -> None:
    _, call, _ = session_with_chain()
    end(call)
    span = exported(call)[0]
    assert parse_traceparent(traceparent_of(call)) == TraceContext(span["traceId"], span["spanId"])
    call.failed_attempts = (FailedAttempt("e", "m", "engine_failed", Times(1001.0, finished=1003.0)),)
    upstream = parse_traceparent(traceparent_of(call))
    attempt = next(child for child in exported(call) if child["name"] == "attempt 2")
    assert upstream == TraceContext(attempt["traceId"], attempt["spanId"])


def test_texts_are_further_attributes() -> None:
    _, call, _ = session_with_chain()
    end(call)
    (text,) = [msgspec.json.decode(span) for span in encode_spans(call, '{"key":"k","value":{"stringValue":"v"}}')][:1]
    assert attributes(text)["k"] == "v"
    assert attributes(text)["myna.call.id"] == call.id


def template(output: str, origin: Origin | None = None, reads: str = "") -> CallSpec:
    parts: list[str | Input] = [Input(Reference(reads), "x")] if reads else ["text"]
    return CallSpec(model="", parts=parts, output=output, origin=origin)


def test_a_form_contains_the_spans_of_its_calls() -> None:
    session = Session("s", "tenant", 1000.0, 60.0, clock=lambda: 1001.0)
    form = Map(Input(Reference("list"), "x"), "item", template("body"), 10)
    listed, mapped, reader = session.add_all(
        [template("list"), CallSpec(model="", form=form, output="all"), template("end", reads="all")]
    ).calls
    inner = Agent("m", "{}", "p", (), 3)
    (agent,) = session.add_all([CallSpec(model="", form=inner, output="all.0", origin=Origin(mapped.id, "0"))]).calls
    turn, tool = session.add_all(
        [
            CallSpec(model="m", segments=[Slot(None, SAMPLING)], output="all.0@1", origin=Origin(agent.id, "1")),
            CallSpec(model="", form=ToolRun("f", "read", "{}"), output="all.0@1.0", origin=Origin(agent.id, "1.0")),
        ]
    ).calls
    calls = [listed, mapped, reader, agent, turn, tool]
    for call in calls:
        end(call)
    spans = {call.output.name: exported(call) for call in calls}
    ids = {name: found[0]["spanId"] for name, found in spans.items()}
    assert len({found[0]["traceId"] for found in spans.values()}) == 1
    assert spans["all"][0]["name"] == "map"
    assert attributes(spans["all"][0]) == {
        "myna.form": "map",
        "myna.call.id": mapped.id,
        "myna.call.state": "done",
        "gen_ai.conversation.id": "s",
        "myna.output": "all",
    }
    assert spans["all.0"][0]["name"] == attributes(spans["all.0"][0])["gen_ai.operation.name"] == "invoke_agent"
    assert attributes(spans["all.0"][0])["gen_ai.request.model"] == "m"
    assert spans["all.0"][0]["parentSpanId"] == ids["all"]
    assert spans["all.0@1"][0]["parentSpanId"] == spans["all.0@1.0"][0]["parentSpanId"] == ids["all.0"]
    assert [link["spanId"] for link in spans["all"][0]["links"]] == [ids["list"]], "a form's own calls are inside it"
    assert [link["spanId"] for link in spans["end"][0]["links"]] == [ids["all"]]
    assert len(spans["all"]) == len(spans["all.0"]) == 1, "a form has no phases: its calls have them"
    assert not any("usage" in key for name in ("all", "all.0") for key in attributes(spans[name][0]))


def tool_call(**fields: Any) -> Call:
    """Return a call of a tool that has run from 1002.5 to 1007."""
    session = Session("s", "tenant", 1000.0, 60.0, clock=lambda: 1001.0)
    spec = CallSpec(model="", form=ToolRun("files", 'read "x"', "{}"), output="text")
    (call,) = session.add_all([spec]).calls
    call.times.started, call.times.finished, call.state = 1002.5, 1007.0, CallState.DONE
    for name, value in fields.items():
        setattr(call, name, value)
    return call


def test_a_run_of_a_tool_is_a_span() -> None:
    call = tool_call()
    span, wait, run = exported(call)
    assert (span["name"], span["kind"], attributes(span)["myna.form"]) == ('tool files/read "x"', 1, "tool")
    assert (wait["name"], *seconds(wait)) == ("wait for inputs", 1001.0, 1002.5)
    assert (run["name"], *seconds(run)) == ('execute_tool read "x"', 1002.5, 1007.0)
    assert attributes(run) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": 'read "x"',
        "gen_ai.tool.type": "extension",
        "gen_ai.tool.call.id": call.id,
        "myna.tool.server": "files",
    }
    assert {wait["parentSpanId"], run["parentSpanId"]} == {span["spanId"]}
    assert len({span["spanId"], wait["spanId"], run["spanId"]}) == 3


def test_a_run_of_a_tool_that_failed() -> None:
    failure = Failure("tool_timeout", "secret", "call")
    span, _, run = exported(tool_call(state=CallState.FAILED, failure=failure))
    assert span["status"] == run["status"] == {"code": 2, "message": "tool_timeout"}
    assert attributes(run)["error.type"] == "tool_timeout"


def test_a_tool_that_did_not_run() -> None:
    refused = exported(tool_call(times=Times(1001.0, finished=1007.0), state=CallState.FAILED))
    assert [(span["name"], *seconds(span)) for span in refused[1:]] == [("wait for inputs", 1001.0, 1007.0)]
    other = tool_call()
    shared = exported(tool_call(leader=other))
    assert [span["name"] for span in shared[1:]] == ["wait for inputs"]
    assert shared[0]["links"][0]["spanId"] == context_of(other).span_id


def test_calls_of_a_form_join_the_trace_of_its_request() -> None:
    session = Session("s", "tenant", 1000.0, 60.0)
    form = CallSpec(model="", form=Agent("m", "{}", "p", (), 3), output="answer")
    (agent,) = session.add_all([form]).calls
    (turn,) = session.add_all([template("answer@1", Origin(agent.id, "1"))]).calls
    agent.trace = TraceContext("1" * 32, "2" * 16, sampled=False)
    for call in (agent, turn):
        end(call)
    outer, inner = exported(agent)[0], exported(turn)[0]
    assert (outer["traceId"], outer["parentSpanId"]) == ("1" * 32, "2" * 16)
    assert (inner["traceId"], inner["parentSpanId"]) == ("1" * 32, outer["spanId"])
    assert traceparent_of(turn).endswith("-00")
