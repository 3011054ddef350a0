"""Read the file of `--tool-servers`: the MCP servers that the operator allows, and the URLs that clients may name."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from gateway.config.url_pattern import UrlPattern, parse_url_pattern

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
"""Headers that the HTTP client sets."""
_MAX_FILE_BYTES = 1 << 20
"""Maximum size of the file, in bytes."""
MAX_SERVERS = 200
"""Maximum number of servers in the file."""


class BadToolServers(ValueError):
    """The file is invalid. The message names the file and the place."""


class ToolServerTable(BaseModel):
    """Settings of one MCP server."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    command: list[str] | None = Field(None, min_length=1, description="program and arguments, for a server over stdio")
    env: dict[str, str] = Field({}, description="complete environment of the program; ${NAME} is a variable of myna's")
    cwd: str | None = Field(None, description="working directory of the program; default: that of myna")
    url: str | None = Field(None, description="URL of a server over streamable HTTP")
    headers: dict[str, str] = Field({}, description="headers of requests to it; ${NAME} is a variable of myna's")
    tools: list[str] = Field(description="names of allowed tools; * stands for any text")
    seconds: float = Field(60.0, gt=0, le=3600, description="time limit of a call, in seconds")
    start_seconds: float = Field(30.0, gt=0, le=600, description="time limit of the start and the handshake")
    result_bytes: int = Field(1 << 20, ge=1, le=64 << 20, description="maximum size of a result's text, in bytes")
    parallel: int = Field(8, ge=1, le=256, description="maximum number of concurrent calls")
    read_only: dict[str, StrictBool] = Field({}, description="by tool or pattern: whether it changes nothing")
    idempotent: dict[str, StrictBool] = Field({}, description="by tool or pattern: whether a call can be repeated")

    @model_validator(mode="after")
    def _has_one_transport(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("a server needs exactly one of command and url")
        if self.url is not None and (self.env or self.cwd is not None):
            raise ValueError("env and cwd belong to command, not to url")
        if self.command is not None and self.headers:
            raise ValueError("headers belong to url, not to command")
        if self.command is not None and (not self.command[0] or any("\0" in part for part in self.command)):
            raise ValueError("command: the program is empty, or a part contains a NUL character")
        if self.url is not None:
            check_url(self.url)
        for name, value in self.env.items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise ValueError(f"env: {name!r} is not a valid name, or its value contains a NUL character")
        check_headers(self.headers)
        return self


def check_url(url: str) -> None:
    """Raise ValueError unless this is a plain http(s) URL, without userinfo and fragment."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ValueError(f"url: {url[:200]!r} is not http(s)://HOST[:PORT]/PATH")
    if "@" in parts.netloc:
        raise ValueError("url: a user name or password is not allowed; use headers")
    if parts.fragment:
        raise ValueError("url: a fragment is not allowed")


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise ValueError if a header cannot be sent, or is one that the HTTP client sets."""
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ValueError(f"headers: {name[:100]!r} is not a header that can be set")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"headers: the value of {name} contains characters that are not allowed")


class _File(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    servers: dict[str, ToolServerTable] = Field({}, max_length=MAX_SERVERS)
    url_patterns: list[str] = Field([], max_length=100)
    url_servers: dict[str, Any] = {}


@dataclass(frozen=True)
class ToolSettings:
    """Servers by name, and rules for URLs that clients name.

    `url_limits`: function that returns the settings of a server at such a URL.
    """

    servers: Mapping[str, ToolServerTable] = field(default_factory=dict)
    url_patterns: tuple[UrlPattern, ...] = ()
    url_limits: Callable[[str, Mapping[str, str]], ToolServerTable] = lambda url, headers: ToolServerTable(
        url=url, headers=dict(headers), tools=["*"]
    )


def read_tool_servers(path: Path, environment: Mapping[str, str] | None = None) -> ToolSettings:
    """Return the settings in a file. `environment`: variables that `${NAME}` refers to, by default those of the
    process. Raises BadToolServers if the file is invalid, and OSError if it cannot be read."""
    variables = os.environ if environment is None else environment
    with path.expanduser().open("rb") as file:
        raw = file.read(_MAX_FILE_BYTES + 1)
    if len(raw) > _MAX_FILE_BYTES:
        raise BadToolServers(f"{path}: the file has more than {_MAX_FILE_BYTES} bytes")
    try:
        document = json.loads(raw, object_pairs_hook=_without_duplicates)
    except _DuplicateKey as error:
        raise BadToolServers(f"{path}: the key {error.args[0]!r} occurs twice in one object") from None
    except (ValueError, RecursionError) as error:
        raise BadToolServers(f"{path}: not JSON: {error}") from None
    try:
        found = _File.model_validate(document)
        settings = ToolSettings(
            {name: _with_variables(name, table, variables) for name, table in found.servers.items()},
            tuple(parse_url_pattern(text) for text in found.url_patterns),
            _limits_of_url_servers(found.url_servers),
        )
        bad = next((name for name in found.servers if not _NAME.fullmatch(name)), None)
        if bad is not None:
            raise ValueError(f"servers: {bad[:100]!r} is not a valid name: at most 64 letters, digits and ._-")
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        reason = _REASONS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        raise BadToolServers(f"{path}: {f'{place}: ' if place else ''}{reason}") from None
    except ValueError as error:
        raise BadToolServers(f"{path}: {error}") from None
    return settings


_REASONS = {"extra_forbidden": "unknown key", "missing": "this key is required"}
"""Reasons for invalid settings, by pydantic's type of the error. Other errors have pydantic's message."""


class _DuplicateKey(Exception):
    """An object has a key twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateKey(name)
        found[name] = value
    return found


def _with_variables(name: str, table: ToolServerTable, variables: Mapping[str, str]) -> ToolServerTable:
    """Return the settings with the values of `${NAME}` in `env` and `headers`. Raises ValueError if a variable is
    missing."""

    def replaced(kind: str, texts: Mapping[str, str]) -> dict[str, str]:
        def value_of(match: re.Match[str]) -> str:
            if match[1] not in variables:
                raise ValueError(f"servers.{name}.{kind}.{key}: the environment has no variable {match[1]}")
            return variables[match[1]]

        values = {}
        for key, text in texts.items():
            values[key] = _VARIABLE.sub(value_of, text)
        return values

    changed = table.model_copy(
        update={"env": replaced("env", table.env), "headers": replaced("headers", table.headers)}
    )
    try:
        check_headers(changed.headers)
    except ValueError as error:
        raise ValueError(f"servers.{name}.{error}") from None
    return changed


def _limits_of_url_servers(values: Mapping[str, Any]) -> Callable[[str, Mapping[str, str]], ToolServerTable]:
    """Return a function for the settings of servers at URLs of clients. `values`: fields of `ToolServerTable` that
    differ from their defaults."""
    allowed = {"tools", "seconds", "start_seconds", "result_bytes", "parallel", "read_only", "idempotent"}
    if unknown := values.keys() - allowed:
        raise ValueError(f"url_servers: unknown key {min(unknown)!r}; valid: {', '.join(sorted(allowed))}")

    def settings_of(url: str, headers: Mapping[str, str]) -> ToolServerTable:
        return ToolServerTable(url=url, headers=dict(headers), **{"tools": ["*"], **values})

    try:
        settings_of("https://example.com/", {})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"url_servers.{place}: {problem['msg'].removeprefix('Value error, ')}") from None
    return settings_of
