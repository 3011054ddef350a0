"""The engines that the settings name: made, started, and the models that they serve."""

import asyncio
import ssl
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.errors import CheckpointError
from engine.gpus import usable_gpus
from engine.protocol import EngineInfo
from engine.tokenizer import Tokenizer
from gateway.config.engine_tables import EngineTable, host_and_port
from gateway.config.settings import EngineOptions, ServeSettings
from gateway.engines.local.client import EngineClient, EngineStartFailed
from gateway.engines.local.ray import RayEngine, shares_of
from gateway.engines.local.subprocess import SubprocessEngine
from gateway.engines.local.tcp import TcpEngine
from gateway.engines.openai import OpenAIEngine, Server, Upstream
from gateway.engines.openai.tokenizer import load_tokenizer
from gateway.engines.pool import EnginePool
from gateway.engines.protocol import Engine
from gateway.prompts.builder import PromptBuilder, PromptTokenizer
from gateway.prompts.chat_template import TemplateRefused
from gateway.prompts.message_passthrough import TranscriptTokenizer
from gateway.prompts.served_models import ServedModel

_NAMED = 5
"""Models that the first line names at most."""


class EngineFactory:
    """Owner of the engines. They are in the pool, by the models that they serve, once `start` has returned."""

    def __init__(self, settings: ServeSettings, pool: EnginePool) -> None:
        """Raises OSError if TLS's certificates cannot be read."""
        self.models: list[ServedModel] = []
        """Those that are served, once started."""
        self._settings = settings
        self._pool = pool
        self.links = ssl.create_default_context(cafile=settings.engine_ca)
        """For engines of ours, which that file alone vouches for, if there is one."""
        self.https = ssl.create_default_context()
        """For servers elsewhere, and other gateways."""
        if settings.engine_ca is not None:  # beside whom everybody trusts: not all servers are ours
            self.https.load_verify_locations(settings.engine_ca)
        self._messages = TranscriptTokenizer()
        self._tokenizers: dict[str, Tokenizer] = {}
        self._linked: list[EngineClient] = []
        self._servers: list[tuple[EngineTable, Upstream]] = []
        self._on_ray: list[EngineTable] = []
        for table in settings.engine or [EngineTable(kind="embedded", name="embedded")]:
            if table.kind == "embedded":
                self._linked += self._embedded()
            elif table.kind == "ray":
                self._on_ray.append(table)
            elif table.linked:
                self._linked.append(self._called(table))
            else:
                self._servers.append((table, self._upstream(table)))

    def _embedded(self) -> list[EngineClient]:
        first, hang = len(self._linked), self._settings.engine_timeout
        return [
            SubprocessEngine(f"embedded-{first + at}", config, self._pool.changed, hang_seconds=hang)
            for at, config in enumerate(engine_configs(self._settings, usable_gpus()))
        ]

    def _called(self, table: EngineTable) -> EngineClient:
        scheme, _, where = table.url.partition("://")
        return TcpEngine(
            table.name,
            *host_and_port(where),
            self._settings.engine_token or "",
            self._pool.changed,
            tls=self.links if scheme == "tls" else None,
            hang_seconds=self._settings.engine_timeout,
            patience=self._settings.engine_wait,
        )

    async def _actors(self, table: EngineTable) -> list[EngineClient]:
        shares = await asyncio.to_thread(shares_of, table.url, table.count, table.cpus, table.gpus)
        return [
            RayEngine(
                f"{table.name}-{at}",
                table.url,
                engine_config(self._settings, self._settings.device, 1),
                share,
                self._pool.changed,
                linger=table.linger,
                hang_seconds=self._settings.engine_timeout,
            )
            for at, share in enumerate(shares)
        ]

    def _upstream(self, table: EngineTable) -> Upstream:
        server = Server(
            table.name,
            table.kind,
            table.url,
            key=table.shown(self._settings.engine_keys()),
            models=table.models,
            timeout=table.timeout,
            concurrency=table.concurrency,
            tls=self.https,
        )
        return Upstream(server, self._pool.changed, patience=self._settings.engine_wait)

    async def begin(self) -> None:
        """What can go on while the rest of the house is built: see `EngineClient.begin`."""
        if self._linked:
            await self._linked[0].begin()

    async def start(self) -> None:
        """Of engines of our own the first one alone: it fetches the model and builds the kernels that the others find.
        Raises EngineStartFailed."""
        for table in self._on_ray:
            self._linked += await self._actors(table)
        starts = [upstream.start() for _, upstream in self._servers]
        await asyncio.gather(*starts, self._start_linked())
        for engine in self._linked:
            assert engine.info is not None
            name = self._settings.model_name or engine.info.model
            self._serve(name, engine, engine.tokenizer, engine.info.window, engine.info.vocabulary)
        for table, upstream in self._servers:
            tokenizer = await self._tokenizer_of(table, upstream)
            for listed in upstream.models:
                name = table.name if len(upstream.models) == 1 else f"{table.name}:{listed.id}"
                remote = OpenAIEngine(name, upstream, listed.id, tokenizer)
                vocabulary = None if tokenizer is None else tokenizer.vocabulary
                self._serve(listed.id, remote, tokenizer or self._messages, listed.window or table.window, vocabulary)
        self._check_names()

    async def _start_linked(self) -> None:
        if self._linked:
            await self._linked[0].start()
            await asyncio.gather(*(engine.start() for engine in self._linked[1:]))

    async def _tokenizer_of(self, table: EngineTable, upstream: Upstream) -> Tokenizer | None:
        if table.tokenizer is None:
            return None
        if len(upstream.models) > 1:
            listed = ", ".join(model.id for model in upstream.models[:_NAMED])
            raise EngineStartFailed(
                f"engine {table.name} has a tokenizer, and its server several models: say in `models` which one of "
                f"{listed} it belongs to"
            )
        if table.tokenizer not in self._tokenizers:
            try:
                self._tokenizers[table.tokenizer] = await asyncio.to_thread(load_tokenizer, table.tokenizer)
            except CheckpointError as error:
                raise EngineStartFailed(f"engine {table.name}: {error}") from error
        return self._tokenizers[table.tokenizer]

    def _serve(
        self, name: str, engine: Engine, tokenizer: PromptTokenizer, window: int | None, vocabulary: int | None
    ) -> None:
        """The engine runs the model of that name. Raises EngineStartFailed if those that do so already are given other
        prompts."""
        known = next((model for model in self.models if model.id == name), None)
        if known is None:
            try:
                prompts = PromptBuilder(tokenizer, window)
            except TemplateRefused as error:
                raise EngineStartFailed(f"the chat template of {name} cannot be read: {error}") from error
            self.models.append(ServedModel(name, window, vocabulary, tokenizer, prompts))
        elif not _same(known.tokenizer, tokenizer):
            raise EngineStartFailed(
                f"engine {engine.name} serves {name} as another engine does, and is given other prompts: give both the "
                "same tokenizer (`tokenizer`, in a table of the settings), or one of the two models another name"
            )
        self._pool.add(name, engine)

    def _check_names(self) -> None:
        """Raises EngineStartFailed if aliases and fallbacks do not fit to what is served."""
        served = {model.id for model in self.models}
        aliases, fallbacks = self._settings.aliases(), self._settings.fallbacks()
        for alias, model in aliases.items():
            if alias in served or model not in served:
                problem = "is a model already" if alias in served else f"stands for {model}, which nobody serves"
                raise EngineStartFailed(f"the alias {alias} {problem}; served: {_some(sorted(served))}")
        for model in {*fallbacks, *(other for others in fallbacks.values() for other in others)}:
            if model not in served:
                raise EngineStartFailed(f"fallback names {model}, which nobody serves; served: {_some(sorted(served))}")

    async def close(self) -> None:
        """Ends what is ours, and the connections to what is not."""
        await asyncio.gather(
            *(engine.close() for engine in self._linked), *(upstream.close() for _, upstream in self._servers)
        )

    def __str__(self) -> str:
        """What is served, and on what."""
        parts = []
        by_model: dict[str, list[EngineInfo]] = {}
        for engine in self._linked:
            assert engine.info is not None
            by_model.setdefault(self._settings.model_name or engine.info.model, []).append(engine.info)
        for name, infos in by_model.items():
            info, several = infos[0], f"{len(infos)} engines, each " if len(infos) > 1 else ""
            parts.append(
                f"{name} ({info.parameters / 1e6:.0f}M parameters, {info.dtype}, window {info.window}) on {several}"
                f"{info.device} with {info.threads} threads, kernels: {info.kernels}, KV {info.kv_tokens} tokens,"
            )
        for table, upstream in self._servers:
            parts.append(f"{_some([model.id for model in upstream.models])} of {table.name} ({upstream.url})")
        return " and ".join(parts)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _same(one: PromptTokenizer, other: PromptTokenizer) -> bool:
    """Whether prompts are the same with both."""
    return one is other or (
        one.is_passthrough == other.is_passthrough
        and one.control == other.control
        and one.chat_template == other.chat_template
        and list(one.encode(_SAMPLE)) == list(other.encode(_SAMPLE))
    )


_SAMPLE = "The quick brown fox, 1234567890; naïve café – Größe 😀\n\n\tdef f(x): return x**2"
"""Hardly two vocabularies cut it alike."""


def engine_configs(settings: ServeSettings, gpus: int) -> list[EngineConfig]:
    """What each engine process is told. With several GPUs and none chosen, engines take turns with them."""
    devices = [settings.device]
    if settings.device == "auto" and settings.kernels in ("auto", "triton") and gpus:
        devices = [f"cuda:{at}" for at in range(gpus)]
    count = settings.engines or len(devices)
    shared = -(-count // len(devices))
    return [engine_config(settings, devices[at % len(devices)], shared) for at in range(count)]


def engine_config(settings: EngineOptions, device: str, peers: int) -> EngineConfig:
    """What one engine is told; one of `peers` on its device."""
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
        peers=peers,
        speculation=settings.speculation,
        prefix_sharing=settings.prefix_sharing,
        retention=settings.retention,
    )
