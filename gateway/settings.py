"""Everything that can be set, said once: as a flag, as a MYNA_* variable, or in a TOML file."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliImplicitFlag,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from engine.config import DEFAULT_MODEL, default_cache


class ServeSettings(BaseSettings):
    """Serve a model with an OpenAI-compatible API, and Semantic Variables across the calls of a session.

    Each option can also be given as an environment variable (`--kv-tokens` is `MYNA_KV_TOKENS`) or in a TOML
    file (`kv_tokens = 65536`) named by --config. A flag goes before a variable, a variable before the file.
    """

    model_config = SettingsConfigDict(
        env_prefix="MYNA_",
        cli_kebab_case=True,
        cli_prog_name="myna serve",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        extra="forbid",
        validate_default=True,
    )

    config: Path | None = Field(None, description="TOML file with settings")
    # where
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port; 0 takes a free one")
    # what
    model: str = Field(DEFAULT_MODEL, description="default model, a GGUF file, a safetensors folder, or a hub id")
    model_name: str | None = Field(None, description="what clients call it; left out, the model's own name")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of weights and KV cache")
    kernels: Literal["auto", "cpu", "torch"] = Field("auto", description="which kernels the engine uses")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="of the engine; 0 is one for each core")
    kv_tokens: Annotated[int, Field(ge=0)] = Field(0, description="KV pool in tokens; 0 sizes it from free memory")
    step_tokens: Annotated[int, Field(ge=16)] = Field(512, description="token budget of one engine step")
    max_batch: Annotated[int, Field(ge=1)] = Field(256, description="most requests in one engine step")
    prefix_sharing: CliImplicitFlag[bool] = Field(True, description="keep and share the KV of equal prefixes")
    cache: Path = Field(Path(default_cache()), description="folder for downloaded models and built kernels")
    # who
    api_key: list[str] = Field([], description="accept only this key; may be given several times")
    api_key_file: Path | None = Field(None, description="file with one accepted key a line")
    # bounds
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(16 << 20, description="largest request body")
    max_calls: Annotated[int, Field(ge=1)] = Field(4096, description="unfinished calls; more are answered 429")
    max_sessions: Annotated[int, Field(ge=1)] = Field(10_000, description="sessions kept at a time")
    max_session_calls: Annotated[int, Field(ge=1)] = Field(10_000, description="calls of one session")
    max_session_variables: Annotated[int, Field(ge=1)] = Field(20_000, description="variables of one session")
    max_value_bytes: Annotated[int, Field(ge=1)] = Field(1 << 20, description="bytes of one variable's value")
    # times, in seconds
    session_ttl: Annotated[float, Field(gt=0)] = Field(3600.0, description="an idle session is kept so long")
    max_wait: Annotated[float, Field(gt=0)] = Field(600.0, description="longest wait for a variable in one request")
    engine_wait: Annotated[float, Field(gt=0)] = Field(
        30.0, description="a request waits so long for an engine that starts or restarts"
    )
    drain: Annotated[float, Field(ge=0)] = Field(30.0, description="on SIGTERM, running answers may take so long")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least of what is logged")

    @field_validator("api_key", mode="before")
    @classmethod
    def _keys_from_text(cls, value: Any) -> Any:
        return [key.strip() for key in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_are_keys(self) -> Self:
        if any(not key.strip() for key in self.api_key):
            raise ValueError("an API key must not be empty")
        return self

    def keys(self) -> list[str]:
        """All accepted keys. Raises OSError or ValueError if the file cannot be read or holds none."""
        keys = list(self.api_key)
        if self.api_key_file is not None:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            if not found:
                raise ValueError(f"{self.api_key_file} holds no key")
            keys += found
        return keys

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags come with init_settings; then the environment, then the file that one of them names."""
        named = {**env_settings(), **init_settings()}.get("config")
        if named is None:
            return (init_settings, env_settings)
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=Path(named)))
