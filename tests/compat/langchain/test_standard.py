"""LangChain's own suites: for ChatMyna, and for the stock ChatOpenAI pointed at a server of ours."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from compat.langchain import ChatMyna
from tests.server import MODEL, Server


class TestChatMynaUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMyna

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        env = {"MYNA_API_KEY": "key", "MYNA_BASE_URL": "http://127.0.0.1:9/v1"}
        return env, {"model": MODEL}, {"openai_api_key": "key", "openai_api_base": "http://127.0.0.1:9/v1"}


class _Integration(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _server(self, server: Server) -> None:
        self.address = server.address

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "base_url": f"{self.address}/v1",
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 128,
            "stream_usage": True,
        }


class TestChatMyna(_Integration):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMyna


class TestChatOpenAI(_Integration):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI
