"""All settings. Each can be given as an option, as a MYNA_* environment variable, or in a TOML file."""

import argparse
import inspect
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import TomlConfigSettingsSource as TomlSource

from engine.config import DEFAULT_MODEL, default_cache
from gateway.accounts.prices import Prices, parse_price
from gateway.config.engine_tables import EngineTable, host_and_port, parse_engine, parse_pair, with_unique_names
from gateway.config.tool_servers import ToolSettings, read_tool_servers

Settings = TypeVar("Settings", bound="EngineOptions")
_ADMIN_KEY_LENGTH = 16
"""Minimum length of an admin key, in characters."""
_ORIGIN = re.compile(r"https?://[^/\s?#@]+")
_GROUPS = {
    "host": "server",
    "model": "model and engine",
    "model_name": "engines",
    "listen": "server and access",
    "order": "scheduling",
    "api_key": "authentication",
    "price": "accounts",
    "tool_servers": "tools",
    "parrot_api": "other APIs",
    "max_body_bytes": "limits",
    "journal": "durability",
    "session_ttl": "timeouts and lifetimes, in seconds",
    "log_level": "logging",
}
"""Headings of `--help`, by the first setting under each."""


class EngineOptions(BaseSettings):
    """Settings of the model, and of an engine that runs it."""

    model_config = SettingsConfigDict(
        env_prefix="MYNA_", extra="forbid", validate_default=True, protected_namespaces=()
    )

    config: Path | None = Field(None, description="TOML file with settings")

    model: str = Field(DEFAULT_MODEL, description="GGUF file, folder with safetensors, or Hugging Face model id")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N; auto: the GPUs, if any"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="data type of weights")
    kv_dtype: Literal["auto", "fp8"] = Field(
        "auto", description="data type of the KV cache; auto: as the weights, fp8: 8 bits"
    )
    kernels: Literal["auto", "cpu", "torch", "triton"] = Field("auto", description="kernels of the engine")
    quantize: Literal["none", "int8"] = Field(
        "none", description="int8: quantize weights to 8 bits, faster and less exact"
    )
    threads: int = Field(0, ge=0, description="CPU threads per engine; 0: divide the cores among the engines")
    tile_threads: int = Field(
        0,
        ge=0,
        description="CPU threads per engine that multiply AMX tiles in linear layers, for measurements; 0: all threads",
    )
    kv_tokens: int = Field(0, ge=0, description="size of each engine's KV cache in tokens; 0: as free memory allows")
    host_kv_tokens: int = Field(
        -1,
        ge=-1,
        description="KV offloading to host memory, in tokens; -1: as many as the KV cache of a GPU, none for a CPU",
    )
    step_tokens: int = Field(0, ge=0, description="maximum tokens of one engine step; 0: 512 on a CPU, 4096 on a GPU")
    step_seconds: float = Field(
        0.1, gt=0, description="maximum seconds of a step while a client streams, if prompts can be prefilled in chunks"
    )
    decode_share: float = Field(
        0.65, gt=0, lt=1, description="share of their decoding speed that streams keep while long prompts are prefilled"
    )
    max_batch: int = Field(256, ge=1, description="maximum number of sequences in one engine step")
    speculation: Literal["auto", "on", "off"] = Field(
        "auto", description="n-gram speculative decoding; auto: where it does not change the generated text"
    )
    prefix_sharing: bool = Field(True, description="prefix caching: retain and share the KV of equal prefixes")
    retention: Literal["learned", "lru"] = Field(
        "learned", description="KV eviction policy; learned: by predicted reuse, lru: least recently used first"
    )
    cache: Path = Field(Path(default_cache()), description="folder for downloaded models and built kernels")

    @field_validator("step_tokens")
    @classmethod
    def _steps_have_rows(cls, tokens: int) -> int:
        if 0 < tokens < 16:
            raise ValueError("step_tokens must be 0 or at least 16; 0 selects a value for the device")
        return tokens

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by precedence: options, environment, TOML file. Raises OSError if the file cannot be
        read."""
        named = {**env_settings(), **init_settings()}.get("config")
        if named is None:
            return (init_settings, env_settings)
        path = Path(named).expanduser()
        path.open().close()  # the source would treat a missing file, or a folder, like an empty file
        return (init_settings, env_settings, TomlSource(settings_cls, toml_file=path))


class EngineSettings(EngineOptions):
    """Run an engine for gateways on other machines: myna serve --engine myna=tcp://HOST:PORT.

    Each option can also be set by an environment variable (--kv-tokens: MYNA_KV_TOKENS) or in a TOML file given by
    --config (kv_tokens = 65536). Options take precedence over variables, and variables over the file.
    """

    listen: str = Field("127.0.0.1:9000", description="HOST:PORT to listen on; port 0 selects a free port")
    engine_token: str | None = Field(None, min_length=8, description="secret that gateways must present")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate and its chain; enables TLS")
    tls_key: Path | None = Field(None, description="PEM file with the private key, if it is not in the same file")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum level of log messages")

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port to listen on."""
        return host_and_port(self.listen)

    @field_validator("listen")
    @classmethod
    def _listens_somewhere(cls, listen: str) -> str:
        host_and_port(listen)
        return listen

    @model_validator(mode="after")
    def _shows_a_token(self) -> Self:
        if self.engine_token is None:
            raise ValueError("engine_token is missing: without it, any client on the network could use the engine")
        return self


class ServeSettings(EngineOptions):
    """Serve a model with an OpenAI-compatible API, and Semantic Variables across the calls of a session.

    Each option can also be set by an environment variable (--kv-tokens: MYNA_KV_TOKENS) or in a TOML file given by
    --config (kv_tokens = 65536). Options take precedence over variables, and variables over the file.
    """

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 selects a free port")
    uds: Path | None = Field(None, description="Unix domain socket to listen on instead of host and port")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate and its chain; enables HTTPS")
    tls_key: Path | None = Field(None, description="PEM file with the private key, if it is not in the same file")
    cors_origin: Annotated[list[str], NoDecode] = Field([], description="allowed CORS origin, or *; may be repeated")

    model_name: str | None = Field(None, description="model name in the API; default: the model's own name")
    engines: int = Field(
        0, ge=0, le=64, description="number of embedded engine processes; 0: one per GPU, or one on the CPU"
    )
    engine: Annotated[list[EngineTable], NoDecode] = Field(
        [],
        description="engine to use: embedded, ray=auto, myna=tcp://HOST:PORT, or an upstream server by openai=URL, "
        "anthropic=URL, vllm=URL, sglang=URL, llamacpp=URL, myna=http://…; may be repeated",
    )
    engine_token: str | None = Field(None, description="secret presented to engines that `myna engine` runs")
    engine_key: Annotated[list[str], NoDecode] = Field(
        [], description="NAME=KEY: API key for the engine of that name (openai, vllm, vllm-2); may be repeated"
    )
    engine_ca: Path | None = Field(
        None, description="PEM file with trusted CA certificates for tls:// and https:// engines"
    )
    upstream_tool_calls: Literal["repair", "refuse", "pass"] = Field(
        "repair",
        description="tool calls of upstream servers whose arguments are not JSON; repair: make them JSON, "
        "refuse: fail the call, pass: pass them on",
    )
    alias: Annotated[list[str], NoDecode] = Field(
        [], description="NAME=MODEL: another name for a model; * in NAME stands for any text; may be repeated"
    )
    fallback: Annotated[list[str], NoDecode] = Field(
        [], description="MODEL=OTHER: model to use while no engine of MODEL is available; may be repeated, in order"
    )

    normalize_prompts: Literal["on", "off", "agents"] = Field(
        "agents",
        description="remove Claude Code's attribution line, which differs from turn to turn, from system prompts; "
        "agents: in requests with headers of known agents",
    )

    order: Literal["need", "arrival"] = Field(
        "need", description="scheduling policy; need: by deadline and dependencies, arrival: first come, first served"
    )
    fill_ahead: bool = Field(True, description="prefill the known part of a prompt while its other inputs are missing")

    pause_programs: bool = Field(
        True,
        description="schedule agents as a whole: running ones go before new ones, whose prompts wait while they do not "
        "fit beside KV that is read again soon",
    )
    programs: bool = Field(
        True, description="find the requests that belong to one run of an application, if clients send plain requests"
    )

    api_key: Annotated[list[str], NoDecode] = Field([], description="API key that clients must use; may be repeated")
    api_key_file: Path | None = Field(None, description="file with one API key per line, optionally with its weight")
    open_metrics: bool = Field(True, description="answer GET /metrics without an API key")

    admin_key: Annotated[list[str], NoDecode] = Field(
        [], description="key for /v1/admin, which makes virtual API keys with limits and budgets; may be repeated"
    )
    admin_key_file: Path | None = Field(None, description="file with one admin key per line")
    over_limit: Literal["refuse", "wait"] = Field(
        "refuse",
        description="requests over a limit of their virtual key; refuse: answer with status 429, wait: wait in order "
        "for at most --over-limit-wait seconds",
    )
    over_limit_wait: float = Field(
        10.0, gt=0, le=600, description="longest wait of a request over a limit in seconds, with --over-limit wait"
    )

    price: Annotated[list[str], NoDecode] = Field(
        [],
        description="MODEL=PROMPT/COMPLETION or MODEL=PROMPT/CACHED/COMPLETION: prices of a million tokens; * in MODEL "
        "stands for any text; may be repeated",
    )
    ledger: Literal["auto", "on", "off"] = Field(
        "auto", description="record the tokens and the cost of each call; auto: if there are prices or admin keys"
    )
    ledger_ttl: float = Field(90 * 86_400.0, gt=0, description="lifetime of the records of calls, in seconds")

    tool_servers: Path | None = Field(
        None,
        description="JSON file with the MCP servers whose tools graphs and responses may call",
    )

    parrot_api: bool = Field(False, description="also serve the API of Parrot (Lin et al., OSDI'24)")

    max_body_bytes: int = Field(16 << 20, ge=1024, description="maximum size of a request body in bytes")
    max_upload_bytes: int = Field(
        100 << 20, ge=1024, description="maximum size of a form with files for an upstream server in bytes"
    )
    max_kept_bytes: int = Field(256 << 20, ge=0, description="maximum size of stored responses in bytes; 0: store none")
    max_calls: int = Field(4096, ge=1, description="maximum number of unfinished calls; further ones get status 429")
    max_sessions: int = Field(10_000, ge=1, description="maximum number of sessions")
    max_key_sessions: int = Field(10_000, ge=1, description="maximum number of sessions of one API key")
    max_session_calls: int = Field(10_000, ge=1, description="maximum number of calls in one session")
    max_session_variables: int = Field(20_000, ge=1, description="maximum number of variables in one session")
    max_session_edges: int = Field(100_000, ge=1, description="maximum number of inputs of all calls in one session")
    max_session_bytes: int = Field(
        256 << 20, ge=1, description="maximum size of the values and prompts of one session in bytes"
    )
    max_held_bytes: int = Field(
        4 << 30, ge=1, description="maximum size of the values and prompts of all sessions in bytes"
    )
    max_waiters: int = Field(10_000, ge=1, description="maximum number of requests waiting for one session's variables")
    max_depth: int = Field(1_000, ge=1, description="maximum length of a chain of calls that depend on each other")
    max_value_bytes: int = Field(1 << 20, ge=1, description="maximum size of one variable's value in bytes")

    journal: str = Field(
        "auto",
        min_length=1,
        description="where sessions are persisted: a file, 'memory' for nowhere, or a postgresql:// URL, which several "
        "gateways may share; auto: one file per port",
    )
    advertise: str | None = Field(None, description="URL of this gateway for other gateways on the same journal")
    lease: float = Field(
        10.0, ge=1, description="seconds without renewal after which other gateways take over this gateway's sessions"
    )
    record: Path | None = Field(
        None, description="file that records sizes, digests and times of calls for myna simulate, but no texts"
    )
    otlp_endpoint: str | None = Field(
        None, description="URL of an OpenTelemetry collector that gets traces by OTLP over HTTP: http://HOST:4318"
    )
    otlp_texts: bool = Field(False, description="send the texts of prompts and answers with the traces")

    session_ttl: float = Field(3600.0, gt=0, description="lifetime of an idle session")
    response_ttl: float = Field(30 * 86_400.0, gt=0, description="lifetime of a stored response")
    max_wait: float = Field(600.0, gt=0, description="maximum wait for a variable in one request")
    engine_wait: float = Field(30.0, gt=0, description="maximum wait for an engine that starts or restarts")
    engine_timeout: float = Field(60.0, gt=0, description="silence after which an engine with work is replaced")
    drain: float = Field(30.0, ge=0, description="time for running requests to finish after SIGTERM, SIGINT or SIGHUP")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum level of log messages")

    @field_validator(
        "api_key", "admin_key", "cors_origin", "engine", "engine_key", "alias", "fallback", "price", mode="before"
    )
    @classmethod
    def _several_from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Split the values of an environment variable at commas. Parse the values of `engine`."""
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if info.field_name == "engine" and isinstance(items, list):
            return [parse_engine(item) for item in items]
        return items

    @field_validator("engine")
    @classmethod
    def _engines_have_names(cls, tables: list[EngineTable]) -> list[EngineTable]:
        return with_unique_names(tables)

    @field_validator("cors_origin")
    @classmethod
    def _origins_are_origins(cls, origins: list[str]) -> list[str]:
        bad = next((item for item in origins if item != "*" and not _ORIGIN.fullmatch(item)), None)
        if bad is not None:
            raise ValueError(f"{bad!r} is not an origin: http(s)://HOST or http(s)://HOST:PORT, without a path")
        return origins

    @model_validator(mode="after")
    def _engines_are_engines(self) -> Self:
        linked = [table for table in self.engine if table.is_myna_engine]
        if linked and self.engine_token is None:
            raise ValueError(f"engine_token is missing: the engine {linked[0].url} requires one")
        if unknown := self.engine_keys().keys() - {table.name for table in self.engine}:
            names = ", ".join(table.name for table in self.engine) or "none with a server"
            raise ValueError(f"engine_key: there is no engine {min(unknown)!r}; engines: {names}")
        _ = self.aliases(), self.fallbacks(), self.prices()
        return self

    def engine_keys(self) -> dict[str, str]:
        """Return the API keys for upstream servers, by engine name. Raises ValueError if an option has another form."""
        return {item.name: item.value for item in (parse_pair(text, "NAME=KEY") for text in self.engine_key)}

    def aliases(self) -> dict[str, str]:
        """Return the models by their other names. Raises ValueError if an option has another form."""
        return {item.name: item.value for item in (parse_pair(text, "NAME=MODEL") for text in self.alias)}

    def fallbacks(self) -> dict[str, list[str]]:
        """Return for each model the models that replace it, in order. Raises ValueError if an option has another
        form."""
        found: dict[str, list[str]] = {}
        for item in (parse_pair(text, "MODEL=OTHER") for text in self.fallback):
            found.setdefault(item.name, []).append(item.value)
        return found

    def prices(self) -> Prices:
        """Return the prices of models. Raises ValueError if an option has another form."""
        pairs = (parse_pair(text, "a price, MODEL=PROMPT/COMPLETION") for text in self.price)
        return Prices({item.name: parse_price(item.value) for item in pairs})

    @property
    def records_spend(self) -> bool:
        """Return whether the server has a ledger."""
        return self.ledger == "on" or (self.ledger == "auto" and bool(self.price or self.admin_keys()))

    def ledger_files(self) -> tuple[Path | None, Path | None]:
        """Return the ledger's database, and the file with its newest rows: beside the journal; None for those that are
        in memory. With a journal in PostgreSQL, the database is there."""
        file = self.journal_file()
        if file is not None:
            return file.with_suffix(".ledger.sqlite"), file.with_suffix(".ledger.log")
        if self.journal_url() is None or self.port == 0:
            return None, None
        return None, _state_folder() / f"ledger-{self.port}.log"

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector_has_a_url(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", url):
            raise ValueError(f"{url!r} is not http(s)://HOST:PORT")
        return url

    @model_validator(mode="after")
    def _texts_have_a_collector(self) -> Self:
        if self.otlp_texts and self.otlp_endpoint is None:
            raise ValueError("otlp_texts needs otlp_endpoint")
        return self

    @model_validator(mode="after")
    def _key_has_its_certificate(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key needs tls_cert")
        return self

    @model_validator(mode="after")
    def _keys_are_keys(self) -> Self:
        if any(not key.strip() for key in self.api_key):
            raise ValueError("an API key must not be empty")
        if any(len(key.strip()) < _ADMIN_KEY_LENGTH for key in self.admin_key):
            raise ValueError(f"an admin key must have at least {_ADMIN_KEY_LENGTH} characters")
        return self

    def admin_keys(self) -> list[str]:
        """Return all admin keys. Raises OSError or ValueError if the file cannot be read, has no key, or a key is too
        short or is an API key as well."""
        keys = [key.strip() for key in self.admin_key]
        if self.admin_key_file is not None:
            lines = self.admin_key_file.read_text(encoding="utf-8").splitlines()
            found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
            if not found:
                raise ValueError(f"{self.admin_key_file} has no admin key")
            if any(len(key) < _ADMIN_KEY_LENGTH for key in found):
                raise ValueError(
                    f"{self.admin_key_file}: an admin key must have at least {_ADMIN_KEY_LENGTH} characters"
                )
            keys += found
        if not self.keys().keys().isdisjoint(keys):
            raise ValueError("an admin key must not be an API key as well")
        return keys

    def keys(self) -> dict[str, float]:
        """Return all accepted API keys and their weights. Under load, a key's share of the engines is proportional to
        its weight. Raises OSError or ValueError if the file cannot be read, has no key, or is malformed."""
        keys = dict.fromkeys(self.api_key, 1.0)
        if self.api_key_file is not None:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            found = [line.split() for line in lines if line.strip() and not line.strip().startswith("#")]
            if not found:
                raise ValueError(f"{self.api_key_file} has no API key")
            keys |= {key: self._weight(key, rest) for key, *rest in found}
        return keys

    def _weight(self, key: str, rest: Sequence[str]) -> float:
        try:
            weight = float(*rest or ("1",))
        except (TypeError, ValueError):
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(
                f"{self.api_key_file}: invalid weight {' '.join(rest)!r} of the key {key[:4]}…; must be above 0"
            )
        return weight

    def tool_settings(self) -> ToolSettings:
        """Return the MCP servers that the operator allows. Raises OSError or ValueError if their file is unreadable or
        invalid."""
        return ToolSettings() if self.tool_servers is None else read_tool_servers(self.tool_servers)

    def journal_file(self) -> Path | None:
        """Return the file that persists sessions, or None. With port 0 there is none: after a restart, the server would
        not find it again."""
        if self.journal == "memory" or (self.journal == "auto" and self.port == 0) or self.journal_url() is not None:
            return None
        if self.journal == "auto":
            return _state_folder() / f"journal-{self.port}.sqlite"
        return Path(self.journal).expanduser()

    def journal_url(self) -> str | None:
        """Return the URL of the database that persists sessions, or None."""
        return self.journal if self.journal.startswith(("postgresql://", "postgres://")) else None

    @model_validator(mode="after")
    def _shared_sessions_can_be_reached(self) -> Self:
        if self.journal_url() is None:
            if self.advertise is not None:
                raise ValueError("advertise requires a shared journal: --journal postgresql://…")
            return self
        if self.advertise is not None and not _ORIGIN.fullmatch(self.advertise):
            raise ValueError(f"advertise: {self.advertise!r} is not http(s)://HOST:PORT")
        if self.advertise is None and (self.uds is not None or self.host in ("0.0.0.0", "::", "")):
            raise ValueError("advertise is missing: the URL at which other gateways reach this one")
        if self.parrot_api:
            raise ValueError(
                "parrot_api cannot be combined with a shared journal: its sessions exist in one gateway only"
            )
        return self


def _state_folder() -> Path:
    """Return the folder of files that survive a restart."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "myna"


def parse(settings: type[Settings], arguments: Sequence[str], program: str) -> Settings:
    """Return the settings of a command line. Exits after `--help`. Raises ValidationError, OSError, TOMLDecodeError."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=inspect.cleandoc(settings.__doc__ or ""),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
        usage=f"{program} [options]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    group: argparse._ActionsContainer = parser
    for name, field in settings.model_fields.items():
        if name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[name])
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, **_argument_options(field))
    return settings(**vars(parser.parse_args(arguments)))


def _argument_options(field: FieldInfo) -> dict[str, Any]:
    """Return argparse's options for a setting. The model converts and checks the texts, with its own errors."""
    help_text = field.description or ""
    if field.default not in (None, [], True):
        help_text += f" (default: {field.default})"
    if field.annotation is bool:
        return {"help": help_text, "action": argparse.BooleanOptionalAction}
    if get_origin(field.annotation) is Literal:
        return {"help": help_text, "choices": get_args(field.annotation)}
    if get_origin(field.annotation) is list:
        return {"help": help_text, "action": "append", "metavar": "TEXT"}
    kinds = get_args(field.annotation) or (field.annotation,)
    return {"help": help_text, "metavar": "PATH" if Path in kinds else "TEXT" if str in kinds else "N"}
