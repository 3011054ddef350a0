"""LangChain chat model for myna: ChatOpenAI, with sessions in which chains become graphs. Needs `myna[langchain]`."""

from compat.langchain.chat import ChatMyna, DeferredMessage
from compat.langchain.variable import SemanticVariable, SemanticVariableError

__all__ = ["ChatMyna", "DeferredMessage", "SemanticVariable", "SemanticVariableError"]
