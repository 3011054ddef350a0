"""Create and start the engines of the settings, and register the models that they serve."""

import asyncio
import dataclasses
import ssl
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.errors import CheckpointError
from engine.gpus import usable_gpus
from engine.protocol import EngineInfo
from engine.tokenizer import Tokenizer
from gateway.config.engine_tables import EngineTable, host_and_port
from gateway.config.settings import EngineOptions, ServeSettings
from gateway.engines.anthropic import AnthropicEngine
from gateway.engines.local.client import EngineClient, EngineStartFailed
from gateway.engines.local.ray import RayEngine, resources_per_engine
from gateway.engines.local.subprocess import SubprocessEngine
from gateway.engines.local.tcp import TcpEngine
from gateway.engines.openai import OpenAIEngine, Upstream, UpstreamConfig
from gateway.engines.openai.capabilities import TEXT, order_capabilities
from gateway.engines.openai.tokenizer import load_tokenizer
from gateway.engines.openai.tool_calls import MalformedCalls
from gateway.engines.pool import EnginePool
from gateway.engines.protocol import Engine
from gateway.prompts.chat_template import TemplateRefused
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder

_MAX_LISTED = 5
"""Maximum number of models that a message lists."""


class EngineFactory:
    """Owner of the engines. Once `start` has returned, they are in the pool under the models that they serve."""

    def __init__(self, settings: ServeSettings, pool: EnginePool) -> None:
        """Raise OSError if the TLS certificates cannot be read."""
        self.models: list[ServedModel] = []
        """Served models; complete once `start` has returned."""
        self._settings = settings
        self._pool = pool
        self.engine_tls = ssl.create_default_context(cafile=settings.engine_ca)
        """TLS context for engines of this project. It trusts only `engine_ca`, if that is set."""
        self.upstream_tls = ssl.create_default_context()
        """TLS context for upstream servers and other gateways."""
        if settings.engine_ca is not None:  # in addition to public authorities: upstream servers may use either
            self.upstream_tls.load_verify_locations(settings.engine_ca)
        self._tokenizers: dict[str, Tokenizer] = {}
        self._clients: list[EngineClient] = []
        self._servers: list[tuple[EngineTable, Upstream]] = []
        self._ray_tables: list[EngineTable] = []
        for table in settings.engine or [EngineTable(kind="embedded", name="embedded")]:
            if table.kind == "embedded":
                self._clients += self._create_embedded()
            elif table.kind == "ray":
                self._ray_tables.append(table)
            elif table.is_myna_engine:
                self._clients.append(self._create_tcp(table))
            else:
                self._servers.append((table, self._create_upstream(table)))

    def _create_embedded(self) -> list[EngineClient]:
        first, hang = len(self._clients), self._settings.engine_timeout
        return [
            SubprocessEngine(f"embedded-{first + index}", config, self._pool.notify_change, hang_seconds=hang)
            for index, config in enumerate(engine_configs(self._settings, usable_gpus()))
        ]

    def _create_tcp(self, table: EngineTable) -> EngineClient:
        scheme, _, where = table.url.partition("://")
        return TcpEngine(
            table.name,
            *host_and_port(where),
            self._settings.engine_token or "",
            self._pool.notify_change,
            tls=self.engine_tls if scheme == "tls" else None,
            hang_seconds=self._settings.engine_timeout,
            start_timeout=self._settings.engine_wait,
        )

    async def _create_ray(self, table: EngineTable) -> list[EngineClient]:
        engines = await asyncio.to_thread(resources_per_engine, table.url, table.count, table.cpus, table.gpus)
        return [
            RayEngine(
                f"{table.name}-{index}",
                table.url,
                engine_config(self._settings, self._settings.device, 1),
                resources,
                self._pool.notify_change,
                linger=table.linger,
                hang_seconds=self._settings.engine_timeout,
            )
            for index, resources in enumerate(engines)
        ]

    def _create_upstream(self, table: EngineTable) -> Upstream:
        config = UpstreamConfig(
            table.name,
            table.kind,
            table.url,
            key=table.api_key(self._settings.engine_keys()),
            models=table.models,
            timeout=table.timeout,
            concurrency=table.concurrency,
            tls=self.upstream_tls,
            capabilities=table.capabilities,
            kv_tokens=table.kv_tokens,
            malformed=MalformedCalls(table.tool_calls or self._settings.upstream_tool_calls),
        )
        return Upstream(config, self._pool.notify_change, start_timeout=self._settings.engine_wait)

    async def launch(self) -> None:
        """Launch the process of the first engine, while the rest of the server is set up; see `EngineClient.launch`."""
        if self._clients:
            await self._clients[0].launch()

    async def start(self) -> None:
        """Start all engines and register their models. Raises EngineStartFailed.

        The first engine of this project starts alone: it downloads the model and builds the kernels for the others.
        """
        for table in self._ray_tables:
            self._clients += await self._create_ray(table)
        starts = [upstream.start() for _, upstream in self._servers]
        await asyncio.gather(*starts, self._start_clients())
        for engine in self._clients:
            assert engine.info is not None
            name = self._settings.model_name or engine.info.model
            kinds = ("embeddings",) if engine.info.embedding else TEXT
            self._register(name, engine, engine.tokenizer, engine.info.window, engine.info.vocabulary, kinds)
        for table, upstream in self._servers:
            tokenizer = await self._load_tokenizer(table, upstream)
            for listed in upstream.models:
                name = table.name if len(upstream.models) == 1 else f"{table.name}:{listed.id}"
                remote = (
                    AnthropicEngine(name, upstream, listed)
                    if table.kind == "anthropic"
                    else OpenAIEngine(name, upstream, listed.id, tokenizer, listed.capabilities)
                )
                vocabulary = None if tokenizer is None else tokenizer.vocabulary
                window = listed.window or table.window
                self._register(listed.id, remote, tokenizer, window, vocabulary, listed.capabilities)
        self._check_names()

    async def _start_clients(self) -> None:
        if self._clients:
            await self._clients[0].start()
            await asyncio.gather(*(engine.start() for engine in self._clients[1:]))

    async def _load_tokenizer(self, table: EngineTable, upstream: Upstream) -> Tokenizer | None:
        if table.tokenizer is None:
            return None
        if len(upstream.models) > 1:
            listed = ", ".join(model.id for model in upstream.models[:_MAX_LISTED])
            raise EngineStartFailed(
                f"engine {table.name} has a tokenizer, but its server has several models; set `models` to the one of "
                f"{listed} that the tokenizer belongs to"
            )
        if table.tokenizer not in self._tokenizers:
            try:
                self._tokenizers[table.tokenizer] = await asyncio.to_thread(load_tokenizer, table.tokenizer)
            except CheckpointError as error:
                raise EngineStartFailed(f"engine {table.name}: {error}") from error
        return self._tokenizers[table.tokenizer]

    def _register(
        self,
        name: str,
        engine: Engine,
        tokenizer: Tokenizer | None,
        window: int | None,
        vocabulary: int | None,
        capabilities: Sequence[str] = TEXT,
    ) -> None:
        """Register an engine of a model. Raises EngineStartFailed if other engines of the model need other prompts."""
        known = next((model for model in self.models if model.id == name), None)
        if known is None:
            try:
                prompts = PassthroughPromptBuilder() if tokenizer is None else TemplatePromptBuilder(tokenizer, window)
            except TemplateRefused as error:
                raise EngineStartFailed(f"the chat template of {name} is invalid: {error}") from error
            model = ServedModel(name, window, vocabulary, tokenizer, prompts, capabilities=capabilities)
            if isinstance(engine, EngineClient) and engine.info is not None:
                size, normalizes = engine.info.embedding, engine.info.normalizes
                model = dataclasses.replace(model, embedding=size, normalizes=normalizes)
            self.models.append(model)
        elif not _same_prompts(known.tokenizer, tokenizer):
            raise EngineStartFailed(
                f"engine {engine.name} serves {name} like another engine, but with other prompts: set the same "
                "`tokenizer` for both, in tables of the settings, or rename one of the models"
            )
        elif more := [each for each in capabilities if each not in known.capabilities]:
            joined = order_capabilities([*known.capabilities, *more])
            self.models[self.models.index(known)] = dataclasses.replace(known, capabilities=joined)
        self._pool.add(name, engine)

    def _check_names(self) -> None:
        """Raise EngineStartFailed if aliases or fallbacks do not match the served models."""
        served = {model.id for model in self.models}
        aliases, fallbacks = self._settings.aliases(), self._settings.fallbacks()
        for alias, model in aliases.items():
            if alias in served or model not in served:
                problem = "is the name of a model" if alias in served else f"is for {model}, which is not served"
                raise EngineStartFailed(f"the alias {alias} {problem}; served: {_join_names(sorted(served))}")
        for model in {*fallbacks, *(other for others in fallbacks.values() for other in others)}:
            if model not in served:
                raise EngineStartFailed(f"fallback: {model} is not served; served: {_join_names(sorted(served))}")

    async def close(self) -> None:
        """Stop the engines that this server started, and close the connections to all others."""
        await asyncio.gather(
            *(engine.close() for engine in self._clients), *(upstream.close() for _, upstream in self._servers)
        )

    def __str__(self) -> str:
        """Return a description of the models and their engines, for the log."""
        parts = []
        by_model: dict[str, list[EngineInfo]] = {}
        for engine in self._clients:
            assert engine.info is not None
            by_model.setdefault(self._settings.model_name or engine.info.model, []).append(engine.info)
        for name, infos in by_model.items():
            info, several = infos[0], f"{len(infos)} engines, each " if len(infos) > 1 else ""
            parts.append(
                f"{name} ({info.parameters / 1e6:.0f}M parameters, {info.dtype}, window {info.window}) on {several}"
                f"{info.device} with {info.threads} threads, kernels: {info.kernels}, KV {info.kv_tokens} tokens,"
            )
        for table, upstream in self._servers:
            parts.append(f"{_join_names([model.id for model in upstream.models])} of {table.name} ({upstream.url})")
        return " and ".join(parts)


def _join_names(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _same_prompts(tokenizer: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Return whether prompts are equal with both tokenizers; None stands for message passthrough."""
    return tokenizer is other or (
        tokenizer is not None
        and other is not None
        and tokenizer.control == other.control
        and tokenizer.chat_template == other.chat_template
        and list(tokenizer.encode(_SAMPLE)) == list(other.encode(_SAMPLE))
    )


_SAMPLE = "The quick brown fox, 1234567890; naïve café – Größe 😀\n\n\tdef f(x): return x**2"
"""Sample text that two different vocabularies hardly ever tokenise alike."""


def engine_configs(settings: ServeSettings, gpus: int) -> list[EngineConfig]:
    """Return the configuration of each embedded engine. With several GPUs and device auto, engines are distributed
    over them."""
    devices = [settings.device]
    if settings.device == "auto" and settings.kernels in ("auto", "triton") and gpus:
        devices = [f"cuda:{index}" for index in range(gpus)]
    count = settings.engines or len(devices)
    shared = -(-count // len(devices))
    return [engine_config(settings, devices[index % len(devices)], shared) for index in range(count)]


def engine_config(settings: EngineOptions, device: str, peers: int) -> EngineConfig:
    """Return the configuration of one engine. `peers`: number of engines on its device."""
    return EngineConfig(
        device=device,
        model=settings.model,
        cache=str(settings.cache.expanduser()),
        dtype=settings.dtype,
        kv_dtype=settings.kv_dtype,
        kernels=settings.kernels,
        quantize=settings.quantize,
        kv_tokens=settings.kv_tokens,
        host_kv_tokens=settings.host_kv_tokens,
        step_tokens=settings.step_tokens,
        step_seconds=settings.step_seconds,
        decode_share=settings.decode_share,
        max_batch=settings.max_batch,
        threads=settings.threads,
        tile_threads=settings.tile_threads,
        peers=peers,
        speculation=settings.speculation,
        prefix_sharing=settings.prefix_sharing,
        retention=settings.retention,
    )
