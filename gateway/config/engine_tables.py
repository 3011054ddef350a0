"""How settings name engines that are somewhere else: `--engine KIND=URL`, or a table of TOML."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.engines.openai import KINDS

_HELP = "embedded, myna=tcp://HOST:PORT, ray=auto, or KIND=http://HOST:PORT with a kind of " + ", ".join(KINDS)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def host_and_port(text: str) -> tuple[str, int]:
    """Of `HOST:PORT`, with brackets around an IPv6 address. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None or parts.path or parts.query or parts.username:
        raise ValueError(f"{text!r} is no HOST:PORT")
    return parts.hostname, port


class EngineTable(BaseModel):
    """An engine that is not in a process of the gateway's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="embedded, ray, myna, or the kind of server")
    url: str = Field(
        "",
        description="tcp:// or tls:// for an engine of ours, http(s):// for a server; of Ray auto or HOST:PORT",
    )
    name: str = Field("", description="what graphs and logs call it; left out, its kind, with a number if need be")
    key: str | None = Field(None, description="what is shown to the server")
    key_env: str | None = Field(None, description="the variable of the environment that holds it")
    models: tuple[str, ...] = Field((), description="of the server's models, those that are served")
    tokenizer: str | None = Field(None, description="folder or hub id: the server is given tokens, not messages")
    window: int | None = Field(None, ge=1, description="of its models, in tokens, if the server does not say")
    timeout: float = Field(300.0, gt=0, description="seconds of silence after which a request is given up")
    count: int = Field(0, ge=0, description="of engines on Ray; 0: one a GPU, or one a node")
    cpus: float | None = Field(None, gt=0, description="of each engine on Ray")
    gpus: float | None = Field(None, ge=0, description="of each engine on Ray")
    linger: float = Field(300.0, gt=0, description="seconds for which an engine on Ray is kept though no gateway calls")
    concurrency: int = Field(0, ge=0, description="requests at a time; 0: as many as the server says, or 256")

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
            raise ValueError(f"{self.kind!r} is no kind of engine; there are embedded, ray, {', '.join(KINDS)}")
        scheme, _, where = self.url.partition("://")
        if scheme in ("tcp", "tls") and self.kind == "myna":
            host_and_port(where)
        elif scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"{self.kind}={self.url} names no engine; try {_HELP}")
        if self.name and not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name: letters, digits and ._- , at most 64")
        if self.key is not None and self.key_env is not None:
            raise ValueError("key and key_env say the same thing; give one of them")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ValueError(f"key_env names {self.key_env}, and the environment has no such variable")
        if self.tokenizer is not None and not KINDS[self.kind].takes_tokens:
            raise ValueError(f"a server of kind {self.kind} takes no tokens, so a tokenizer is of no use")
        return self

    @property
    def linked(self) -> bool:
        """Whether it is one of ours behind a link, and no server with an API."""
        return self.url.startswith(("tcp://", "tls://"))

    def shown(self, keys: Mapping[str, str]) -> str | None:
        """The key for the server; `keys` by name of engine."""
        if self.key_env is not None:
            return os.environ[self.key_env]
        if self.key is None and self.name not in keys and urlsplit(self.url).hostname == "api.openai.com":
            return os.environ.get("OPENAI_API_KEY")
        return self.key or keys.get(self.name)


def engine_table(named: Any) -> EngineTable:
    """What `--engine` says. Raises ValueError."""
    if not isinstance(named, str):
        return EngineTable.model_validate(named)
    if named == "embedded":
        return EngineTable(kind=named)
    kind, found, url = named.partition("=")
    if not found or kind not in (*KINDS, "ray"):
        raise ValueError(f"{named!r} names no engine; try {_HELP}")
    return EngineTable(kind=kind, url=url)


def named_apart(tables: list[EngineTable]) -> list[EngineTable]:
    """The engines, each with a name of its own. Raises ValueError if two were given the same."""
    taken = {table.name for table in tables if table.name}
    if len(taken) < sum(bool(table.name) for table in tables):
        raise ValueError("two engines have one name")
    made = []
    for table in tables:
        name, number = table.name or table.kind, 2
        while not table.name and name in taken:
            name, number = f"{table.kind}-{number}", number + 1
        taken.add(name)
        made.append(table.model_copy(update={"name": name}))
    return made


@dataclass(frozen=True)
class Pair:
    """`NAME=VALUE`."""

    name: str
    value: str


def pair(text: str, what: str) -> Pair:
    """Of what a flag says. Raises ValueError."""
    name, found, value = text.partition("=")
    if not found or not name.strip() or not value.strip():
        raise ValueError(f"{text!r} is no {what}")
    return Pair(name.strip(), value.strip())
