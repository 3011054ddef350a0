"""One model of an upstream server, as an engine: one request for each text that is generated.

Nothing is prefilled early: filled text stays in the gateway until text is generated after it. Each request contains
everything that was filled and generated before, identical to the last character, so that the server finds it in its
prefix cache.
"""

import dataclasses
import hashlib
import json
import math
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.engines.openai.capabilities import TEXT
from gateway.engines.openai.concurrency import ConcurrencySlot
from gateway.engines.openai.stream_parser import LONGEST_ANSWER, AnswerParser, InvalidAnswer, ReportedUsage
from gateway.engines.openai.tool_calls import MalformedToolCall
from gateway.engines.openai.upstream import Upstream
from gateway.engines.protocol import (
    ContextRefused,
    EngineFailure,
    EngineLost,
    EventCallback,
    PrefillResult,
    StepTimes,
    TextRun,
    TokenCounts,
    TokenDelta,
    Urgency,
)
from gateway.engines.tokenizing import CharacterRun, TokenRun
from gateway.graph.segments import Messages, PromptContent, content_size, tokens_of_content
from gateway.http_client.errors import ConnectionBroken
from gateway.http_client.response import Response
from gateway.prompts.message_join import join_messages
from gateway.runtime.executors import offload
from gateway.runtime.json_codec import encode_json
from gateway.telemetry.engine_status import EngineStatus

_HINTS = ("priority", "stream_options", "return_token_ids")
"""Fields that can be left out if a server refuses them. The salt is not one: without it, tenants would share a
cache."""
HINTS_OF_MESSAGES = ("enable_thinking", "thinking", "effort", "metadata", "cache_control")
"""Hints of Messages requests, for servers that support them."""
_OFFLOAD_SIZE = 100_000
"""Number of tokens or characters from which a request is built in a thread."""
_TAIL_SECONDS = 5.0
"""Maximum wait for the token counts after the end of an answer, in seconds."""


@dataclass(frozen=True)
class RequestChanges:
    """Changes to a request after the server has refused one of its fields.

    `dropped`: fields that the next try leaves out. `length_field`: field that the next try uses for the maximum length
    of an answer. The refusal may name a field only because it quotes the client's text. So later requests are changed
    as well only after a changed request has succeeded."""

    dropped: frozenset[str] = frozenset()
    length_field: Literal["max_tokens", "max_completion_tokens"] | None = None


UNCHANGED = RequestChanges()


class OpenAIEngine:
    """One model of an upstream server. See `Engine`. It sends messages or text, or with a tokenizer tokens."""

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        model: str,
        tokenizer: Tokenizer | None = None,
        capabilities: Sequence[str] = TEXT,
    ) -> None:
        """`model`: the server's name for it. `capabilities`: what the model can do."""
        self.capabilities = capabilities
        self.name = name
        self.upstream = upstream
        self.model = model
        self.tokenizer = tokenizer
        self.tokens_per_unit = 0.25 if tokenizer is None else 1.0
        self.constrains_after_reasoning = False
        self.pauses_prompts = False
        self.step_times: StepTimes | None = None
        self.kv_tokens = upstream.config.kv_tokens
        self.contexts = 0
        self._malformed = upstream.config.malformed

    def new_parser(self, scope: str, *, is_streamed: bool) -> AnswerParser:
        """Return a parser of an answer in this scope. `is_streamed`: see `AnswerParser`."""
        return AnswerParser(is_streamed=is_streamed, malformed=self._malformed)

    @property
    def is_ready(self) -> bool:
        """Whether the server accepts work now."""
        return self.upstream.is_ready

    @property
    def load(self) -> int:
        """Number of open contexts, and of requests that other clients have on the server."""
        return self.contexts + self.upstream.external_requests

    def describe(self) -> EngineStatus:
        """Return the engine's state. See `Engine.describe`."""
        return EngineStatus(self.name, self.is_ready, self.load, problem=self.upstream.problem)

    def open_text(self, *, adds_space: bool) -> TextRun:
        """Return an empty run of text. See `Engine.open_text`."""
        return CharacterRun() if self.tokenizer is None else TokenRun(self.tokenizer, None, adds_space=adds_space)

    def open(self, scope: str, urgency: Urgency, traceparent: str = "") -> "OpenAIContext":
        """Open a context. See `Engine.open`."""
        if not self.is_ready:
            raise EngineLost(f"engine {self.name} accepts no work now", suspect=False)
        self.contexts += 1
        return OpenAIContext(self, scope, urgency, traceparent)

    def build_request(
        self,
        prompt: "array[int] | Sequence[str | Messages]",
        sampling: SamplingParams,
        scope: str,
        urgency: Urgency,
        changes: RequestChanges = UNCHANGED,
    ) -> tuple[str, dict[str, Any]]:
        """Return path and body of the request that continues the prompt: tokens, or texts and messages. Raises
        ContextRefused. `changes`: corrections for this server."""
        profile = self.upstream.profile
        if changes.length_field is not None:
            profile = dataclasses.replace(profile, length_field=changes.length_field)
        path, prompt_fields = "/v1/completions", dict[str, Any]()
        if isinstance(prompt, array):
            prompt_fields = {"prompt": prompt.tolist(), "return_token_ids": True}
            if self.upstream.config.kind not in ("vllm", "sglang"):
                del prompt_fields["return_token_ids"]
        elif prompt and isinstance(prompt[0], Messages):
            path, prompt_fields = "/v1/chat/completions", self._messages(join_messages(prompt))
        else:
            prompt_fields = {"prompt": "".join([piece for piece in prompt if isinstance(piece, str)])}
        body = {
            "model": self.model,
            **prompt_fields,
            **profile.parameters(sampling, chat="messages" in prompt_fields),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if profile.salt_field is not None and scope:
            body[profile.salt_field] = hashlib.sha256(scope.encode()).hexdigest()
        if profile.priority_field is not None:
            field, ascending = profile.priority_field
            rank = max(-(2**31), min(2**31 - 1, round(urgency.rank * (10 if ascending else -10))))
            body[field] = rank
        for name in (*self.upstream.dropped, *changes.dropped):
            body.pop(name, None)
        return path, body

    def _messages(self, conversation: Messages) -> dict[str, Any]:
        messages = [_to_wire(message) for message in conversation.messages]
        body: dict[str, Any] = {"messages": messages, **conversation.fields}
        if conversation.fields:
            enable_thinking, *_ = [body.pop(name, None) for name in HINTS_OF_MESSAGES]
            if enable_thinking is not None and self.upstream.profile.accepts_template_options:
                body["chat_template_kwargs"] = {"enable_thinking": enable_thinking}
        if conversation.is_open and not messages[-1]["content"]:
            messages.pop()  # the answer has no text yet, so there is nothing to continue
        elif conversation.is_open:
            match self.upstream.profile.continuation:
                case None:
                    raise self.upstream.profile.unsupported_error(
                        "a continuation of an assistant message (a slot after text)"
                    )
                case "flags":
                    body |= {"add_generation_prompt": False, "continue_final_message": True}
        return body


def _is_stream(response: Response) -> bool:
    """Return whether the response is an event stream. Some servers ignore `stream`."""
    return response.headers.get("content-type", "").lower().startswith("text/event-stream")


def _to_wire(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message in the form of chat requests."""
    tool_calls = message.get("tool_calls")
    if not tool_calls:
        return message
    wire_calls = [{**call, "function": _function_to_wire(**call["function"])} for call in tool_calls]
    return {**message, "tool_calls": wire_calls, "content": message["content"] or None}


def _function_to_wire(name: str, arguments: dict[str, Any] | str) -> dict[str, str]:
    """Return a called function as OpenAI's API has it. `arguments`: an object, which is dumped to JSON; or text of the
    model that is no JSON object, which is sent unchanged."""
    return {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}


class OpenAIContext:
    """Context on an upstream server. See `EngineContext`."""

    def __init__(self, engine: OpenAIEngine, scope: str, urgency: Urgency, traceparent: str) -> None:
        self._engine = engine
        self._upstream = engine.upstream
        self._headers = {"traceparent": traceparent} if traceparent else {}
        self._scope = scope
        self._tenant = scope.partition("\0")[0]
        self._urgency = urgency
        self._slot = ConcurrencySlot(urgency.rank)
        self._prompt: array[int] | list[str | Messages] = [] if engine.tokenizer is None else array("i")
        """Content that was filled: tokens, or texts and messages if the server's tokens are not known."""
        self._size = 0
        """Number of tokens or characters of the prompt."""
        self._generations: list[tuple[str, Sequence[int]]] = []
        """Texts that were generated after the prompt, each with its token ids if the server reported them."""
        self._generated_tokens = 0
        """Number of generated tokens, as the server counts them."""
        self._reasoning_tokens = 0
        """Number of these tokens that are reasoning."""
        self._cached: int | None = None
        self._freed = False
        self._response: Response | None = None
        """Response that is being read."""

    def fill(self, content: PromptContent, *, start: int | None = None) -> None:
        """Append tokens, or text or messages. See `EngineContext.fill`."""
        if start is not None and not isinstance(self._prompt, list):
            del self._prompt[start:]
            self._size = start
            self._generations.clear()
        if self._generations:
            self._append_generations()
        self._append(content)

    def _append(self, content: PromptContent) -> None:
        self._size += content_size(content)
        if not isinstance(self._prompt, list):
            self._prompt.extend(tokens_of_content(content))
        elif isinstance(content, str | Messages):
            self._prompt.append(content)
        else:  # a text that the journal has stored as characters
            self._prompt.append(array("i", content).tobytes().decode("utf-32-le", errors="surrogatepass"))

    def _append_generations(self) -> None:
        """Append the generated text to the prompt."""
        tokenizer = self._engine.tokenizer
        for text, tokens in self._generations:
            self._append(text if tokenizer is None else tokens or tokenizer.encode(text))
        self._generations.clear()

    async def generate(self, sampling: SamplingParams, on_event: EventCallback, *, heals: bool = False) -> None:
        """Generate text. See `EngineContext.generate`."""
        began = time.monotonic()
        if self._generations:
            self._append_generations()
        await self._upstream.limiter.acquire(self._slot)
        try:
            usage = await self._run_request(sampling, on_event, held=time.monotonic() - began)
        finally:
            self._upstream.limiter.release()
        if usage is not None:
            prompt, cached, completion, reasoning = usage
            self._reasoning_tokens += reasoning
            before, self._generated_tokens = self._generated_tokens, self._generated_tokens + completion
            self._cached = cached if self._cached is None else self._cached
            on_event(TokenCounts(max(0, prompt - before), self._cached, self._generated_tokens, self._reasoning_tokens))

    async def _run_request(
        self, sampling: SamplingParams, on_event: EventCallback, held: float
    ) -> ReportedUsage | None:
        """Send the request, and read its answer. Return the token counts if the server reports them."""
        prefilled, changes = False, UNCHANGED
        text, tokens = [""], array("i")

        def receive(data: bytes) -> None:
            for piece, token_ids, finish in answer.feed(data):
                text.append(piece.text)
                tokens.extend(token_ids)
                on_event(TokenDelta(piece, finish, stop_string=answer.stop_string if finish else None))
            if answer.has_ended and response.timeout != _TAIL_SECONDS:  # only token counts can follow
                response.timeout = _TAIL_SECONDS
                response.deadline = time.monotonic() + _TAIL_SECONDS

        while True:
            path, body, content = await self._build_request(sampling, changes)
            if self._freed:
                raise EngineLost("the context was freed", suspect=False)
            try:
                self._response = response = await self._upstream.post(path, content, self._tenant, self._headers)
                if not prefilled:
                    on_event(PrefillResult(math.ceil(self._size * self._engine.tokens_per_unit), 0, held=held))
                    prefilled = True
                answer = self._engine.new_parser(self._scope, is_streamed=_is_stream(response))
                await self._read(response, answer, receive)
            except (ContextRefused, EngineLost) as error:
                new_changes = self._changes_after(str(error), body, changes)
                if len(text) > 1 or new_changes is None:
                    raise
                changes = new_changes
            else:
                if changes is not UNCHANGED:
                    self._upstream.adopt_changes(changes.dropped, changes.length_field)
                self._generations.append(("".join(text), tokens))
                return answer.usage

    async def _build_request(
        self, sampling: SamplingParams, changes: RequestChanges
    ) -> tuple[str, dict[str, Any], bytes]:
        """Return the next request's path and body, and the body as JSON. Raises ContextRefused if the server does not
        support a parameter."""

        def build() -> tuple[str, dict[str, Any], bytes]:
            path, body = self._engine.build_request(prompt, sampling, self._scope, urgency, changes)
            return path, body, encode_json(body)

        prompt, urgency = self._prompt, self._urgency
        return build() if self._size < _OFFLOAD_SIZE else await offload(build, self._size)

    async def _read(self, response: Response, answer: AnswerParser, receive: Callable[[bytes], None]) -> None:
        """Read the whole response, so that its connection can be used again. Raises EngineLost or ContextRefused if the
        server fails or refuses the request."""
        try:
            if answer.is_streamed:
                await response.stream_to(receive)
            else:
                receive(await response.read(LONGEST_ANSWER))
        except ConnectionBroken as error:
            if self._freed:
                raise EngineLost("the context was freed", suspect=False) from None
            if not answer.has_ended:
                raise self._upstream.connection_error(error, self._tenant) from error
        except MalformedToolCall as error:
            self._upstream.record_success()
            raise EngineFailure(f"engine {self._engine.name} sent a malformed tool call: {error}") from error
        except InvalidAnswer as error:
            self._upstream.record_failure(self._tenant)
            raise self._upstream.lost_error(f"sent an invalid answer: {error}") from error
        finally:
            response.close()
        if not answer.has_ended:
            self._upstream.record_failure(self._tenant)
            raise self._upstream.lost_error("ended the connection in the middle of an answer")
        self._upstream.record_success()

    def _changes_after(self, refusal: str, body: dict[str, Any], changes: RequestChanges) -> RequestChanges | None:
        """Return the changes for another try, if the refusal names a field that can be dropped or renamed; otherwise
        None.

        Some servers refuse with status 400. SGLang sends 503 within a stream that it has begun.
        """
        if (
            "max_completion_tokens" in refusal
            and "max_tokens" in body
            and "messages" in body
            and changes.length_field is None
        ):
            return dataclasses.replace(changes, length_field="max_completion_tokens")
        named = {field for field in _HINTS if field in body and field in refusal}
        return dataclasses.replace(changes, dropped=changes.dropped | named) if named else None

    def rerank(self, urgency: Urgency) -> None:
        """Change the urgency. See `EngineContext.rerank`."""
        self._urgency = urgency
        self._upstream.limiter.rerank(self._slot, urgency.rank)

    def retain(self, returns: Sequence[float]) -> None:
        """Do nothing: the upstream server manages its own cache."""

    def free(self) -> None:
        """Free the context. See `EngineContext.free`."""
        self._engine.contexts -= not self._freed
        self._freed = True
        if self._response is not None:
            self._response.close()
