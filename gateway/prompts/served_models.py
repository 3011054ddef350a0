"""The models that are served: what clients call them, how their prompts are built, how long they may be."""

import asyncio
import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.errors import RequestError, at
from gateway.prompts.builder import PromptBuilder, PromptTokenizer

_NAMED = 20
"""Models that an error names at most."""


@dataclass(frozen=True)
class ServedModel:
    """A model that clients can name. `window` and `vocabulary` are in tokens; None: nobody has said. Where the
    tokenizer passes on, prompts are counted in characters here, and only the engine's server knows its tokens."""

    id: str
    window: int | None
    vocabulary: int | None
    tokenizer: PromptTokenizer
    prompts: PromptBuilder
    created: int = field(default_factory=lambda: int(time.time()))

    def token_bytes(self, token: int | bytes) -> bytes:
        """What a token stands for; engines elsewhere tell it by its bytes."""
        return token if isinstance(token, bytes) else self.tokenizer.token_bytes(token)


class ServedModels:
    """The models that are served, from the time their engine is ready."""

    def __init__(self, wait_seconds: float) -> None:
        """`wait_seconds`: how long a request that comes during the start is held."""
        self._wait_seconds = wait_seconds
        self._served: dict[str, ServedModel] = {}
        self._aliases: dict[str, str] = {}
        self._fallbacks: dict[str, Sequence[str]] = {}
        self._started = asyncio.Event()

    def add(self, model: ServedModel) -> None:
        """The model is ready."""
        self._served[model.id] = model
        self._started.set()

    def relate(self, aliases: Mapping[str, str], fallbacks: Mapping[str, Sequence[str]]) -> None:
        """`aliases`: models by their other names. `fallbacks`: models that answer in a model's place, in order."""
        self._aliases, self._fallbacks = dict(aliases), dict(fallbacks)

    def behind(self, model: ServedModel) -> list[ServedModel]:
        """Who answers if no engine of the model does, in order."""
        return [self._served[name] for name in self._fallbacks.get(model.id, ())]

    async def all(self) -> list[ServedModel]:
        """Every model. Raises RequestError 503 if none is ready in time."""
        await self._ready()
        return list(self._served.values())

    async def _ready(self) -> None:
        if self._started.is_set():
            return
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._started.wait()
        except TimeoutError:
            raise RequestError(503, "the model is still loading", code="engine_unavailable") from None

    async def one(self, name: str | None) -> ServedModel:
        """The model of that name, or the only one there is. Raises RequestError."""
        if name is not None:
            return await self.get(name)
        first, *others = await self.all()
        if others:
            message = f"several models are served; name one of {first.id}, {', '.join(other.id for other in others)}"
            raise RequestError(400, message, code="missing_required_parameter", param="model")
        return first

    async def get(self, name: str, where: str = "") -> ServedModel:
        """The model of that name, asked for by the request at `where` in a larger one.

        Raises RequestError 404, which names the ones there are.
        """
        if not self._served:
            await self._ready()
        served, name = self._served, self._aliases.get(name, name)
        if name not in served:
            near = difflib.get_close_matches(name, [*served, *self._aliases], n=1) or list(served)[:_NAMED]
            message = f"there is no model {name!r}; served: {', '.join(near)}"
            raise RequestError(404, message, code="model_not_found", param=at(where, "model"))
        return served[name]
