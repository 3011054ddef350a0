"""Specify engines outside this process in the settings: by `--engine KIND=URL`, or by a table in TOML."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.engines.openai import CAPABILITIES, KINDS

_HELP = "embedded, myna=tcp://HOST:PORT, ray=auto, or KIND=http://HOST:PORT with a kind of " + ", ".join(KINDS)
_KEY_VARIABLES = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY"}
"""Environment variables with the API keys of public servers."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def host_and_port(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, with brackets around an IPv6 address. Raises ValueError if the text has
    another form."""
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None or parts.path or parts.query or parts.username:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return parts.hostname, port


class EngineTable(BaseModel):
    """Settings of one engine, or of a group of engines on Ray."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="embedded, ray, myna, or the kind of upstream server")
    url: str = Field(
        "",
        description="tcp:// or tls:// for a myna engine, http(s):// for an upstream server; for ray: auto or HOST:PORT",
    )
    name: str = Field("", description="name in graphs and logs; default: the kind, with a number if it is not unique")
    key: str | None = Field(None, description="API key sent to the server")
    key_env: str | None = Field(None, description="environment variable that contains the API key")
    models: tuple[str, ...] = Field((), description="models of the server to serve; default: all")
    tokenizer: str | None = Field(None, description="folder or hub id; sends tokens to the server instead of messages")
    window: int | None = Field(None, ge=1, description="context window in tokens, if the server does not report it")
    timeout: float = Field(300.0, gt=0, description="seconds without data from the server after which a request fails")
    count: int = Field(0, ge=0, description="number of engines on Ray; 0: one per GPU, or one per node")
    cpus: float | None = Field(None, gt=0, description="CPUs of each engine on Ray")
    gpus: float | None = Field(None, ge=0, description="GPUs of each engine on Ray")
    linger: float = Field(300.0, gt=0, description="seconds without a gateway after which an engine on Ray exits")
    concurrency: int = Field(0, ge=0, description="maximum concurrent requests; 0: as the server reports, or 256")
    kv_tokens: int = Field(0, ge=0, description="size of the server's KV cache in tokens, for pauses of programs")
    capabilities: tuple[str, ...] = Field(
        (), description="what the models can do, such as embeddings; default: as the server and the names show"
    )
    tool_calls: Literal["repair", "refuse", "pass"] | None = Field(
        None, description="treatment of malformed tool calls of the server; default: as --upstream-tool-calls"
    )

    @model_validator(mode="after")
    def _names_an_engine(self) -> Self:
        if self.kind == "embedded":
            if self.url:
                raise ValueError("an embedded engine has no url")
            return self
        if self.kind == "ray":
            if self.url != "auto":
                host_and_port(self.url)
            return self
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is not a kind of engine; valid kinds: embedded, ray, {', '.join(KINDS)}")
        scheme, _, where = self.url.partition("://")
        if scheme in ("tcp", "tls") and self.kind == "myna":
            host_and_port(where)
        elif scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"{self.kind}={self.url} is not a valid engine; valid: {_HELP}")
        if self.name and not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a valid name: at most 64 letters, digits and ._-")
        if self.key is not None and self.key_env is not None:
            raise ValueError("key and key_env cannot both be set")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ValueError(f"key_env: the environment has no variable {self.key_env}")
        unknown = set(self.capabilities) - set(CAPABILITIES.values())
        if unknown:
            valid = ", ".join(dict.fromkeys(CAPABILITIES.values()))
            raise ValueError(f"capabilities: {min(unknown)!r} is unknown; valid: {valid}")
        if self.tokenizer is not None and not KINDS[self.kind].accepts_tokens:
            raise ValueError(f"tokenizer: a server of kind {self.kind} does not accept tokens")
        return self

    @property
    def is_myna_engine(self) -> bool:
        """Return whether this is a myna engine on another machine, without an HTTP API in between."""
        return self.url.startswith(("tcp://", "tls://"))

    def api_key(self, keys: Mapping[str, str]) -> str | None:
        """Return the API key for the server. `keys`: keys by engine name."""
        if self.key_env is not None:
            return os.environ[self.key_env]
        if self.key is None and self.name not in keys and (host := urlsplit(self.url).hostname) in _KEY_VARIABLES:
            return os.environ.get(_KEY_VARIABLES[host])
        return self.key or keys.get(self.name)


def parse_engine(value: Any) -> EngineTable:
    """Return the settings for a value of `--engine`, or for a table. Raises ValueError if the value is invalid."""
    if not isinstance(value, str):
        return EngineTable.model_validate(value)
    if value == "embedded":
        return EngineTable(kind=value)
    kind, separator, url = value.partition("=")
    if not separator or kind not in (*KINDS, "ray"):
        raise ValueError(f"{value!r} is not a valid engine; valid: {_HELP}")
    return EngineTable(kind=kind, url=url)


def with_unique_names(tables: list[EngineTable]) -> list[EngineTable]:
    """Return the engines, each with a unique name. Raises ValueError if two were given the same name."""
    used_names = {table.name for table in tables if table.name}
    if len(used_names) < sum(bool(table.name) for table in tables):
        raise ValueError("two engines have the same name")
    renamed = []
    for table in tables:
        name, number = table.name or table.kind, 2
        while not table.name and name in used_names:
            name, number = f"{table.kind}-{number}", number + 1
        used_names.add(name)
        renamed.append(table.model_copy(update={"name": name}))
    return renamed


@dataclass(frozen=True)
class Pair:
    """`NAME=VALUE`."""

    name: str
    value: str


def parse_pair(text: str, expected: str) -> Pair:
    """Return the parts of `NAME=VALUE`. `expected`: the form, for the error. Raises ValueError if the text has another
    form."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip() or not value.strip():
        raise ValueError(f"{text!r} is not {expected}")
    return Pair(name.strip(), value.strip())
