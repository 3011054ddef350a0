"""Everything that can be set, said once: as a flag, as a MYNA_* variable, or in a TOML file."""

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
from gateway.config.engine_tables import EngineTable, engine_table, host_and_port, named_apart, pair

Settings = TypeVar("Settings", bound="EngineOptions")
_ORIGIN = re.compile(r"https?://[^/\s?#@]+")
_GROUPS = {
    "host": "where to listen",
    "model": "the model and its engine",
    "model_name": "which engines",
    "listen": "where to listen, and who may call",
    "order": "scheduling",
    "api_key": "who may ask",
    "parrot_api": "other APIs",
    "max_body_bytes": "bounds",
    "journal": "what outlives a restart",
    "session_ttl": "times, in seconds",
    "log_level": "logging",
}
"""The headings of `--help`, by the first setting under each."""


class EngineOptions(BaseSettings):
    """The model, and what shapes an engine that runs it."""

    model_config = SettingsConfigDict(
        env_prefix="MYNA_", extra="forbid", validate_default=True, protected_namespaces=()
    )

    config: Path | None = Field(None, description="TOML file with settings")

    model: str = Field(DEFAULT_MODEL, description="a GGUF file, a folder with safetensors, a hub id, or the default")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N; auto: the GPUs, if any"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="of weights")
    kv_dtype: Literal["auto", "fp8"] = Field("auto", description="of the KV cache: auto as the weights, fp8 in 8 bits")
    kernels: Literal["auto", "cpu", "torch", "triton"] = Field("auto", description="which kernels the engine uses")
    quantize: Literal["none", "int8"] = Field("none", description="int8: weights in 8 bits, faster and less exact")
    threads: int = Field(0, ge=0, description="of each engine; 0 shares the cores out among them")
    kv_tokens: int = Field(0, ge=0, description="KV pool of each engine in tokens; 0 sizes it from free memory")
    host_kv_tokens: int = Field(
        -1,
        ge=-1,
        description="KV that the host keeps when it leaves the pool; -1: as a GPU's pool has, or none",
    )
    step_tokens: int = Field(0, ge=0, description="token budget of one engine step; 0: 512 on a CPU, 4096 on a GPU")
    step_seconds: float = Field(0.1, gt=0, description="longest step while somebody reads, where prompts can be cut")
    decode_share: float = Field(0.65, gt=0, lt=1, description="speed that answers keep while long prompts are read")
    max_batch: int = Field(256, ge=1, description="most requests in one engine step")
    speculation: Literal["auto", "on", "off"] = Field(
        "auto", description="check together tokens that an answer may go on with; auto: where that changes no text"
    )
    prefix_sharing: bool = Field(True, description="keep and share the KV of equal prefixes")
    retention: Literal["learned", "lru"] = Field(
        "learned", description="what leaves a full KV pool first: what is read again last, or what was read longest ago"
    )
    cache: Path = Field(Path(default_cache()), description="folder for downloaded models and built kernels")

    @field_validator("step_tokens")
    @classmethod
    def _steps_have_rows(cls, tokens: int) -> int:
        if 0 < tokens < 16:
            raise ValueError("a step takes at least 16 tokens; 0 takes what suits the device")
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
        """Flags, then the environment, then the file that one of them names. Raises OSError if it is not there."""
        named = {**env_settings(), **init_settings()}.get("config")
        if named is None:
            return (init_settings, env_settings)
        path = Path(named).expanduser()
        path.stat()  # the source would take a missing file for an empty one
        return (init_settings, env_settings, TomlSource(settings_cls, toml_file=path))


class EngineSettings(EngineOptions):
    """Run an engine that gateways on other machines use: myna serve --engine myna=tcp://HOST:PORT.

    Each option can also be given as an environment variable (--kv-tokens is MYNA_KV_TOKENS) or in a TOML file named
    by --config (kv_tokens = 65536). A flag goes before a variable, a variable before the file.
    """

    listen: str = Field("127.0.0.1:9000", description="HOST:PORT to listen on; port 0 takes a free one")
    engine_token: str | None = Field(None, min_length=8, description="what a gateway has to show")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate, and its chain: speak TLS")
    tls_key: Path | None = Field(None, description="PEM file with its key, if it is not in the same one")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least of what is logged")

    @property
    def address(self) -> tuple[str, int]:
        """Where to listen."""
        return host_and_port(self.listen)

    @field_validator("listen")
    @classmethod
    def _listens_somewhere(cls, listen: str) -> str:
        host_and_port(listen)
        return listen

    @model_validator(mode="after")
    def _shows_a_token(self) -> Self:
        if self.engine_token is None:
            raise ValueError("engine_token is missing: whoever reaches the port could use the engine")
        return self


class ServeSettings(EngineOptions):
    """Serve a model with an OpenAI-compatible API, and Semantic Variables across the calls of a session.

    Each option can also be given as an environment variable (--kv-tokens is MYNA_KV_TOKENS) or in a TOML file named
    by --config (kv_tokens = 65536). A flag goes before a variable, a variable before the file.
    """

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port; 0 takes a free one")
    uds: Path | None = Field(None, description="listen on this Unix socket instead")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate, and its chain: serve HTTPS")
    tls_key: Path | None = Field(None, description="PEM file with its key, if it is not in the same one")
    cors_origin: Annotated[list[str], NoDecode] = Field(
        [], description="origin whose pages may ask from a browser, or *; may be given several times"
    )

    model_name: str | None = Field(None, description="what clients call it; left out, the model's own name")
    engines: int = Field(0, ge=0, le=64, description="processes that run the model; 0: one a GPU, or one on the CPU")
    engine: Annotated[list[EngineTable], NoDecode] = Field(
        [],
        description="embedded, ray=auto, myna=tcp://HOST:PORT, openai=, vllm=, sglang=, llamacpp=, myna=http://…",
    )
    engine_token: str | None = Field(None, description="what is shown to engines that `myna engine` runs")
    engine_key: Annotated[list[str], NoDecode] = Field(
        [], description="NAME=KEY: what is shown to the server of that name (openai, vllm, vllm-2); several times"
    )
    engine_ca: Path | None = Field(None, description="PEM file with whom to trust for tls:// and https:// engines")
    alias: Annotated[list[str], NoDecode] = Field([], description="NAME=MODEL: another name of a model; several times")
    fallback: Annotated[list[str], NoDecode] = Field(
        [], description="MODEL=OTHER: who answers when no engine of the model does; several times, in this order"
    )

    order: Literal["need", "arrival"] = Field(
        "need", description="of waiting work: by what its readers need, or first come, first served"
    )
    fill_ahead: bool = Field(True, description="read prompts before all the values in them are there")

    api_key: Annotated[list[str], NoDecode] = Field([], description="an accepted key; may be given several times")
    api_key_file: Path | None = Field(None, description="file with an accepted key a line, and its weight, if not 1")

    parrot_api: bool = Field(False, description="also serve the API of Parrot's artifact, for programs written for it")

    max_body_bytes: int = Field(16 << 20, ge=1024, description="largest request body")
    max_kept_bytes: int = Field(
        256 << 20, ge=0, description="bytes of responses that can be asked for by their ids; 0 keeps none"
    )
    max_calls: int = Field(4096, ge=1, description="unfinished calls; more are answered 429")
    max_sessions: int = Field(10_000, ge=1, description="sessions kept at a time")
    max_key_sessions: int = Field(10_000, ge=1, description="sessions of one key kept at a time")
    max_session_calls: int = Field(10_000, ge=1, description="calls of one session")
    max_session_variables: int = Field(20_000, ge=1, description="variables of one session")
    max_session_edges: int = Field(100_000, ge=1, description="inputs that all calls of one session read together")
    max_session_bytes: int = Field(256 << 20, ge=1, description="bytes of one session's values and prompts")
    max_held_bytes: int = Field(4 << 30, ge=1, description="maximum bytes of the values and prompts of all sessions")
    max_waiters: int = Field(10_000, ge=1, description="requests that may wait for one session's variables")
    max_depth: int = Field(1_000, ge=1, description="calls that may wait for one another in a row")
    max_value_bytes: int = Field(1 << 20, ge=1, description="bytes of one variable's value")

    journal: str = Field(
        "auto",
        min_length=1,
        description="file for sessions, 'memory' for none, or postgresql://…, which several gateways may share; "
        "auto: a file a port",
    )
    advertise: str | None = Field(None, description="URL at which gateways on the same journal reach this one")
    lease: float = Field(10.0, ge=1, description="seconds without a word after which others take its sessions over")
    record: Path | None = Field(None, description="file for the shape of what is asked, to simulate; no texts")

    session_ttl: float = Field(3600.0, gt=0, description="an idle session is kept so long")
    response_ttl: float = Field(30 * 86_400.0, gt=0, description="a response is kept so long")
    max_wait: float = Field(600.0, gt=0, description="longest wait for a variable in one request")
    engine_wait: float = Field(30.0, gt=0, description="a request waits so long for an engine to start or restart")
    engine_timeout: float = Field(60.0, gt=0, description="an engine with work that is silent so long is replaced")
    drain: float = Field(30.0, ge=0, description="on SIGTERM, SIGINT or SIGHUP: seconds for running answers to finish")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least of what is logged")

    @field_validator("api_key", "cors_origin", "engine", "engine_key", "alias", "fallback", mode="before")
    @classmethod
    def _several_from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """A variable of the environment holds several with commas between them."""
        several = [one.strip() for one in value.split(",")] if isinstance(value, str) else value
        if info.field_name == "engine" and isinstance(several, list):
            return [engine_table(one) for one in several]
        return several

    @field_validator("engine")
    @classmethod
    def _engines_have_names(cls, tables: list[EngineTable]) -> list[EngineTable]:
        return named_apart(tables)

    @field_validator("cors_origin")
    @classmethod
    def _origins_are_origins(cls, origins: list[str]) -> list[str]:
        bad = next((one for one in origins if one != "*" and not _ORIGIN.fullmatch(one)), None)
        if bad is not None:
            raise ValueError(f"{bad!r} is no origin; one is https://host, with a port if need be and nothing behind it")
        return origins

    @model_validator(mode="after")
    def _engines_are_engines(self) -> Self:
        linked = [table for table in self.engine if table.linked]
        if linked and self.engine_token is None:
            raise ValueError(f"engine_token is missing: {linked[0].url} wants to see one")
        if unknown := self.engine_keys().keys() - {table.name for table in self.engine}:
            names = ", ".join(table.name for table in self.engine) or "none with a server"
            raise ValueError(f"engine_key names {min(unknown)!r}; the engines are {names}")
        _ = self.aliases(), self.fallbacks()
        return self

    def engine_keys(self) -> dict[str, str]:
        """What is shown to servers, by the names of engines. Raises ValueError."""
        return {one.name: one.value for one in (pair(text, "NAME=KEY") for text in self.engine_key)}

    def aliases(self) -> dict[str, str]:
        """Models by their other names. Raises ValueError."""
        return {one.name: one.value for one in (pair(text, "NAME=MODEL") for text in self.alias)}

    def fallbacks(self) -> dict[str, list[str]]:
        """Who answers in a model's place, in order. Raises ValueError."""
        found: dict[str, list[str]] = {}
        for one in (pair(text, "MODEL=OTHER") for text in self.fallback):
            found.setdefault(one.name, []).append(one.value)
        return found

    @model_validator(mode="after")
    def _key_has_its_certificate(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key needs tls_cert")
        return self

    @model_validator(mode="after")
    def _keys_are_keys(self) -> Self:
        if any(not key.strip() for key in self.api_key):
            raise ValueError("an API key must not be empty")
        return self

    def keys(self) -> dict[str, float]:
        """All accepted keys, and their weights: how large a share of the engines each has where there is not enough for
        all. Raises OSError or ValueError if the file cannot be read, or holds none, or something else."""
        keys = dict.fromkeys(self.api_key, 1.0)
        if self.api_key_file is not None:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            found = [line.split() for line in lines if line.strip() and not line.strip().startswith("#")]
            if not found:
                raise ValueError(f"{self.api_key_file} holds no key")
            keys |= {key: self._weight(key, rest) for key, *rest in found}
        return keys

    def _weight(self, key: str, rest: Sequence[str]) -> float:
        try:
            weight = float(*rest or ("1",))
        except (TypeError, ValueError):
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(
                f"{self.api_key_file}: behind the key {key[:4]}… stands {' '.join(rest)!r}; a weight is a number over 0"
            )
        return weight

    def journal_file(self) -> Path | None:
        """Where sessions are kept; None: nowhere. A server on a port of its own choosing cannot be found again."""
        if self.journal == "memory" or (self.journal == "auto" and self.port == 0) or self.journal_url() is not None:
            return None
        if self.journal == "auto":
            state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
            return state / "myna" / f"journal-{self.port}.sqlite"
        return Path(self.journal).expanduser()

    def journal_url(self) -> str | None:
        """The database in which sessions are kept, if they are in one."""
        return self.journal if self.journal.startswith(("postgresql://", "postgres://")) else None

    @model_validator(mode="after")
    def _shared_sessions_can_be_reached(self) -> Self:
        if self.journal_url() is None:
            if self.advertise is not None:
                raise ValueError("advertise is for gateways that share a journal: --journal postgresql://…")
            return self
        if self.advertise is not None and not _ORIGIN.fullmatch(self.advertise):
            raise ValueError(f"advertise: {self.advertise!r} is no http://HOST:PORT")
        if self.advertise is None and (self.uds is not None or self.host in ("0.0.0.0", "::", "")):
            raise ValueError("advertise is missing: the URL at which the other gateways reach this one")
        if self.parrot_api:
            raise ValueError("parrot_api keeps its sessions in one gateway; it does not go with a shared journal")
        return self


def parse(settings: type[Settings], arguments: Sequence[str], program: str) -> Settings:
    """Settings from a command line. Raises ValidationError, OSError or TOMLDecodeError; ends at `--help`."""
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
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, **_flag(field))
    return settings(**vars(parser.parse_args(arguments)))


def _flag(field: FieldInfo) -> dict[str, Any]:
    """argparse's view of a setting. Texts are turned into values by the model, with its own errors."""
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
