"""gateway/telemetry/metrics.py"""

from types import SimpleNamespace
from typing import cast

from prometheus_client.parser import text_string_to_metric_families

from gateway.graph.call import Call, CallState, Times, Usage
from gateway.telemetry import metrics


def samples() -> dict[tuple[str, str], float]:
    """Return the samples by name and labels."""
    families = text_string_to_metric_families(metrics.render_metrics({}).decode())
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("myna_")
    }


def ended_call(state: CallState = CallState.DONE, **times: float) -> Call:
    usage = Usage(prompt=10, cached=4, completion=3, missed={"never_seen": 5, "evicted": 1})
    fields = {"state": state, "usage": usage, "times": Times(created=100.0, **times)}
    return cast(
        "Call", SimpleNamespace(**fields, model="m", spec=SimpleNamespace(model="m", form=None), finish_reason="stop")
    )


def test_ended_calls_are_counted_once() -> None:
    before = samples()
    metrics.observe(ended_call(queued=101.5, first_token=102.0, held=0.25, starved=0.5))
    metrics.observe(ended_call())
    metrics.observe(ended_call(CallState.FAILED, queued=101.0))
    metrics.count_request("GET", "/here", 404)
    after = samples()
    grown = {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key)}
    expected = {
        ("myna_calls_total", "done"): 2,
        ("myna_calls_total", "failed"): 1,
        ("myna_tokens_total", "prompt"): 30,
        ("myna_tokens_total", "cached"): 12,
        ("myna_tokens_total", "completion"): 9,
        ("myna_prompt_tokens_missed_total", "never_seen"): 15,
        ("myna_prompt_tokens_missed_total", "evicted"): 3,
        ("myna_call_waited_seconds_total", "inputs"): 2.5,
        ("myna_call_waited_seconds_total", "queue"): 0.25,
        ("myna_call_waited_seconds_total", "memory"): 0.5,
        ("myna_http_requests_total", "GET,/here,404"): 1,
        ("myna_first_token_seconds_count", ""): 1,
        ("myna_first_token_seconds_sum", ""): 0.5,
    }
    assert {key: grown.get(key) for key in expected} == expected
    assert samples() == after


def test_final_states_without_calls_have_count_zero() -> None:
    assert {("myna_calls_total", state) for state in ("done", "failed", "cancelled")} <= samples().keys()


def test_totals_have_the_same_figures_without_the_text_format() -> None:
    before = metrics.read_totals()
    metrics.observe(ended_call())
    metrics.count_request("GET", "/here", 404)
    metrics.count_request("GET", "/there", 200)
    metrics.count_request("GET", "/ui/{file}", 200)
    after = metrics.read_totals()
    assert after.requests - before.requests == 2, "without the files of the live page"
    assert after.calls["done"] - before.calls["done"] == 1
    assert after.tokens["cached"] - before.tokens.get("cached", 0) == 4
    assert after.missed["evicted"] - before.missed.get("evicted", 0) == 1
    assert samples()["myna_calls_total", "done"] == after.calls["done"]


def test_tools_have_a_bounded_number_of_labels() -> None:
    for index in range(2_000):
        metrics.count_tool_call("bounded", f"tool{index}", "ok", 0.1)
    found = {labels: value for (name, labels), value in samples().items() if name == "myna_tool_calls_total"}
    own = {labels: value for labels, value in found.items() if ",bounded," in labels}
    assert sum(own.values()) == 2_000
    assert len(own) <= 501
