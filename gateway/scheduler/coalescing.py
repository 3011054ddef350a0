"""Coalescing of identical calls: one of them runs, and the others copy its outputs."""

from gateway.graph.call import Call, CallState, Usage
from gateway.graph.errors import Failure
from gateway.graph.variable import VariableState
from gateway.scheduler.input_reader import CallFailed


def find_leader(call: Call, identity: bytes | None, *, is_running: bool = False) -> Call | None:
    """Return the call that does the same, if there is one. Otherwise register this call as the leader. `is_running`:
    only a call that has not ended is a leader."""
    if identity is None or not call.session.id:
        return None
    reusable_calls = call.session.reusable_calls
    known = reusable_calls.get(identity)
    if (
        known is not None
        and known is not call
        and known.state not in (CallState.FAILED, CallState.CANCELLED)
        and not (is_running and known.state is CallState.DONE)
    ):
        return known if call.spec.share else None
    reusable_calls[identity] = call
    call.identity = identity
    return None


async def copy_outputs(call: Call, leader: Call) -> None:
    """Copy the leader's outputs as they grow. Raises ProducerRestarted if the leader starts again, and CallFailed."""
    call.engine, call.model = leader.engine, leader.model
    call.times.queued = call.session.clock()
    for target, source in zip(call.outputs, leader.outputs, strict=True):
        with source.read() as reader:
            while pieces := await call.next_pieces(reader, source):
                if call.state is not CallState.DECODE:
                    call.times.started = call.times.first_token = call.session.clock()
                    call.set_state(CallState.DECODE)
                for piece in pieces:
                    target.append(piece)
        if source.state is not VariableState.READY:
            reason = source.failure or Failure("cancelled", "the call that served this one was cancelled")
            raise CallFailed(reason)
        if target is not call.output:
            call.session.record_value(target, target.text)
            await call.session.event_log.flush()
            target.complete()
    usage = leader.usage
    call.usage = Usage(usage.prompt, usage.prompt, usage.completion, reasoning=usage.reasoning)
    call.finish_reason, call.stop_string = leader.finish_reason, leader.stop_string
