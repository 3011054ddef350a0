"""gateway/api/serializers/base.py: sums of usage, and failed calls."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.semantic.extension import Scope
from gateway.api.serializers.base import check_done, reference_to, semantic_field, usage_of
from gateway.errors import FailedCall
from gateway.graph.call import CallState, Usage
from gateway.graph.errors import Failure
from tests.gateway.graph.test_session import session, spec

COUNTS = st.integers(0, 1_000)
USAGES = st.builds(
    Usage, prompt=COUNTS, cached=COUNTS, completion=COUNTS, accepted=COUNTS, rejected=COUNTS, reasoning=COUNTS
)


@given(st.lists(USAGES, max_size=4))
def test_usage_is_the_sum_over_the_calls(usages: list[Usage]) -> None:
    total = usage_of(usages)
    assert total.prompt_tokens == sum(usage.prompt for usage in usages)
    assert total.completion_tokens == sum(usage.completion for usage in usages)
    assert total.total_tokens == total.prompt_tokens + total.completion_tokens
    assert total.prompt_tokens_details.cached_tokens == sum(usage.cached for usage in usages)
    details = total.completion_tokens_details
    if any(usage.accepted or usage.rejected or usage.reasoning for usage in usages):
        assert not isinstance(details, msgspec.UnsetType)
        assert details.reasoning_tokens == sum(usage.reasoning for usage in usages)
    else:
        assert details is msgspec.UNSET


def test_calls_of_a_named_session_are_described() -> None:
    graph = session()
    calls = [graph.add(spec(output=name)) for name in ("a", "b", "c")]
    assert semantic_field(Scope(graph, is_named=False, is_deferred=False), calls) is msgspec.UNSET
    field = semantic_field(Scope(graph, is_named=True, is_deferred=False), calls)
    assert not isinstance(field, msgspec.UnsetType)
    assert (field["output"], [other["output"] for other in field["others"]]) == ("a", ["b", "c"])
    assert "others" not in semantic_field(Scope(graph, is_named=True, is_deferred=False), calls[:1])  # type: ignore[operator]
    assert reference_to(calls[1]) == "<<b>>"


def test_only_a_call_that_is_done_has_an_answer() -> None:
    call = session().add(spec(output="a"))
    with pytest.raises(FailedCall) as failed:
        check_done(call)
    assert (failed.value.status, failed.value.code) == (500, "internal_error")
    call.failure = Failure("engine_failed", "it broke")
    call.set_state(CallState.FAILED)
    with pytest.raises(FailedCall, match="it broke") as failed:
        check_done(call)
    assert failed.value.status == 503
    call.set_state(CallState.DONE)
    check_done(call)
