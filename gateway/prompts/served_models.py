"""The served models: their names for clients, their prompt builders and their context windows."""

import asyncio
import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.tokenizer import Tokenizer
from gateway.errors import RequestError, field_path
from gateway.prompts.builder import PromptBuilder
from gateway.runtime.name_pattern import matches

_BUILT_IN_NAMES = "claude-"
"""Beginning of the names of models that clients of Anthropic's API use on their own."""
_MAX_COMPARED = 200
"""Number of characters of an unknown name that are compared with the names of models."""
_MAX_LISTED = 20
"""Maximum number of models that an error lists."""


@dataclass(frozen=True)
class ServedModel:
    """A model that clients can name.

    `window` and `vocabulary` are in tokens; None if unknown. `tokenizer`: None with message passthrough: only the
    upstream server knows the tokens, and the gateway counts prompts in characters.
    """

    id: str
    window: int | None
    vocabulary: int | None
    tokenizer: Tokenizer | None
    prompts: PromptBuilder
    created: int = field(default_factory=lambda: int(time.time()))
    capabilities: Sequence[str] = ("chat", "completions")
    """Kinds of requests that the model answers, such as `embeddings`."""
    embedding: int = 0
    """Number of values of an embedding; 0 if the model generates text, or is on an upstream server."""
    normalizes: bool = False
    """Whether embeddings have length 1."""

    def token_bytes(self, token: int | bytes) -> bytes:
        """Return the bytes of a token. Tokens of upstream servers are bytes already."""
        return token if isinstance(token, bytes) else self.known_tokenizer.token_bytes(token)

    @property
    def is_passthrough(self) -> bool:
        """Whether messages are forwarded to an upstream server without a chat template."""
        return self.tokenizer is None

    @property
    def known_tokenizer(self) -> Tokenizer:
        """The tokenizer. Read it only if `is_passthrough` is false: other models have none."""
        assert self.tokenizer is not None
        return self.tokenizer


class ServedModels:
    """Owner of the models that are served. Each is added once its engine is ready."""

    def __init__(self, wait_seconds: float) -> None:
        """`wait_seconds`: longest time that a request waits for the first model during the start."""
        self._wait_seconds = wait_seconds
        self._served: dict[str, ServedModel] = {}
        self._aliases: dict[str, str] = {}
        self._patterns: dict[str, str] = {}
        """Models by the aliases that are patterns."""
        self._fallbacks: dict[str, Sequence[str]] = {}
        self._hidden: frozenset[str] = frozenset()
        """Names and aliases of models that exist and may not be used."""
        self._started = asyncio.Event()

    def restricted(self, may_use: Callable[[str], bool]) -> "ServedModels":
        """Return a view in which only those models exist that may be used, also as aliases and fallbacks of others.

        `may_use` returns whether a model may be used, by its own name.
        """
        return _RestrictedModels(self, may_use)

    def window_of(self, name: str) -> int | None:
        """Return the window of a model by its own name, in tokens; None if it is unknown."""
        model = self._served.get(name)
        return None if model is None else model.window

    def add(self, model: ServedModel) -> None:
        """Add a model that is ready."""
        self._served[model.id] = model
        self._started.set()

    def set_aliases(self, aliases: Mapping[str, str], fallbacks: Mapping[str, Sequence[str]]) -> None:
        """Set aliases and fallbacks.

        `aliases`: models by their other names, in which `*` stands for any text. Of several patterns that match, the
        first counts; other names go before patterns. `fallbacks`: for each model, the models that replace it, in order.
        """
        self._fallbacks = dict(fallbacks)
        self._aliases = {name: model for name, model in aliases.items() if "*" not in name}
        self._patterns = {name: model for name, model in aliases.items() if "*" in name}

    async def get_or_substitute(self, name: str) -> ServedModel:
        """Return the model of that name or alias. If there is none and the name begins with `claude-`, return the only
        model: agents use such names on their own. Raises RequestError as `get` does."""
        if name.startswith(_BUILT_IN_NAMES) and self._find(name) is None:
            served = await self.all()
            if len(served) == 1:
                return served[0]
        return await self.get(name)

    def _find(self, name: str) -> ServedModel | None:
        """Return the model of that name, alias or alias pattern."""
        if name in self._hidden:
            return None
        target = self._aliases.get(name)
        if target is None and name not in self._served:
            target = next((model for pattern, model in self._patterns.items() if matches(pattern, name)), None)
        return self._served.get(target or name)

    def fallbacks_of(self, model: ServedModel) -> list[ServedModel]:
        """Return the models that answer if no engine of this model does, in order."""
        return [self._served[name] for name in self._fallbacks.get(model.id, ())]

    def decode(self, model: str, tokens: Sequence[int]) -> str:
        """Return the text of tokens, with control tokens. It is empty if the model, or its tokenizer, is not known."""
        served = self._served.get(model)
        if served is None or served.tokenizer is None:
            return ""
        return served.tokenizer.decode(list(tokens), skip_special=False)

    async def all(self) -> list[ServedModel]:
        """Return all models. Raises RequestError 503 if none is ready in time."""
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

    async def find_or_only(self, name: str | None) -> ServedModel:
        """Return the model of that name, or the only one. Raises RequestError if there is no such model, or there are
        several."""
        if name is not None:
            return await self.get(name)
        served = await self.all()
        if not served:
            message = "this API key may use none of the served models"
            raise RequestError(404, message, code="model_not_found", param="model")
        first, *others = served
        if others:
            message = f"several models are served; specify one of {first.id}, {', '.join(other.id for other in others)}"
            raise RequestError(400, message, code="missing_required_parameter", param="model")
        return first

    async def get(self, name: str, where: str = "") -> ServedModel:
        """Return the model of that name or alias. `where`: path of the request in a larger one.

        Raises RequestError 404, which lists similar names or the served models.
        """
        if not self._served:
            await self._ready()
        model = self._find(name) if name in self._aliases else self._served.get(name) or self._find(name)
        if model is None:
            served = self._served
            # of a name of megabytes, the search would block the event loop for seconds
            near = difflib.get_close_matches(name[:_MAX_COMPARED], [*served, *self._aliases], n=1)
            near = near or list(served)[:_MAX_LISTED]
            message = f"The model {name!r} does not exist; served: {', '.join(near) or 'none for this API key'}"
            raise RequestError(404, message, code="model_not_found", param=field_path(where, "model"))
        return model


class _RestrictedModels(ServedModels):
    """View of the models that one API key may use."""

    def __init__(self, models: ServedModels, may_use: Callable[[str], bool]) -> None:
        super().__init__(models._wait_seconds)
        self._models = models
        self._may_use = may_use
        self._refresh()

    def _refresh(self) -> None:
        """Copy from the other models those that may be used."""
        models, may_use = self._models, self._may_use
        self._served = {name: model for name, model in models._served.items() if may_use(name)}
        self._aliases = {alias: name for alias, name in models._aliases.items() if name in self._served}
        hidden = (models._served.keys() - self._served.keys()) | (models._aliases.keys() - self._aliases.keys())
        self._hidden = frozenset(hidden - self._aliases.keys())
        self._patterns = models._patterns  # the first that matches counts, also if its model may not be used
        self._fallbacks = {
            name: [fallback for fallback in fallbacks if fallback in self._served]
            for name, fallbacks in models._fallbacks.items()
        }

    async def _ready(self) -> None:
        await self._models._ready()
        self._refresh()
