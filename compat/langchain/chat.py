"""ChatMyna."""

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
_AT_ONCE = ("tools", "functions", "response_format", "logprobs", "top_logprobs")
"""Whoever asks for one of these looks at the answer."""
_WAIT_SECONDS = 300


class DeferredMessage(AIMessage):
    """An answer that is still being made: its content is a SemanticVariable."""

    @property
    def text(self) -> Any:
        """The content. Not as a plain string, for which it would have to be waited for."""
        return self.content


class ChatMyna(ChatOpenAI):
    """A chat model served by myna. Without a `session` it is ChatOpenAI.

    With one, answers are Semantic Variables: `invoke`, `batch` and their async twins return at once, and an answer that
    goes into the next prompt goes there as a reference. So chains, maps and parallel branches become one graph on the
    server, which knows all of it while it runs the first call. The text is waited for where Python looks at it.

    Streams, and requests with tools, formats or log probabilities, answer with text; references in them are resolved
    all the same.

    `base_url`, `api_key` and `model` have defaults: MYNA_BASE_URL or this machine's port 8000, MYNA_API_KEY, and the
    first model that the server has.
    """

    model_name: str = Field(default="", alias="model")
    """Left out: the first model that is served."""
    session: str | None = None
    """An id of your choosing; the session is made at its first use. Left out: no session, and nothing is deferred."""
    defer: bool = True
    """False: calls of the session wait and answer with text."""

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
        """LangChain loads only what is in its own packages."""
        return False

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "myna"
        return params

    def end_session(self) -> None:
        """Ends the session: what runs in it is cancelled, and texts that were not fetched are gone."""
        self.root_client.delete(self._session_path(), cast_to=object)

    async def aend_session(self) -> None:
        """See `end_session`."""
        await self.root_async_client.delete(self._session_path(), cast_to=object)

    def variable(self, name: str) -> SemanticVariable:
        """The session's variable of that name. Raises ValueError without a session."""
        path = f"{self._session_path()}/variables/{quote(name, safe='')}"
        return SemanticVariable(f"<<{name}>>", partial(self._fetch, path), partial(self._afetch, path))

    def _session_path(self) -> str:
        if self.session is None:
            raise ValueError("this ChatMyna has no session; give it one: ChatMyna(session=…)")
        return f"/sessions/{quote(self.session, safe='')}"

    def _fetch(self, path: str) -> str:
        while True:
            try:
                return _value(self.root_client.get(path, cast_to=object, options=_waiting()))
            except openai.APIStatusError as error:
                _unless_it_goes_on(error)

    async def _afetch(self, path: str) -> str:
        while True:
            try:
                return _value(await self.root_async_client.get(path, cast_to=object, options=_waiting()))
            except openai.APIStatusError as error:
                _unless_it_goes_on(error)

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        messages = [_as_sent(message) for message in self._convert_input(input_).to_messages()]
        payload = super()._get_request_payload(messages, stop=stop, **kwargs)
        payload["model"] = payload.get("model") or self._first_model()
        if self.session is not None:
            payload["extra_headers"] = {"X-Session-Id": self.session, **(payload.get("extra_headers") or {})}
            if self._defers(payload):
                body = payload.get("extra_body") or {}
                semantic = {"defer": True, **(body.get("semantic") or {})}
                payload["extra_body"] = {**body, "semantic": semantic}
        return payload

    def _defers(self, payload: dict[str, Any]) -> bool:
        at_once = payload.get("stream") or (payload.get("n") or 1) > 1 or any(payload.get(one) for one in _AT_ONCE)
        return self.defer and not at_once

    def _first_model(self) -> str:
        if self._served is None:
            self._served = next(iter(self.root_client.models.list())).id
        return self._served

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        told = getattr(response, "semantic", None)
        if told and response.usage is not None and response.usage.total_tokens == 0:
            for generation in result.generations:
                content = generation.message.content
                if content == f"<<{told['output']}>>":
                    generation.message = self._deferred(generation.message, told["output"])
                    generation.text = generation.message.text
        return result

    def _deferred(self, message: BaseMessage, name: str) -> DeferredMessage:
        known = message.model_dump(exclude={"content", "type", "usage_metadata"})
        deferred = DeferredMessage(content="", **known)
        deferred.content = self.variable(name)  # not through the constructor, which would make a plain string of it
        return deferred


def _as_sent(message: BaseMessage) -> BaseMessage:
    """The message with the reference for its content, if that is a variable."""
    if isinstance(message.content, SemanticVariable):
        return message.model_copy(update={"content": message.content.reference})
    return message


def _waiting() -> Any:
    """The server may take its time; OpenAI's client would give up and ask again."""
    return {"params": {"wait": "true", "timeout": str(_WAIT_SECONDS)}, "timeout": _WAIT_SECONDS + 30.0}


def _value(variable: Any) -> str:
    """Raises SemanticVariableError if it has none."""
    if variable["value"] is None:
        error = variable["error"] or {"message": f"it is {variable['state']}", "code": variable["state"]}
        raise SemanticVariableError(f"{variable['name']}: {error['message']}", error["code"])
    return str(variable["value"])


def _unless_it_goes_on(error: openai.APIStatusError) -> None:
    """Raises the error, unless it says that only the wait was too long."""
    if error.code != "wait_timeout":
        raise error
