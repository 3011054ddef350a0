"""Metrics with vLLM's names, for the figures that mean the same here, so that dashboards made for vLLM work.

Calls are collected, and counted in histograms many at a time: a histogram of Prometheus' client costs several
microseconds for each value.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.graph.call import Call, CallState, Times, Usage
from gateway.telemetry.histogram import BatchHistogram

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
_HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Time from the last input of a call to its first token", _SECONDS),
    "request_time_per_output_token_seconds": ("Mean time between the tokens of an answer", _TOKEN_SECONDS),
    "e2e_request_latency_seconds": ("Time from the last input of a call to its end", _SECONDS),
    "request_queue_time_seconds": ("Time before the prefill: queue, place in a step, memory", _SECONDS),
    "request_prefill_time_seconds": ("Time from the start of the prefill to the first token", _SECONDS),
    "request_decode_time_seconds": ("Time from the first token to the end", _SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt", _TOKENS),
    "request_generation_tokens": ("Tokens of an answer", _TOKENS),
}
_PREFIX = "vllm:"
_FINISHES = {CallState.FAILED: "error", CallState.CANCELLED: "abort"}
"""Finish reasons of calls that are not done."""
_BATCH = 512
"""Number of calls that are counted together."""
_MAX_MODELS = 1_000
"""Maximum number of models with metrics of their own."""


class _Model:
    """Figures of one model."""

    __slots__ = ("cached", "completion", "finishes", "histograms", "prompt", "recent")

    def __init__(self) -> None:
        self.recent: list[tuple[Usage, Times]] = []
        """Calls that are not counted in the histograms yet."""
        self.histograms = {name: BatchHistogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self.prompt = self.cached = self.completion = 0
        self.finishes = dict.fromkeys(("stop", "length", "abort", "error"), 0)

    def count_recent(self) -> None:
        """Count the collected calls in the histograms."""
        recent, self.recent = self.recent, []
        rows = [_figures(usage, times) for usage, times in recent]
        for histogram, values in zip(self.histograms.values(), zip(*rows, strict=True), strict=False):
            histogram.add(value for value in values if value is not None)


def _figures(usage: Usage, times: Times) -> tuple[float | None, ...]:
    """Return the values of a call, one for each of `_HISTOGRAMS`; None if the call has no such value."""
    queued, started, first, end = times.queued, times.started, times.first_token, times.finished
    assert queued is not None
    assert started is not None
    assert first is not None
    assert end is not None
    waited = times.held + times.starved
    return (
        first - queued,
        (end - first) / (usage.completion - 1) if usage.completion > 1 else None,
        end - queued,
        max(0.0, started - queued) + waited,
        max(0.0, first - started - waited),
        end - first,
        usage.prompt,
        usage.completion,
    )


class VllmMetrics(Collector):
    """Owner of the figures. Call `observe` with every call that ends, on the event loop."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self.unfinished: Mapping[tuple[str, bool], int] = {}
        """Number of unfinished calls by model, and whether an engine works on them; set before the metrics are read."""
        self.kv_usage: Mapping[str, float] = {}
        """Used share of the KV cache by engine, from 0 to 1; set before the metrics are read."""

    def observe(self, call: Call) -> None:
        """Count a call that has ended."""
        name = call.model or call.spec.model
        model = self._models.get(name)
        if model is None:
            if len(self._models) >= _MAX_MODELS:
                return
            model = self._models[name] = _Model()
        usage, times = call.usage, call.times
        model.prompt += usage.prompt
        model.cached += usage.cached
        model.completion += usage.completion
        if call.state is not CallState.DONE:
            model.finishes[_FINISHES[call.state]] += 1
            return
        model.finishes["length" if call.finish_reason == "length" else "stop"] += 1
        if times.first_token is None or times.finished is None or times.started is None or times.queued is None:
            return
        model.recent.append((usage, times))
        if len(model.recent) == _BATCH:
            model.count_recent()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        models = self._models
        for figures in models.values():
            figures.count_recent()
        for name, (text, _) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(_PREFIX + name, text, labels=["model_name"])
            for model, figures in models.items():
                figures.histograms[name].add_to(family, [model])
            yield family
        for name, text, field in (
            ("prompt_tokens", "Tokens of prompts", "prompt"),
            ("generation_tokens", "Tokens of answers", "completion"),
            ("prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache", "prompt"),
            ("prefix_cache_hits", "Tokens of prompts that were in the prefix cache", "cached"),
        ):
            counter = CounterMetricFamily(_PREFIX + name, text, labels=["model_name"])
            for model, figures in models.items():
                counter.add_metric([model], getattr(figures, field))
            yield counter
        successes = CounterMetricFamily(
            _PREFIX + "request_success", "Calls that ended, by reason", labels=["finished_reason", "model_name"]
        )
        for model, figures in models.items():
            for reason, count in figures.finishes.items():
                successes.add_metric([reason, model], count)
        yield successes
        yield from self._gauges(models)

    def _gauges(self, models: Iterable[str]) -> Iterator[Metric]:
        names = dict.fromkeys([*models, *(model for model, _ in self.unfinished)])
        for name, text, running in (
            ("num_requests_running", "Calls whose prompt is prefilled or whose answer is generated", True),
            ("num_requests_waiting", "Calls that wait for inputs or for an engine", False),
        ):
            gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["model_name"])
            for model in names:
                gauge.add_metric([model], self.unfinished.get((model, running), 0))
            yield gauge
        usage = GaugeMetricFamily(
            _PREFIX + "kv_cache_usage_perc", "Used share of the KV cache, 1 is all", labels=["engine"]
        )
        for engine, share in self.kv_usage.items():
            usage.add_metric([engine], share)
        yield usage


VLLM_METRICS = VllmMetrics()
REGISTRY.register(VLLM_METRICS)
