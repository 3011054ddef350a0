"""The models that are served: what clients call them, how their prompts are built, how long they may be."""

import asyncio
import difflib
import time
from dataclasses import dataclass, field

from engine.tokenizer import Tokenizer
from gateway.errors import RequestError, at
from gateway.prompt import PromptBuilder


@dataclass(frozen=True)
class ServedModel:
    """A model that clients can name. `window` and `vocabulary` are in tokens."""

    id: str
    window: int
    vocabulary: int
    tokenizer: Tokenizer
    prompts: PromptBuilder
    created: int = field(default_factory=lambda: int(time.time()))


class Models:
    """The models that are served, from the time their engine is ready."""

    def __init__(self, wait_seconds: float) -> None:
        """`wait_seconds`: how long a request that comes during the start is held."""
        self._wait_seconds = wait_seconds
        self._served: dict[str, ServedModel] = {}
        self._started = asyncio.Event()

    def add(self, model: ServedModel) -> None:
        """The model is ready."""
        self._served[model.id] = model
        self._started.set()

    async def all(self) -> list[ServedModel]:
        """Every model. Raises RequestError 503 if none is ready in time."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._started.wait()
        except TimeoutError:
            raise RequestError(503, "the model is still loading", code="engine_unavailable") from None
        return list(self._served.values())

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
        served = {model.id: model for model in await self.all()}
        if name not in served:
            near = difflib.get_close_matches(name, served, n=1) or list(served)
            message = f"there is no model {name!r}; served: {', '.join(near)}"
            raise RequestError(404, message, code="model_not_found", param=at(where, "model"))
        return served[name]
