"""The engine protocol, after the Parrot paper's universal engine: contexts with `fill`, `generate` and `free`.

Contexts are handles. Commands are sent immediately and in order. If the engine refuses one, the next awaited call
raises.

    EngineFailure           carries the wire contract's `code`
    ├── ContextRefused      the engine cannot do this for this context (prompt too long, invalid parameter)
    ├── EngineLost          the engine died or was disconnected while it worked on the context
    │   └── EngineBusy      the engine has no capacity for the context now
    └── NoEngine            no engine accepted the work in time
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from engine.sampling_params import SamplingParams
from gateway.graph.segments import PromptContent
from gateway.graph.variable import Piece
from gateway.telemetry.engine_status import EngineStatus


class EngineFailure(Exception):
    """An engine did not complete a command. `field`: path of the request's field at fault, if there is one."""

    code: str = "engine_failed"
    field: str | None = None


class ContextRefused(EngineFailure):
    """The engine refused a command. `code` and message are its own."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class EngineLost(EngineFailure):
    """The engine was lost with the work on a context. The call may get another attempt."""

    code = "engine_failed"

    def __init__(self, message: str, *, suspect: bool = True, pause: float = 0.0) -> None:
        """`suspect`: this work may have killed the engine. `pause`: seconds to wait before another attempt on this
        engine."""
        super().__init__(message)
        self.suspect = suspect
        self.pause = pause


class EngineBusy(EngineLost):
    """The engine accepts no more work for `pause` seconds."""

    code = "engine_overloaded"


class NoEngine(EngineFailure):
    """No engine is ready."""

    code = "engine_unavailable"


class Urgency(NamedTuple):
    """Urgency of a context. The lowest rank goes first.

    `interactive`: a client reads the text as it is generated, so that decoding should not pause. Otherwise only the end
    matters. `pausable`: its prompt may wait so that others keep their KV, because no other context waits for it.
    """

    rank: float
    interactive: bool
    pausable: bool = False


class StepTimes(NamedTuple):
    """Durations in seconds: of one prefill row, and of one generated token while one or two contexts decode."""

    row_seconds: float
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log probability of a token that is given by its bytes: token ids differ between servers, and the first token of
    an answer may begin with the end of the prompt. See `engine.protocol.TokenLogprob`."""

    token: bytes
    logprob: float
    top: Sequence[tuple[bytes, float]]


class PrefillResult(NamedTuple):
    """Result of a context's prefill: the length of the prompt, and its tokens that were cached.

    `held` and `starved`: seconds for which the prompt waited for a place in a step, and for memory. `missed`: tokens
    that were not cached, by the engine's reason.
    """

    tokens: int
    cached: int
    held: float = 0.0
    starved: float = 0.0
    missed: Mapping[str, int] = MappingProxyType({})


class TokenDelta(NamedTuple):
    """Output of one step. `finish`: `stop` or `length`, on the last one. `accepted`: predicted tokens that were right.
    `rejected`: predicted tokens that were verified and wrong.
    `stop_string`: the stop string that ended the text, if the engine reports it."""

    piece: Piece
    finish: str | None
    accepted: int = 0
    rejected: int = 0
    stop_string: str | None = None


class TokenCounts(NamedTuple):
    """Token counts that an upstream server reports for the context so far.

    `prompt` includes `cached`; `completion` includes `reasoning`. They replace the gateway's own counts, for engines
    whose prompts are not counted in tokens here.
    """

    prompt: int
    cached: int
    completion: int
    reasoning: int = 0


ContextEvent = PrefillResult | TokenDelta | TokenCounts
"""Events of a context that generates."""
EventCallback = Callable[[ContextEvent], None]


class TextRun(Protocol):
    """Text that an engine gets as one piece of a prompt: known texts, values and generated texts between two control
    tokens. It turns them into content for `fill`.

    The tokens of text depend on the text next to it. So the content is that of the joined text, and only content that
    later text cannot change is returned before the end.
    """

    is_rewritten: bool
    """Whether the context must be filled again from the first pending text on, after text was generated there."""

    async def push(self, text: str) -> PromptContent:
        """Add known text at the end. Return the content that no later text can change, possibly empty.

        Raises ContextRefused if the text cannot fit into the window.
        """

    async def rest(self) -> PromptContent:
        """Return the pending content, before text is generated after it. Raises ContextRefused as `push` does."""

    def resume(self, text: str) -> None:
        """Add text that was generated after `rest`."""

    async def finish(self) -> PromptContent:
        """Return the pending content, after which the run ends. Raises ContextRefused as `push` does."""


class EngineContext(Protocol):
    """Text on one engine, with its KV cache.

    Generated text stays in it, up to the last character that was emitted. The next `fill` appends after it.
    """

    def fill(self, content: PromptContent, *, start: int | None = None) -> None:
        """Append tokens, or text or messages as `Engine` accepts them. Raises EngineFailure if an earlier command
        failed.

        `start`: position in the context from which on the tokens replace what is there, generated tokens included.
        """

    async def generate(self, sampling: SamplingParams, on_event: EventCallback, *, heals: bool = False) -> None:
        """Generate after the filled tokens, until the generation ends. Raises EngineFailure if the engine refuses the
        context or is lost.

        `heals`: the filled text may end inside a token, which the generated text completes. Engines that cannot do this
        ignore it.

        `on_event` gets one PrefillResult, then TokenDeltas, and at the end TokenCounts if the engine reports them. It
        is called where the data arrives, so that no task has to wake for each token. An error that it raises ends the
        generation and is raised here.
        """

    def rerank(self, urgency: Urgency) -> None:
        """Change the urgency of the context's work from now on."""

    def free(self) -> None:
        """Abort the context's work and release it. Freeing it a second time does nothing."""

    def retain(self, returns: Sequence[float]) -> None:
        """Expect that a later context continues this one, which was freed. Before `free`, it does nothing. Engines that
        cannot retain KV for it ignore it.

        `returns`: sorted durations of earlier waits of this kind, in seconds since `free`, at most 128. Without any,
        nothing is expected any more.
        """


class Engine(Protocol):
    """Runs contexts of one model."""

    name: str
    tokens_per_unit: float
    """Approximate number of the model's tokens per unit of `fill`: 1 for tokens, less for characters."""
    constrains_after_reasoning: bool
    """Whether a constraint applies only after the model's reasoning, if `SamplingParams.thinks` says that there may be
    some. Otherwise it applies to all of the text."""
    pauses_prompts: bool
    """Whether the engine itself lets pausable prompts wait. Otherwise the scheduler does, see `ProgramGate`."""

    @property
    def kv_tokens(self) -> int:
        """Size of its KV cache, in tokens; 0 if that is unknown."""

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts work now."""

    @property
    def load(self) -> int:
        """Number of open contexts."""

    @property
    def step_times(self) -> StepTimes | None:
        """Recent durations of the engine's steps; None if they are unknown."""

    def describe(self) -> EngineStatus:
        """Return the engine's state, for people who watch the server."""

    def open_text(self, *, adds_space: bool) -> TextRun:
        """Return an empty run of text. Its text is ordinary text: it never becomes control tokens.

        `adds_space`: put a space before the text if it is not empty, as some vocabularies need it.
        """

    def open(self, scope: str, urgency: Urgency, traceparent: str = "") -> EngineContext:
        """Open an empty context. Contexts of different scopes share no KV cache. `traceparent`: header that an upstream
        server gets, if it is not empty. Raises EngineLost if the engine accepts no work now."""


class Engines(Protocol):
    """The engines of all models."""

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        """Return the ready engines of a model. Wait for one, if there is none and `wait` is true. Raises NoEngine if
        there is none in time."""
