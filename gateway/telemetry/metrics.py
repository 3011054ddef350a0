"""Metrics of the server, in Prometheus' format, at /metrics."""

from collections import Counter as Counts
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from gateway.graph.call import Call, CallState
from gateway.telemetry.histogram import HistogramCollector
from gateway.telemetry.vllm_metrics import VLLM_METRICS

REQUESTS = Counter("myna_http_requests_total", "HTTP requests answered", ["method", "route", "status"])
CALLS = Counter("myna_calls_total", "Calls that ended, by final state", ["state"])
TOKENS = Counter("myna_tokens_total", "Tokens of calls: prompt, cached (included in prompt) and completion", ["kind"])
MISSED = Counter(
    "myna_prompt_tokens_missed_total",
    "Prompt tokens that were not in the cache, by reason: never seen, diverged from a cached prompt, evicted, "
    "cached for another API key, part of a block, prefix sharing off",
    ["why"],
)
FIRST_TOKEN = HistogramCollector(
    "myna_first_token_seconds",
    "Time from the last input of a call to its first token",
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
REGISTRY.register(FIRST_TOKEN)
WAITED = Counter(
    "myna_call_waited_seconds_total",
    "Time that calls waited: for their inputs, for a place in an engine's steps, and for memory of an engine",
    ["on"],
)
DRAFTED = Counter(
    "myna_draft_tokens_total",
    "Draft tokens of an engine, for all of its gateways, by whether they were right",
    ["engine", "result"],
)
KV_BLOCKS = Gauge("myna_kv_blocks", "Blocks of an engine's KV cache", ["engine"])
KV_BLOCKS_IN_USE = Gauge(
    "myna_kv_blocks_in_use",
    "Blocks of an engine's KV cache that running requests hold; cached blocks that can be evicted do not count",
    ["engine"],
)
SCHEMA_VIOLATIONS = Counter(
    "myna_schema_violations_total", "Complete answers that violate a schema that the client sent without strict"
)
RELAYED = Counter(
    "myna_relayed_total", "Requests that upstream servers answered as they are, such as embeddings", ["model", "route"]
)
RELAYED_BYTES = Counter("myna_relayed_bytes_total", "Bytes of the answers to such requests", ["model", "route"])
RELAYED_TOKENS = Counter(
    "myna_relayed_tokens_total", "Prompt tokens of such requests, if the server reports them", ["model", "route"]
)
RELAYED_SECONDS = Histogram(
    "myna_relayed_seconds",
    "Time from such a request to the end of its answer",
    ["route"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
LIMITED = Counter(
    "myna_key_requests_limited_total",
    "Requests that a limit or a budget of their API key refused, by the key's id and the error's code",
    ["key", "code"],
)
TOOL_CALLS = Counter(
    "myna_tool_calls_total",
    "Calls of tools, by server, tool and outcome: ok, error (reported by the tool), cancelled, or a failure's code",
    ["server", "tool", "outcome"],
)
TOOL_SECONDS = Histogram(
    "myna_tool_seconds",
    "Time of a call of a tool, with its wait for a free place",
    ["server", "tool"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300),
)
_MAX_TOOL_LABELS = 500
"""Maximum number of tools that have labels of their own. Servers choose the names of tools."""
_tool_labels: set[tuple[str, str]] = set()
SPANS = Counter("myna_trace_spans_total", "Spans for the collector, by whether it accepted them", ["result"])
UNFINISHED = Gauge("myna_calls_unfinished", "Unfinished calls")


class _Sums:
    """Sums of requests and calls since the last read of the metrics.

    Prometheus' counters are thread-safe and slower. The sums are added to them before the metrics are read.
    """

    def __init__(self) -> None:
        self.requests: Counts[tuple[str, str, int]] = Counts()
        self.ended = dict.fromkeys((state for state in CallState if state.is_final), 0)
        self.prompt = self.cached = self.completion = 0
        self.inputs = self.queue = self.memory = 0.0
        self.missed: Counts[str] = Counts()

    def flush(self) -> None:
        """Add the sums to Prometheus' counters."""
        for (method, route, status), requests in self.requests.items():
            REQUESTS.labels(method, route, str(status)).inc(requests)
        for state, calls in self.ended.items():
            CALLS.labels(state).inc(calls)
        for kind, tokens in (("prompt", self.prompt), ("cached", self.cached), ("completion", self.completion)):
            TOKENS.labels(kind).inc(tokens)
        for on, seconds in (("inputs", self.inputs), ("queue", self.queue), ("memory", self.memory)):
            WAITED.labels(on).inc(seconds)
        for reason, tokens in self.missed.items():
            MISSED.labels(reason).inc(tokens)


_sums = _Sums()
_kv_watches: dict[str, tuple[Callable[[], int], Callable[[], int]]] = {}
"""Functions that return the blocks of an engine's KV cache, and those in use, by engine."""


def count_request(method: str, route: str, status: int) -> None:
    """Count a request."""
    _sums.requests[method, route, status] += 1


def observe(call: Call) -> None:
    """Count a call that has ended."""
    sums, usage, times = _sums, call.usage, call.times
    sums.ended[call.state] += 1
    if call.spec.form is not None:
        return  # its usage is the sum of calls that are counted themselves
    sums.prompt += usage.prompt
    sums.cached += usage.cached
    sums.completion += usage.completion
    sums.queue += times.held
    sums.memory += times.starved
    for reason, tokens in usage.missed.items():
        sums.missed[reason] += tokens
    VLLM_METRICS.observe(call)
    if times.queued is not None:
        sums.inputs += max(0.0, times.queued - times.created)
        if times.first_token is not None:
            FIRST_TOKEN.observe(times.first_token - times.queued)


def count_schema_violation() -> None:
    """Count an answer that violates its schema. Call it on the event loop."""
    SCHEMA_VIOLATIONS.inc()


def count_limited(key: str, code: str) -> None:
    """Count a request that a limit of its API key refused. `key`: the key's id."""
    LIMITED.labels(key, code).inc()


def count_tool_call(server: str, tool: str, outcome: str, seconds: float) -> None:
    """Count a call of a tool that has ended."""
    if (server, tool) not in _tool_labels:
        if len(_tool_labels) >= _MAX_TOOL_LABELS:
            tool = "(other)"
        else:
            _tool_labels.add((server, tool))
    TOOL_CALLS.labels(server, tool, outcome).inc()
    TOOL_SECONDS.labels(server, tool).observe(seconds)


def count_spans(result: str, count: int) -> None:
    """Count spans that were `sent` or `dropped`."""
    SPANS.labels(result).inc(count)


def count_relayed(model: str, route: str, size: int, tokens: int, seconds: float) -> None:
    """Count a request that an upstream server has answered. `size`: bytes of the answer."""
    RELAYED.labels(model, route).inc()
    RELAYED_BYTES.labels(model, route).inc(size)
    RELAYED_TOKENS.labels(model, route).inc(tokens)
    RELAYED_SECONDS.labels(route).observe(seconds)


def render_metrics(unfinished: Mapping[tuple[str, bool], int]) -> bytes:
    """Return all metrics in Prometheus' text format. `unfinished`: number of unfinished calls by model, and whether an
    engine works on them."""
    global _sums
    sums, _sums = _sums, _Sums()
    sums.flush()
    UNFINISHED.set(sum(unfinished.values()))
    VLLM_METRICS.unfinished = unfinished
    VLLM_METRICS.kv_usage = {
        engine: in_use() / count for engine, (blocks, in_use) in _kv_watches.items() if (count := blocks())
    }
    return generate_latest()


_OWN_ROUTES = ("/ui", "/v1/status")
"""Beginnings of the routes that only watch the server."""


@dataclass(frozen=True)
class Totals:
    """Counters of the process since its start. `requests`: without those of the live page for itself. `calls`: calls
    that ended, by final state. `tokens`: by kind. `missed`: prompt tokens that were not in the cache, by reason."""

    requests: int
    calls: Mapping[str, int]
    tokens: Mapping[str, int]
    missed: Mapping[str, int]


def read_totals() -> Totals:
    """Return the counters of requests, calls and tokens."""
    global _sums
    sums, _sums = _sums, _Sums()
    sums.flush()
    requests = sum(
        int(sample.value)
        for metric in REQUESTS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and not sample.labels["route"].startswith(_OWN_ROUTES)
    )
    return Totals(requests, _samples(CALLS), _samples(TOKENS), _samples(MISSED))


def _samples(counter: Counter) -> Counts[str]:
    """Return the values of a counter, by its last label."""
    values: Counts[str] = Counts()
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                values[[*sample.labels.values()][-1]] += int(sample.value)
    return values


def watch_kv(engine: str, blocks: Callable[[], int], in_use: Callable[[], int]) -> None:
    """Report the blocks of an engine's KV cache. Both functions are called whenever the metrics are read."""
    _kv_watches[engine] = blocks, in_use
    KV_BLOCKS.labels(engine).set_function(blocks)
    KV_BLOCKS_IN_USE.labels(engine).set_function(in_use)


def count_drafts(engine: str, right: int, wrong: int) -> None:
    """Count the tokens that an engine has drafted since its last report."""
    DRAFTED.labels(engine, "right").inc(right)
    DRAFTED.labels(engine, "wrong").inc(wrong)
