"""One model of a server elsewhere, as an engine: a request for each text that is generated.

Nothing is filled ahead there: what was filled stays here until something is generated behind it. What was filled and
generated before goes along with the next request, the same to the last character, so that the server finds it in its
cache.
"""

import dataclasses
import hashlib
import json
import math
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.tokenizer import Tokenizer
from gateway.engines.openai.concurrency import ConcurrencySlot
from gateway.engines.openai.stream_parser import LONGEST_ANSWER, Answer, InvalidAnswer, Usage
from gateway.engines.openai.upstream import Upstream
from gateway.engines.protocol import (
    ContextRefused,
    EngineLost,
    EventCallback,
    PrefillResult,
    StepTimes,
    TokenCounts,
    TokenDelta,
    Urgency,
)
from gateway.engines.tokenizing import tokens_of
from gateway.graph.call import SamplingParams
from gateway.http_client.connection import ConnectionBroken, Response
from gateway.prompts.message_passthrough import Transcript, Written, characters, read
from gateway.runtime import json_codec
from gateway.runtime.executors import offload

_HINTS = ("priority", "stream_options", "return_token_ids")
"""Fields that a server may do without. Not the salt: keys are kept apart, or nothing is sent."""
_LONG = 100_000
"""Number of tokens or characters from which a request is made in a thread."""
_TAIL_SECONDS = 5.0
"""After an answer's end, for what is told of its tokens."""


@dataclass(frozen=True)
class Changes:
    """How a request differs from what its server was believed to accept, after a refusal that names a field.

    `dropped`: fields that are left out. `length`: the field with the maximum length of an answer. A refusal may quote
    the client's own texts. So other requests are changed only after a changed request has succeeded.
    """

    dropped: frozenset[str] = frozenset()
    length: Literal["max_tokens", "max_completion_tokens"] | None = None


UNCHANGED = Changes()


class OpenAIEngine:
    """See `Engine`. Without a tokenizer it is given messages or text; with one, tokens."""

    def __init__(self, name: str, upstream: Upstream, model: str, tokenizer: Tokenizer | None = None) -> None:
        """`model`: as the server calls it."""
        self.name = name
        self.upstream = upstream
        self.model = model
        self.tokenizer = tokenizer
        self.tokens_per_unit = 0.25 if tokenizer is None else 1.0
        self.constrains_after_reasoning = False
        self.pace: StepTimes | None = None
        self.contexts = 0

    @property
    def ready(self) -> bool:
        """Whether it takes work now."""
        return self.upstream.ready

    @property
    def load(self) -> int:
        """Contexts open here, and requests that the server has from others."""
        return self.contexts + self.upstream.others

    async def encode(self, text: str) -> Sequence[int]:
        """See `Engine.encode`."""
        if self.tokenizer is None:
            return characters(text)
        return await tokens_of(text, self.tokenizer, None)

    def encode_stable(self, text: str) -> tuple[Sequence[int], int]:
        """Nothing is gained by what is filled early."""
        return (), 0

    def open(self, scope: str, urgency: Urgency) -> "OpenAIContext":
        """See `Engine.open`."""
        if not self.ready:
            raise EngineLost(f"the engine {self.name} takes no work now", suspect=False)
        self.contexts += 1
        return OpenAIContext(self, scope, urgency)

    def request(
        self, tokens: "array[int]", sampling: SamplingParams, scope: str, urgency: Urgency, changes: Changes = UNCHANGED
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of what continues the tokens. `changes`: what the server may want otherwise. Raises
        ContextRefused."""
        profile = self.upstream.profile
        if changes.length is not None:
            profile = dataclasses.replace(profile, length=changes.length)
        if self.tokenizer is not None:
            path, prompt = "/v1/completions", {"prompt": tokens.tolist(), "return_token_ids": True}
            if self.upstream.server.kind not in ("vllm", "sglang"):
                del prompt["return_token_ids"]
        else:
            said = read(tokens)
            path = "/v1/completions" if said.text is not None else "/v1/chat/completions"
            prompt = {"prompt": said.text} if said.text is not None else self._messages(said)
        body = {
            "model": self.model,
            **prompt,
            **profile.parameters(sampling, chat="messages" in prompt),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if profile.salt is not None and scope:
            body[profile.salt] = hashlib.sha256(scope.encode()).hexdigest()
        if profile.urgency is not None:
            field, ascending = profile.urgency
            rank = max(-(2**31), min(2**31 - 1, round(urgency.rank * (10 if ascending else -10))))
            body[field] = rank
        for name in (*self.upstream.dropped, *changes.dropped):
            body.pop(name, None)
        return path, body

    def _messages(self, said: Transcript) -> dict[str, Any]:
        messages = [_wired(message) for message in said.messages]
        body: dict[str, Any] = {"messages": messages, **said.options}
        if said.unfinished and not messages[-1]["content"]:
            messages.pop()  # nothing of it is there yet: it is begun
        elif said.unfinished:
            match self.upstream.profile.goes_on:
                case None:
                    raise self.upstream.profile.refusal("an answer that goes on behind a text (a slot behind one)")
                case "flags":
                    body |= {"add_generation_prompt": False, "continue_final_message": True}
        return body


def _streams(response: Response) -> bool:
    """Not all servers do that are asked to."""
    return response.headers.get("content-type", "").lower().startswith("text/event-stream")


def _wired(message: dict[str, Any]) -> dict[str, Any]:
    """A message as requests have it."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    told = [{**call, "function": _called(**call["function"])} for call in calls]
    return {**message, "tool_calls": told, "content": message["content"] or None}


def _called(name: str, arguments: dict[str, Any] | str) -> dict[str, str]:
    """Return a called function for a request. Arguments that are text are not JSON: they are sent unchanged."""
    return {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}


class OpenAIContext:
    """See `EngineContext`."""

    def __init__(self, engine: OpenAIEngine, scope: str, urgency: Urgency) -> None:
        self._engine = engine
        self._upstream = engine.upstream
        self._scope = scope
        self._tenant = scope.partition("\0")[0]
        self._urgency = urgency
        self._turn = ConcurrencySlot(urgency.rank)
        self._tokens = array("i")
        self._made: list[tuple[str, Sequence[int]]] = []
        """Texts that were generated behind these, with their tokens if the server told them."""
        self._generated = 0
        """Tokens, as the server counts them."""
        self._reasoned = 0
        """Of these, those that are no part of an answer."""
        self._cached: int | None = None
        self._freed = False
        self._response: Response | None = None
        """The one that is read."""

    def fill(self, tokens: Sequence[int]) -> None:
        """See `EngineContext.fill`."""
        if not self._tokens and isinstance(tokens, Written):
            self._tokens = tokens  # most have nothing more to fill
        else:
            self._join().extend(tokens)

    def _join(self) -> "array[int]":
        """All of it as one sequence that may be changed."""
        if isinstance(self._tokens, Written):
            self._tokens = array("i", self._tokens)
        for text, tokens in self._made:
            if self._engine.tokenizer is None:
                self._tokens.extend(characters(text))
            else:
                self._tokens.extend(tokens or self._engine.tokenizer.encode(text))
        self._made.clear()
        return self._tokens

    async def generate(self, sampling: SamplingParams, tell: EventCallback) -> None:
        """See `EngineContext.generate`."""
        began = time.monotonic()
        if self._made:
            self._join()
        await self._upstream.turns.take(self._turn)
        try:
            usage = await self._answered(sampling, tell, held=time.monotonic() - began)
        finally:
            self._upstream.turns.leave()
        if usage is not None:
            prompt, cached, completion, reasoning = usage
            self._reasoned += reasoning
            before, self._generated = self._generated, self._generated + completion
            self._cached = cached if self._cached is None else self._cached
            tell(TokenCounts(max(0, prompt - before), self._cached, self._generated, self._reasoned))

    async def _answered(self, sampling: SamplingParams, tell: EventCallback, held: float) -> Usage | None:
        """One answer, with the tokens that it took if the server says so."""
        begun, changes = False, UNCHANGED
        text, tokens = [""], array("i")

        def came(data: bytes) -> None:
            for piece, token_ids, finish in answer.feed(data):
                text.append(piece.text)
                tokens.extend(token_ids)
                tell(TokenDelta(piece, finish))
            if answer.ended and response.patience != _TAIL_SECONDS:  # what comes now is told of its tokens only
                response.patience = _TAIL_SECONDS
                response.until = time.monotonic() + _TAIL_SECONDS

        while True:
            path, body, content = await self._request(sampling, changes)
            if self._freed:
                raise EngineLost("the context was freed", suspect=False)
            try:
                self._response = response = await self._upstream.post(path, content, self._tenant)
                if not begun:
                    tell(PrefillResult(math.ceil(len(self._tokens) * self._engine.tokens_per_unit), 0, held=held))
                    begun = True
                answer = Answer(streamed=_streams(response))
                await self._read(response, answer, came)
            except (ContextRefused, EngineLost) as error:
                changed = self._changed(str(error), body, changes)
                if len(text) > 1 or changed is None:
                    raise
                changes = changed
            else:
                if changes is not UNCHANGED:
                    self._upstream.learn(changes.dropped, changes.length)
                self._made.append(("".join(text), tokens))
                return answer.usage

    async def _request(self, sampling: SamplingParams, changes: Changes) -> tuple[str, dict[str, Any], bytes]:
        """Return the next request's path and body, and the body as JSON. Raises ContextRefused."""

        def make() -> tuple[str, dict[str, Any], bytes]:
            path, body = self._engine.request(tokens, sampling, self._scope, urgency, changes)
            return path, body, json_codec.encode(body)

        tokens, urgency = self._tokens, self._urgency
        return make() if len(tokens) < _LONG else await offload(make, len(tokens))

    async def _read(self, response: Response, answer: Answer, came: Callable[[bytes], None]) -> None:
        """All of it, up to the response's end, so that its connection can be used again. Raises EngineLost, or
        ContextRefused."""
        try:
            if answer.streamed:
                await response.each(came)
            else:
                came(await response.read(LONGEST_ANSWER))
        except ConnectionBroken as error:
            if self._freed:
                raise EngineLost("the context was freed", suspect=False) from None
            if not answer.ended:
                raise self._upstream.broke(error, self._tenant) from error
        except InvalidAnswer as error:
            self._upstream.failed(self._tenant)
            raise self._upstream.lost(f"says what is no answer: {error}") from error
        finally:
            response.close()
        if not answer.ended:
            self._upstream.failed(self._tenant)
            raise self._upstream.lost("broke off in the middle of an answer")
        self._upstream.succeeded()

    def _changed(self, refusal: str, body: dict[str, Any], changes: Changes) -> Changes | None:
        """Return the changes for another try, if the refusal names a field that can be left out, or has another name
        there; otherwise None. Some servers say so by 400, and SGLang by 503 in the middle of the stream that it has
        begun."""
        if (
            "max_completion_tokens" in refusal
            and "max_tokens" in body
            and "messages" in body
            and changes.length is None
        ):
            return dataclasses.replace(changes, length="max_completion_tokens")
        named = {field for field in _HINTS if field in body and field in refusal}
        return dataclasses.replace(changes, dropped=changes.dropped | named) if named else None

    def rerank(self, urgency: Urgency) -> None:
        """See `EngineContext.rerank`."""
        self._urgency = urgency
        self._upstream.turns.rerank(self._turn, urgency.rank)

    def free(self) -> None:
        """See `EngineContext.free`."""
        self._engine.contexts -= not self._freed
        self._freed = True
        if self._response is not None:
            self._response.close()
