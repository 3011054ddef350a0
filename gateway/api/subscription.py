"""Keep a client subscribed to variables while it waits for them.

This is the only place where a disconnect becomes a cancellation. When a client disconnects, aiohttp cancels the task of
its request. The cancellation leaves the `with` block of `subscribed`, which unsubscribes the client. The scheduler then
cancels every call whose outputs have no subscriber and no consumer left.
"""

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType

from gateway.graph.call import Objective
from gateway.graph.session import Session
from gateway.graph.variable import Variable
from gateway.scheduler import Scheduler


class Subscription:
    """One client's subscription to some variables. A context manager; see `subscribed`."""

    __slots__ = ("_after_response", "_interactive", "_objective", "_on_end", "_scheduler", "_session", "_variables")

    def __init__(
        self,
        scheduler: Scheduler,
        variables: Iterable[Variable],
        objective: Objective,
        interactive: bool,
        session: Session | None,
        after_response: bool,
        on_end: Callable[[], object] | None,
    ) -> None:
        self._scheduler = scheduler
        self._variables = list(variables)
        self._objective = objective
        self._interactive = interactive
        self._session = session
        self._after_response = after_response
        self._on_end = on_end

    def __enter__(self) -> None:
        if self._session is not None:
            self._session.add_waiter()
        for variable in self._variables:
            self._scheduler.subscribe(variable, self._objective, interactive=self._interactive)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._after_response:
            asyncio.get_running_loop().call_soon(self._end)
        else:
            self._end()

    def _end(self) -> None:
        for variable in self._variables:
            self._scheduler.unsubscribe(variable, self._objective, interactive=self._interactive)
        if self._session is not None:
            self._session.remove_waiter()
        if self._on_end is not None:
            self._on_end()


def subscribed(
    scheduler: Scheduler,
    variables: Iterable[Variable] = (),
    objective: Objective = Objective.LATENCY,
    *,
    interactive: bool = True,
    session: Session | None = None,
    after_response: bool = False,
    on_end: Callable[[], object] | None = None,
) -> Subscription:
    """Return a context manager that keeps a client subscribed to the variables while its block runs.

    `interactive`: whether the client waits for each variable alone; see the glossary. `session`: counts the client
    among its waiters, and raises TooManyWaiters if there are too many. `after_response`: end the subscription in the
    next turn of the event loop, so that the response is sent first. `on_end`: called once the subscription has ended.
    """
    return Subscription(scheduler, variables, objective, interactive, session, after_response, on_end)
