"""gateway/telemetry/vllm_metrics.py: figures under vLLM's names, compared with Prometheus' own histograms."""

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.graph.call import Call, CallState, Times, Usage
from gateway.telemetry import vllm_metrics
from gateway.telemetry.metrics import render_metrics
from gateway.telemetry.vllm_metrics import VllmMetrics


def ended(model: str = "m", state: CallState = CallState.DONE, finish: str = "stop", **more: Any) -> Call:
    times = Times(100.0, queued=101.0, started=101.5, first_token=103.0, finished=109.0, held=0.25, starved=0.5)
    fields: dict[str, Any] = {"usage": Usage(prompt=20, cached=5, completion=7), "times": times, **more}
    spec = SimpleNamespace(model="requested")
    return cast("Call", SimpleNamespace(model=model, spec=spec, state=state, finish_reason=finish, **fields))


def samples(collector: VllmMetrics) -> dict[tuple[str, str], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_a_call_is_counted_under_each_name() -> None:
    collector = VllmMetrics()
    collector.observe(ended())
    found = samples(collector)
    sums = {name.removesuffix("_sum"): value for (name, _), value in found.items() if name.endswith("_sum")}
    assert sums == {
        "vllm:time_to_first_token_seconds": 2.0,
        "vllm:request_time_per_output_token_seconds": 1.0,
        "vllm:e2e_request_latency_seconds": 8.0,
        "vllm:request_queue_time_seconds": 1.25,
        "vllm:request_prefill_time_seconds": 0.75,
        "vllm:request_decode_time_seconds": 6.0,
        "vllm:request_prompt_tokens": 20.0,
        "vllm:request_generation_tokens": 7.0,
    }
    assert found["vllm:prompt_tokens_total", "model_name=m"] == 20
    assert found["vllm:generation_tokens_total", "model_name=m"] == 7
    assert found["vllm:prefix_cache_queries_total", "model_name=m"] == 20
    assert found["vllm:prefix_cache_hits_total", "model_name=m"] == 5


def test_ends_by_reason() -> None:
    collector = VllmMetrics()
    for call in (
        ended(),
        ended(finish="length"),
        ended(finish="tool_calls"),
        ended(state=CallState.CANCELLED),
        ended(state=CallState.FAILED, times=Times(100.0)),
        ended(model="", state=CallState.FAILED),
    ):
        collector.observe(call)
    found = samples(collector)
    name = "vllm:request_success_total"
    reasons = {
        reason: found[name, f"finished_reason={reason},model_name=m"] for reason in ("stop", "length", "abort", "error")
    }
    assert reasons == {"stop": 2, "length": 1, "abort": 1, "error": 1}
    assert found[name, "finished_reason=error,model_name=requested"] == 1
    assert found["vllm:e2e_request_latency_seconds_count", "model_name=m"] == 3, "only calls that are done"


def test_histograms_equal_those_of_prometheus() -> None:
    picked = random.Random(0)
    collector, registry = VllmMetrics(), CollectorRegistry()
    _, bounds = vllm_metrics._HISTOGRAMS["request_prompt_tokens"]
    theirs = Histogram("vllm:request_prompt_tokens", "d", ["model_name"], buckets=bounds, registry=registry)
    for _ in range(2_000):
        tokens = picked.choice([picked.randrange(300_000), picked.randrange(100), *map(int, bounds)])
        collector.observe(ended(usage=Usage(prompt=tokens)))
        theirs.labels("m").observe(tokens)
    expected = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    ours = CollectorRegistry()
    ours.register(collector)
    found = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(generate_latest(ours).decode())
        for sample in family.samples
        if sample.name.startswith("vllm:request_prompt_tokens")
    }
    assert found == expected


def test_running_and_waiting_calls_and_the_cache() -> None:
    collector = VllmMetrics()
    collector.unfinished = {("m", True): 3, ("m", False): 2, ("n", False): 1}
    collector.kv_usage = {"embedded-0": 0.25}
    found = samples(collector)
    running, waiting = "vllm:num_requests_running", "vllm:num_requests_waiting"
    assert [found[running, f"model_name={model}"] for model in "mn"] == [3, 0]
    assert [found[waiting, f"model_name={model}"] for model in "mn"] == [2, 1]
    assert found["vllm:kv_cache_usage_perc", "engine=embedded-0"] == 0.25


def test_the_number_of_models_is_limited(monkeypatch: Any) -> None:
    monkeypatch.setattr(vllm_metrics, "_MAX_MODELS", 3)
    collector = VllmMetrics()
    for number in range(10):
        collector.observe(ended(model=f"m{number}"))
    assert len(collector._models) == 3


def test_the_dashboard_uses_metrics_that_exist() -> None:
    text = render_metrics({("m", True): 1}).decode()
    existing = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    existing |= {f"{name}{suffix}" for name in existing for suffix in ("_bucket", "_sum", "_count", "_total")}
    dashboard = json.loads(Path("docs/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) >= 12
    for query in queries:
        used = set(re.findall(r"\b(?:vllm:|myna_)\w+", query))
        assert used, query
        assert used <= existing, f"{query}: {used - existing}"
