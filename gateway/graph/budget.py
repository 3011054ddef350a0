"""The budget of a session or of an agent: how much its calls may use."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from gateway.graph.errors import Failure, GraphError

if TYPE_CHECKING:
    from gateway.graph.call import Call


class TokenPrice(Protocol):
    """Price of a model's tokens."""

    def cost(self, prompt: int, cached: int, completion: int) -> float:
        """Return the cost of tokens. `prompt` includes `cached`."""


class _Free:
    def cost(self, prompt: int, cached: int, completion: int) -> float:
        return 0.0


FREE: TokenPrice = _Free()
"""The price of models that cost nothing."""


class BudgetExceeded(GraphError):
    """The calls of the session may not use more."""

    code: ClassVar[str] = "budget_exceeded"


@dataclass(frozen=True)
class Limits:
    """Limits of a budget; None for no limit.

    `cost`: in the currency of the operator's prices. `calls`: number of calls of models and tools. `seconds`: time from
    the creation of the session, or from the addition of the agent.
    """

    tokens: int | None = None
    cost: float | None = None
    calls: int | None = None
    seconds: float | None = None


@dataclass(eq=False)
class Budget:
    """Owner of the sums of what the calls of a session, or of an agent, have used.

    A prompt that does not fit is refused. An answer ends with the token that reaches a limit, so the sums exceed a
    limit by at most the tokens that other calls of the session get in the same step of their engines.
    """

    owner: str
    """Owner of the budget, for messages: a session or an agent with its name."""
    limits: Limits
    price_of: Callable[[str], TokenPrice]
    """Returns the price of a model."""
    on_exhausted: Callable[[], None] = lambda: None
    """Called once, when a limit is reached."""
    tokens: int = 0
    cost: float = 0.0
    calls: int = 0
    is_exhausted: bool = False
    is_late: bool = False
    """Whether the time is over."""
    _used: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Tokens and cost of each call so far, by its id."""

    def charge(self, call: "Call") -> None:
        """Count what a call has used by now. Call it whenever that changes."""
        self._count(call, *call.spent_tokens)

    def admit(self, call: "Call") -> None:
        """Count a prompt that is about to be prefilled. Raises BudgetExceeded if it leaves no room for an answer; then
        nothing is counted."""
        prompt, completion = call.usage.prompt, call.usage.completion
        tokens, cost = self._used.get(call.id, (0, 0.0))
        new_cost = self._price(call).cost(prompt, 0, completion)
        if self.is_exhausted or self._is_reached(
            self.tokens + prompt + completion - tokens, self.cost + new_cost - cost
        ):
            raise self.error(prompt)
        self._count(call, prompt, 0, completion)

    def check_calls(self, count: int) -> None:
        """Raise BudgetExceeded if there may not be so many more calls."""
        limit = self.limits.calls
        if limit is not None and self.calls + count > limit:
            raise BudgetExceeded(
                f"the budget of {self.owner} is exceeded: "
                f"{self.calls + count} calls of models and tools; the maximum is {limit}"
            )

    def end_time(self) -> None:
        """End the budget, because its time is over."""
        if not self.is_exhausted:
            self.is_exhausted = self.is_late = True
            self.on_exhausted()

    def _price(self, call: "Call") -> TokenPrice:
        return self.price_of(call.model or call.spec.model)

    def _count(self, call: "Call", prompt: int, cached: int, completion: int) -> None:
        tokens, cost = self._used.get(call.id, (0, 0.0))
        new = prompt + completion, self._price(call).cost(prompt, cached, completion)
        self._used[call.id] = new
        self.tokens += new[0] - tokens
        self.cost += new[1] - cost
        if not self.is_exhausted and self._is_reached(self.tokens, self.cost):
            self.is_exhausted = True
            self.on_exhausted()

    def _is_reached(self, tokens: int, cost: float) -> bool:
        limits = self.limits
        return (limits.tokens is not None and tokens >= limits.tokens) or (
            limits.cost is not None and cost >= limits.cost
        )

    def error(self, prompt: int = 0) -> BudgetExceeded:
        """Return the error of calls that do not fit. `prompt`: number of tokens of a prompt that leaves no room for an
        answer, although the limit is not reached."""
        if self.is_late:
            return BudgetExceeded(f"the budget of {self.owner} is exceeded: its {self.limits.seconds:g} s are over")
        limits = []
        if self.limits.tokens is not None:
            limits.append(f"{self.tokens} of {self.limits.tokens} tokens")
        if self.limits.cost is not None:
            limits.append(f"{self.cost:.6g} of {self.limits.cost:.6g} in cost")
        used = f"used {' and '.join(limits)}"
        if prompt and not self.is_exhausted:
            room = f"the budget of {self.owner} has no room for this call"
            return BudgetExceeded(f"{room}: {used}, and its prompt counts as {prompt} tokens")
        return BudgetExceeded(f"the budget of {self.owner} is exceeded: {used}")

    def failure(self) -> Failure:
        """Return the reason why the session's calls fail."""
        return Failure(BudgetExceeded.code, str(self.error()))
