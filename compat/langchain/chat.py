"""LangChain chat model that turns chains into graphs on the server."""

import os
from functools import partial
from typing import Any
from urllib.parse import quote

import openai
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI
from pydantic import Field, PrivateAttr, model_validator

from compat.langchain.variable import SemanticVariable, SemanticVariableError

_BASE_URL = "http://127.0.0.1:8000/v1"
_IMMEDIATE = ("tools", "functions", "response_format", "logprobs", "top_logprobs")
"""Parameters whose answers are read immediately, so that calls with them are not deferred."""
_WAIT_SECONDS = 300


class DeferredMessage(AIMessage):
    """An answer that is not complete yet: its content is a SemanticVariable."""

    @property
    def text(self) -> Any:
        """Return the content. It is not converted to a plain string, because that would wait for the text."""
        return self.content


class ChatMyna(ChatOpenAI):
    """A chat model served by myna. Without a `session` it behaves like ChatOpenAI.

    With a session, answers are Semantic Variables: `invoke`, `batch` and their async variants return immediately, and
    an answer that is part of the next prompt is sent as a reference. So chains, maps and parallel branches become one
    graph, which the server knows completely while it runs the first call. Python waits when it reads the text.

    Streams, and requests with tools, response formats or log probabilities, return text. References in their prompts
    are resolved as well.

    Defaults: `base_url` is MYNA_BASE_URL or port 8000 of this machine, `api_key` is MYNA_API_KEY, and `model` is the
    first model of the server.
    """

    model_name: str = Field(default="", alias="model")
    """Model name; default: the first served model."""
    session: str | None = None
    """Session id, chosen by the client. The first call creates the session. None: no session, and no deferred calls."""
    defer: bool = True
    """Whether calls of the session are deferred. If false, they wait and return text."""

    _served: str | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _has_an_address(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = dict(values)
            if not values.get("openai_api_base"):
                values.setdefault("base_url", os.environ.get("MYNA_BASE_URL", _BASE_URL))
            if not values.get("openai_api_key"):
                values.setdefault("api_key", os.environ.get("MYNA_API_KEY", "none"))
            values.setdefault("stream_usage", True)
        return values

    @property
    def _llm_type(self) -> str:
        return "chat-myna"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return false: LangChain loads only classes of its own packages."""
        return False

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "myna"
        return params

    def end_session(self) -> None:
        """Delete the session. The server cancels its running calls, and texts that were not fetched are lost."""
        self.root_client.delete(self._session_path(), cast_to=object)

    async def aend_session(self) -> None:
        """Delete the session; see `end_session`."""
        await self.root_async_client.delete(self._session_path(), cast_to=object)

    def variable(self, name: str) -> SemanticVariable:
        """Return the session's variable of that name. Raises ValueError without a session."""
        path = f"{self._session_path()}/variables/{quote(name, safe='')}"
        return SemanticVariable(f"<<{name}>>", partial(self._fetch, path), partial(self._afetch, path))

    def _session_path(self) -> str:
        if self.session is None:
            raise ValueError("this ChatMyna has no session; use ChatMyna(session=…)")
        return f"/sessions/{quote(self.session, safe='')}"

    def _fetch(self, path: str) -> str:
        while True:
            try:
                return _value(self.root_client.get(path, cast_to=object, options=_wait_options()))
            except openai.APIStatusError as error:
                _raise_unless_wait_timeout(error)

    async def _afetch(self, path: str) -> str:
        while True:
            try:
                return _value(await self.root_async_client.get(path, cast_to=object, options=_wait_options()))
            except openai.APIStatusError as error:
                _raise_unless_wait_timeout(error)

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        messages = [_with_reference(message) for message in self._convert_input(input_).to_messages()]
        payload = super()._get_request_payload(messages, stop=stop, **kwargs)
        payload["model"] = payload.get("model") or self._first_model()
        if self.session is not None:
            payload["extra_headers"] = {"X-Semantic-Session": self.session, **(payload.get("extra_headers") or {})}
            if self._defers(payload):
                body = payload.get("extra_body") or {}
                semantic = {"defer": True, **(body.get("semantic") or {})}
                payload["extra_body"] = {**body, "semantic": semantic}
        return payload

    def _defers(self, payload: dict[str, Any]) -> bool:
        needs_text = (
            payload.get("stream") or (payload.get("n") or 1) > 1 or any(payload.get(name) for name in _IMMEDIATE)
        )
        return self.defer and not needs_text

    def _first_model(self) -> str:
        if self._served is None:
            self._served = next(iter(self.root_client.models.list())).id
        return self._served

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        semantic = getattr(response, "semantic", None)
        if semantic and response.usage is not None and response.usage.total_tokens == 0:
            for generation in result.generations:
                content = generation.message.content
                if content == f"<<{semantic['output']}>>":
                    generation.message = self._to_deferred_message(generation.message, semantic["output"])
                    generation.text = generation.message.text
        return result

    def _to_deferred_message(self, message: BaseMessage, name: str) -> DeferredMessage:
        fields = message.model_dump(exclude={"content", "type", "usage_metadata"})
        deferred = DeferredMessage(content="", **fields)
        deferred.content = self.variable(name)  # the constructor would convert it to a plain string
        return deferred


def _with_reference(message: BaseMessage) -> BaseMessage:
    """Return the message, with the reference as content if the content is a variable."""
    if isinstance(message.content, SemanticVariable):
        return message.model_copy(update={"content": message.content.reference})
    return message


def _wait_options() -> Any:
    """Return request options for a long wait: OpenAI's client would time out and retry."""
    return {"params": {"wait": "true", "timeout": str(_WAIT_SECONDS)}, "timeout": _WAIT_SECONDS + 30.0}


def _value(variable: Any) -> str:
    """Return the value of a variable. Raises SemanticVariableError if it has none."""
    if variable["value"] is None:
        error = variable["error"] or {"message": f"it is {variable['state']}", "code": variable["state"]}
        raise SemanticVariableError(f"{variable['name']}: {error['message']}", error["code"])
    return str(variable["value"])


def _raise_unless_wait_timeout(error: openai.APIStatusError) -> None:
    """Raise the error, unless only the wait timed out."""
    if error.code != "wait_timeout":
        raise error
