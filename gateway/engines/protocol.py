"""The universal engine, after the Parrot paper's abstraction: fill, generate, free a context.

Contexts are handles. Commands are sent at once and in order; a refusal surfaces at the next thing awaited.

    EngineFailure           carries the wire contract's `code`
    ├── ContextRefused      the engine cannot do this for this context (too long, a bad parameter)
    ├── EngineLost          the engine died or was taken away while it worked on the context
    │   └── EngineBusy      it has no room for the context now
    └── NoEngine            no engine could take the work in time
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from gateway.graph.call import SamplingParams
from gateway.graph.variable import Piece


class EngineFailure(Exception):
    """An engine did not do what it was asked. `field`: path of the request's field at fault, if there is one."""

    code: str = "engine_failed"
    field: str | None = None


class ContextRefused(EngineFailure):
    """The engine's own code and words."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class EngineLost(EngineFailure):
    """Work was in flight and is gone; it may be tried again."""

    code = "engine_failed"

    def __init__(self, message: str, *, suspect: bool = True, pause: float = 0.0) -> None:
        """`suspect`: perhaps this very work brought the engine down. `pause`: seconds to let pass before it is tried
        there again."""
        super().__init__(message)
        self.suspect = suspect
        self.pause = pause


class EngineBusy(EngineLost):
    """It takes no more for `pause` seconds."""

    code = "engine_overloaded"


class NoEngine(EngineFailure):
    """Nothing ready to take work."""

    code = "engine_unavailable"


class Urgency(NamedTuple):
    """How soon an engine is to work on a context: lower ranks go first. `interactive`: a client waits for what it
    generates, so that it goes on at a steady pace; else only its end counts."""

    rank: float
    interactive: bool


class StepTimes(NamedTuple):
    """What an engine's steps take, in seconds: a row of a prompt, and a step in which one or two contexts generate."""

    row_seconds: float
    step_seconds: float


class PrefillResult(NamedTuple):
    """A context's prompt is there: its length in tokens, and how many of them were found in a cache. `held` and
    `starved`: seconds for which it waited for room in a step, and for memory. `missed`: how many were not found, by why
    they were not, in the engine's words."""

    tokens: int
    cached: int
    held: float = 0.0
    starved: float = 0.0
    missed: Mapping[str, int] = MappingProxyType({})


class TokenDelta(NamedTuple):
    """What a step brought. `finish`: `stop` or `length`, on the last one. `accepted`, `rejected`: tokens of the
    prediction that were right, and that were checked and wrong."""

    piece: Piece
    finish: str | None
    accepted: int = 0
    rejected: int = 0


class TokenCounts(NamedTuple):
    """What the engine's own server says of the context's tokens so far: those of prompts, of these the ones it found in
    a cache, and those that were generated, of which `reasoning` are no part of the answer. For engines whose prompts
    are counted in something else here."""

    prompt: int
    cached: int
    completion: int
    reasoning: int = 0


ContextEvent = PrefillResult | TokenDelta | TokenCounts
"""What comes of a context that generates."""
EventCallback = Callable[[ContextEvent], None]


class EngineContext(Protocol):
    """A text being read and written on one engine. What is generated stays in it, to the last character that was told
    and no further: what is filled next goes on behind that."""

    def fill(self, tokens: Sequence[int]) -> None:
        """Appends tokens."""

    async def generate(self, sampling: SamplingParams, tell: EventCallback) -> None:
        """Samples behind what was filled, until that ends. `tell` is given Filled once, then deltas, and Counted where
        it is known at the end only; from wherever they come, so that no task wakes for each. What it raises ends the
        generation and is raised. Raises EngineFailure."""

    def rerank(self, urgency: Urgency) -> None:
        """From here on."""

    def free(self) -> None:
        """Ends what runs and forgets the context. May be called again."""


class Engine(Protocol):
    """Something that runs contexts of one model."""

    name: str
    tokens_per_unit: float
    """Tokens of the model's that one of `fill` stands for, about: 1, or less where those are characters."""
    constrains_after_reasoning: bool
    """Whether a form holds what comes behind the model's thoughts, where `SamplingParams.thinks` says that there may be
    some; else it holds all of the text."""

    @property
    def ready(self) -> bool:
        """Whether it takes work now."""

    @property
    def load(self) -> int:
        """Contexts open."""

    @property
    def pace(self) -> StepTimes | None:
        """As it has been lately; None where that is not known."""

    async def encode(self, text: str) -> Sequence[int]:
        """Tokens of a value: ordinary text, never control tokens."""

    def encode_stable(self, text: str) -> tuple[Sequence[int], int]:
        """Tokens of a value that is still growing, as far as nothing that may come can change them, and the length of
        their text in characters. (), 0 where that cannot be known."""

    def open(self, scope: str, urgency: Urgency) -> EngineContext:
        """A new, empty context. Contexts of different scopes share no KV. Raises EngineLost."""


class Engines(Protocol):
    """The engines there are."""

    async def serving(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        """The ready engines of a model, waited for if need be and `wait`. Raises NoEngine."""
