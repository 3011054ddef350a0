"""End calls: set their final states, fail the consumers of failed outputs, and cancel calls that nothing needs.

A client that disconnects unsubscribes from its variables (`gateway/api/subscription.py`). If a variable has neither a
subscriber nor a consumer left, its producer is cancelled here. Then the calls that the producer waited for are
cancelled too, as far as no client and no other call needs them.
"""

from collections.abc import Callable

from gateway.graph.call import Call, CallState
from gateway.graph.errors import Failure
from gateway.graph.variable import Variable
from gateway.scheduler.input_reader import upstream_failure
from gateway.scheduler.objective import sources


class Cancellation:
    """Ends calls. It walks the graph along its edges and keeps no state of its own."""

    def __init__(self, abort: Callable[[Call], None], observe: Callable[[Call], None]) -> None:
        """`abort` stops the work on a call that has ended. `observe` is called with each call that ends."""
        self._abort = abort
        self._observe = observe

    def end(self, call: Call, state: CallState, failure: Failure | None) -> None:
        """Move a call and its outputs to their final states, once. Consumers of outputs that failed fail as well."""
        ends = [(call, state, failure)]
        while ends:
            call, state, failure = ends.pop()
            if call.state.is_final:
                continue
            call.failure = failure
            call.times.finished = call.session.clock()
            call.set_state(state)
            call.conclude()
            self._observe(call)  # before subscribers leave: `observe` may look at them
            self._abort(call)
            if failure is not None and not call.session.is_closed:
                ends += [
                    (consumer, CallState.FAILED, upstream_failure(v))
                    for v in call.outputs
                    if v.failure
                    for consumer in v.consumers
                    if not consumer.survives(v)
                ]

    def cancel(self, call: Call, failure: Failure) -> None:
        """Cancel a call because of `failure`."""
        self.end(call, CallState.CANCELLED, failure)

    def fail_consumers(self, variable: Variable) -> None:
        """Fail the consumers of a variable that will get no value."""
        for consumer in [consumer for consumer in variable.consumers if not consumer.survives(variable)]:
            self.end(consumer, CallState.FAILED, upstream_failure(variable))

    def release(self, call: Call) -> None:
        """Cancel the call and its ancestors, as far as no client or call needs them."""
        stack = [call]
        while stack:
            current = stack.pop()
            if current.state.is_final or current.is_needed:
                continue
            self.cancel(current, Failure("cancelled", "no client waits for this call any more", current.id))
            stack.extend(sources(current))

    def release_variable(self, variable: Variable) -> None:
        """Release the variable's producer. If it has no producer and has failed, its consumers fail."""
        if variable.producer is not None:
            self.release(variable.producer)
        elif variable.failure is not None:
            self.fail_consumers(variable)

    def release_sources(self, call: Call) -> None:
        """Release the calls that an ended call waited for: its leader and the producers of its inputs."""
        for source in sources(call):
            self.release(source)
