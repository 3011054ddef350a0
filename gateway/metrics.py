"""What Prometheus reads at /metrics."""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from gateway.graph.call import Call, CallState

REQUESTS = Counter("myna_http_requests_total", "HTTP requests answered", ["method", "route", "status"])
CALLS = Counter("myna_calls_total", "Calls that ended, by final state", ["state"])
TOKENS = Counter("myna_tokens_total", "Tokens of calls: prompt, of these cached, and completion", ["kind"])
MISSED = Counter(
    "myna_prompt_tokens_missed_total",
    "Tokens of prompts that were not in the cache: never seen, diverged from what was, evicted, another key's, "
    "part of a block, sharing off",
    ["why"],
)
FIRST_TOKEN = Histogram(
    "myna_first_token_seconds",
    "From a call's inputs being there to its first token",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
WAITED = Counter(
    "myna_call_waited_seconds_total",
    "Time that calls waited: for their inputs, for room in an engine's steps, for memory there",
    ["on"],
)
DRAFTED = Counter(
    "myna_draft_tokens_total",
    "Tokens that an engine drafted, for whichever gateway, by whether they stood",
    ["engine", "result"],
)
UNFINISHED = Gauge("myna_calls_unfinished", "Calls submitted and not ended")


# looked up once: it takes longer than the counting
_ENDED = {state: CALLS.labels(state) for state in CallState if state.final}
_PROMPT, _CACHED, _COMPLETION = (TOKENS.labels(kind) for kind in ("prompt", "cached", "completion"))
_INPUTS, _QUEUE, _MEMORY = (WAITED.labels(on) for on in ("inputs", "queue", "memory"))
request_counter = lru_cache(4096)(REQUESTS.labels)
"""Of a method, a route and a status."""


def observe(call: Call) -> None:
    """Counts a call that has ended."""
    counted = (
        *((_PROMPT, call.usage.prompt), (_CACHED, call.usage.cached), (_COMPLETION, call.usage.completion)),
        (_INPUTS, max(0.0, (call.times.queued or call.times.created) - call.times.created)),
        *((_QUEUE, call.times.held), (_MEMORY, call.times.starved)),
    )
    _ENDED[call.state].inc()
    for counter, amount in counted:
        if amount:
            counter.inc(amount)
    for why, tokens in call.usage.missed.items():
        MISSED.labels(why).inc(tokens)
    if call.times.queued is not None and call.times.first_token is not None:
        FIRST_TOKEN.observe(call.times.first_token - call.times.queued)


def drafted(engine: str, right: int, wrong: int) -> None:
    """Counts tokens that an engine has drafted since it was asked last."""
    DRAFTED.labels(engine, "right").inc(right)
    DRAFTED.labels(engine, "wrong").inc(wrong)
