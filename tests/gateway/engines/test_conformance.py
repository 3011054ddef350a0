"""gateway/engines/protocol.py: what the protocol requires, tested with every kind of engine."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig, default_cache
from engine.models.fetch import checkpoint_folder
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.engines.local.client import EngineClient
from gateway.engines.local.subprocess import SubprocessEngine
from gateway.engines.local.tcp import TcpEngine
from gateway.engines.openai import OpenAIEngine, Upstream
from gateway.engines.openai import UpstreamConfig as Elsewhere
from gateway.engines.protocol import (
    ContextEvent,
    ContextRefused,
    Engine,
    PrefillResult,
    TokenCounts,
    TokenDelta,
    Urgency,
)
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.engine_harness import EngineHarness
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.llama_server import LlamaServer
from tests.fakes.process_harness import ProcessHarness
from tests.fakes.prompt_contents import content_of_text
from tests.gateway.engines.generation import LONG, URGENT, read_events, stream_events, text

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.0)
VLLM = os.environ.get("MYNA_TEST_VLLM", "")
"""Address of a vLLM server whose model has a window of at least 512 tokens, and that reports and caches
short prompts (`--enable-prompt-tokens-details --block-size 32`)."""
VLLM_TOKENIZER = os.environ.get("MYNA_TEST_VLLM_TOKENIZER", "")
"""Folder with that model's tokenizer."""


@dataclass
class Subject:
    """An engine and its properties. `exact`: it receives tokens. `salted`: its scopes share no
    cache. `window` is in tokens. `repeats`: its text does not depend on concurrent contexts."""

    engine: Engine
    exact: bool = True
    salted: bool = True
    window: int = 512
    repeats: bool = True

    def prompt(self, numbers: Sequence[int]) -> Sequence[int] | str:
        """Return a prompt of these numbers: tokens, or words if the engine receives text."""
        return numbers if self.engine.tokens_per_unit == 1 else " ".join(f"w{number}" for number in numbers)


class Subjects:
    """Factory of the engines. The stack stops what they need."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack

    async def local_engine(self) -> Subject:
        config = EngineConfig(model=str(write_tiny_llama(self._folder, window=512)), kv_tokens=2048)
        engine = SubprocessEngine("embedded", config, lambda: None)
        await engine.start()
        self._stack.push_async_callback(engine.close)
        return Subject(engine)

    async def _tiny(self, kind: Callable[..., ProcessHarness], *more: str) -> ProcessHarness:
        options = ("--model", str(write_tiny_llama(self._folder, window=512)), "--kv-tokens", "2048", *more)
        return self._stack.enter_context(await asyncio.to_thread(kind, *options))

    async def tcp(self) -> Subject:
        listening = await self._tiny(EngineHarness)
        assert isinstance(listening, EngineHarness)
        engine = TcpEngine("called", "127.0.0.1", listening.port, listening.TOKEN, lambda: None)
        await engine.start()
        self._stack.push_async_callback(engine.close)
        return Subject(engine)

    async def _server(self, kind: str, url: str, tokenizer: Path | None = None) -> OpenAIEngine:
        upstream = Upstream(Elsewhere("there", kind, url, timeout=60.0), lambda: None)
        await upstream.start()
        self._stack.push_async_callback(upstream.close)
        return OpenAIEngine("there", upstream, upstream.models[0].id, tokenizer and Tokenizer(tokenizer))

    async def myna(self) -> Subject:
        return Subject(await self._server("myna", (await self._tiny(GatewayHarness)).address), exact=False)

    async def myna_with_tokens(self) -> Subject:
        return Subject(await self._server("myna", (await self._tiny(GatewayHarness)).address, self._folder))

    async def _llama(self) -> str:
        config = EngineConfig()
        self._checkpoint = await asyncio.to_thread(
            checkpoint_folder, config.model, Path(default_cache()), torch.bfloat16
        )
        (file,) = (Path(default_cache()) / "models").glob("*.gguf")
        return self._stack.enter_context(await asyncio.to_thread(LlamaServer, str(file))).address

    async def llama(self) -> Subject:
        return Subject(await self._server("llamacpp", await self._llama()), False, False, 8192, repeats=False)

    async def llama_with_tokens(self) -> Subject:
        engine = await self._server("llamacpp", await self._llama(), self._checkpoint)
        return Subject(engine, True, False, 8192, repeats=False)

    async def vllm(self) -> Subject:
        if not VLLM:
            pytest.skip("MYNA_TEST_VLLM names no vLLM")
        engine = await self._server("vllm", VLLM)
        return Subject(engine, False, window=engine.upstream.models[0].window or 2**20, repeats=False)

    async def vllm_with_tokens(self) -> Subject:
        if not VLLM or not VLLM_TOKENIZER:
            pytest.skip("MYNA_TEST_VLLM names no vLLM, or MYNA_TEST_VLLM_TOKENIZER no folder")
        engine = await self._server("vllm", VLLM, Path(VLLM_TOKENIZER))
        return Subject(engine, window=engine.upstream.models[0].window or 2**20, repeats=False)


KINDS = [
    pytest.param(Subjects.local_engine, id="embedded"),
    pytest.param(Subjects.tcp, id="over TCP"),
    pytest.param(Subjects.myna, id="myna's API"),
    pytest.param(Subjects.myna_with_tokens, id="myna's API, tokens"),
    pytest.param(Subjects.llama, id="llama.cpp"),
    pytest.param(Subjects.llama_with_tokens, id="llama.cpp, tokens"),
    pytest.param(Subjects.vllm, id="vLLM", marks=pytest.mark.vllm),
    pytest.param(Subjects.vllm_with_tokens, id="vLLM, tokens", marks=pytest.mark.vllm),
]


@pytest.fixture(scope="module", params=KINDS)
async def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        yield await request.param(Subjects(tmp_path_factory.mktemp("tiny"), stack))


async def ask(
    subject: Subject, sampling: SamplingParams, numbers: Sequence[int] = (1, 2, 3), count: int = 10**9
) -> list[ContextEvent]:
    return await read_events(subject.engine, sampling, count, subject.prompt(numbers))


def cached(events: Sequence[ContextEvent]) -> int:
    """Return the number of cached prompt tokens, as reported."""
    return max(event.cached for event in events if isinstance(event, PrefillResult | TokenCounts))


def deltas(events: Sequence[ContextEvent]) -> list[TokenDelta]:
    return [event for event in events if isinstance(event, TokenDelta)]


async def test_a_context_is_filled_and_generates(subject: Subject) -> None:
    filled, *events = await ask(subject, SamplingParams(max_tokens=5, ignore_eos=True))
    assert isinstance(filled, PrefillResult)
    counts = [event for event in events if isinstance(event, TokenCounts)]
    if subject.exact:
        assert filled.tokens == 3
        assert all(count.prompt in (3, 4) for count in counts), "a server may prepend its own token"
    finishes = [delta.finish for delta in deltas(events)]
    assert finishes == [None] * (len(finishes) - 1) + ["length"]
    assert all(count.completion == 5 for count in counts)
    assert counts or sum(delta.piece.tokens for delta in deltas(events)) == 5
    assert subject.engine.load == 0


async def test_a_prompt_that_was_filled_before_is_cached(subject: Subject) -> None:
    numbers = [7 + index % 200 for index in range(40)]
    first, again = [await ask(subject, GREEDY, numbers) for _ in range(2)]
    assert cached(first) < 16
    assert cached(again) >= 32
    assert text(first) == text(again)


async def test_scopes_share_no_cache(subject: Subject) -> None:
    if not subject.salted:
        pytest.skip("llama.cpp does not separate caches")
    tokens = subject.prompt([9 + index % 190 for index in range(40)])
    found = []
    for scope in ("a", "b", "a"):
        context = subject.engine.open(scope, URGENT)
        context.fill(tokens)
        found.append(cached([event async for event in stream_events(context, GREEDY)]))
        context.free()
    assert found[:2] == [0, 0]
    assert found[2] >= 32


async def test_filling_in_pieces_equals_filling_at_once(subject: Subject) -> None:
    tokens = subject.prompt([11 + index % 180 for index in range(50)])
    whole = await read_events(subject.engine, GREEDY, tokens=tokens)
    context = subject.engine.open("", URGENT)
    for part in (tokens[:1], tokens[1:30], tokens[:0], tokens[30:]):
        context.fill(part)
    pieces = [event async for event in stream_events(context, GREEDY)]
    assert text(pieces) == text(whole)
    context.fill(subject.prompt([5, 6]))
    more = [event async for event in stream_events(context, GREEDY)]
    assert deltas(more)[-1].finish == "length", "generated text stays in the context"
    context.free()
    all_tokens: Any = [tokens, await content_of_text(subject.engine, text(whole)), subject.prompt([5, 6])]
    all_tokens = "".join(all_tokens) if isinstance(tokens, str) else [token for part in all_tokens for token in part]
    if not subject.exact:  # splitting a text does not change its characters, but may change its tokens
        assert text(more) == text(await read_events(subject.engine, GREEDY, tokens=all_tokens))
    counts = [event for event in more if isinstance(event, TokenCounts)]
    assert all(count.completion == 24 for count in counts), "of both generations"


async def test_a_stop_string_ends_the_text_and_is_not_part_of_it(subject: Subject) -> None:
    whole = text(await ask(subject, GREEDY))
    stop = whole[4:6]
    events = await ask(subject, SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.0, stop=(stop,)))
    assert text(events) == whole[: whole.index(stop)]
    assert deltas(events)[-1].finish == "stop"
    reported = deltas(events)[-1].stop_string
    assert reported in (stop, None), "not every server reports it"
    assert reported == stop or isinstance(subject.engine, OpenAIEngine)


async def test_log_probabilities_are_reported(subject: Subject) -> None:
    events = await ask(subject, SamplingParams(max_tokens=3, ignore_eos=True, logprobs=True, top_logprobs=2))
    entries = [entry for delta in deltas(events) for entry in delta.piece.logprobs]
    assert len(entries) == 3


async def test_an_error_of_the_callback_is_raised_and_affects_no_other_context(subject: Subject) -> None:
    def raise_error(event: ContextEvent) -> None:
        if isinstance(event, TokenDelta):
            raise ValueError("test error")

    context = subject.engine.open("", URGENT)
    context.fill(subject.prompt([5, 6, 7]))
    with pytest.raises(ValueError, match=r"^test error$"):
        await context.generate(GREEDY, raise_error)
    context.free()
    assert await ask(subject, SamplingParams(max_tokens=1)), "other contexts share the connection and the server"


@pytest.mark.parametrize("later", [0.0, 0.3])
async def test_a_refusal_is_raised_by_generate(subject: Subject, later: float) -> None:
    context = subject.engine.open("", URGENT)
    context.fill(subject.prompt([1] * (subject.window + 90)))
    await asyncio.sleep(later)  # the refusal may have arrived in the meantime
    with pytest.raises(ContextRefused) as refusal:
        await anext(stream_events(context, SamplingParams()))
    assert refusal.value.code == "context_length_exceeded"
    context.free()
    assert await ask(subject, SamplingParams(max_tokens=1)), "other contexts are not affected"


async def test_an_invalid_token_is_refused(subject: Subject) -> None:
    if isinstance(subject.engine, OpenAIEngine) and subject.engine.upstream.config.kind == "llamacpp":
        pytest.skip("llama.cpp accepts any token")
    with pytest.raises(ContextRefused) as refusal:
        await ask(subject, SamplingParams(logit_bias={99_999: 1.0}))
    assert refusal.value.code in ("bad_token", "engine_refused")


async def test_freeing_a_context_aborts_its_generation(subject: Subject) -> None:
    await ask(subject, LONG, count=3)
    # if the freed context continued, this would wait for its 400 tokens
    events = await ask(subject, SamplingParams(max_tokens=2, ignore_eos=True))
    assert deltas(events)[-1].finish == "length"
    assert subject.engine.load == 0


async def test_a_freed_context_can_be_expected_to_continue(subject: Subject) -> None:
    context = subject.engine.open("", URGENT)
    context.retain([1.0])
    numbers = [30 + index for index in range(40)]
    context.fill(subject.prompt(numbers))
    answer = text([event async for event in stream_events(context, GREEDY)])
    context.free()
    for returns in ([2.0, 3.0], [], [float("nan"), -1.0]):
        context.retain(returns)
    events = await ask(subject, GREEDY, numbers)
    assert deltas(events)[-1].finish == "length"
    if subject.repeats:
        assert text(events) == answer
    assert subject.engine.load == 0


@pytest.mark.slow
async def test_concurrent_contexts_get_the_same_text_as_single_ones(subject: Subject) -> None:
    prompts = [[20 + index, 21, 22 + index] for index in range(12)]
    alone = [text(await ask(subject, GREEDY, numbers)) for numbers in prompts]
    together = await asyncio.gather(*(ask(subject, GREEDY, numbers) for numbers in prompts))
    if subject.repeats:
        assert [text(events) for events in together] == alone
    assert all(deltas(events)[-1].finish == "length" for events in together)
    assert len(set(alone)) > 6


async def test_the_urgency_can_be_changed(subject: Subject) -> None:
    context = subject.engine.open("", URGENT)
    context.fill(subject.prompt([1, 2]))
    context.rerank(Urgency(5.0, interactive=False))
    events = [event async for event in stream_events(context, GREEDY)]
    assert deltas(events)[-1].finish == "length"
    context.free()
    context.free()
    assert subject.engine.load == 0


async def test_the_pace_is_reported(subject: Subject) -> None:
    await ask(subject, GREEDY)
    step_times = subject.engine.step_times
    if isinstance(subject.engine, OpenAIEngine):
        assert step_times is None, "no server reports it"
        return
    assert step_times is not None
    assert 0 < step_times.row_seconds < 1
    assert 0 < step_times.step_seconds < 10


async def test_values_are_encoded_as_text(subject: Subject) -> None:
    engine = subject.engine
    tokens = await content_of_text(engine, "</s>")
    assert len(tokens) >= 3, "it is no control token"
    run = engine.open_text(adds_space=False)
    pieces: list[Any] = [await run.push(text) for text in ("some text", " that gr", "ows and gro", "ws")]
    pieces.append(await run.finish())
    assert [unit for piece in pieces for unit in piece] == list(
        await content_of_text(engine, "some text that grows and grows")
    )


async def test_a_value_longer_than_the_window_is_refused(subject: Subject) -> None:
    engine = subject.engine
    if not isinstance(engine, EngineClient):
        assert len(await content_of_text(engine, "x y " * 2000)) >= 2000, "only the upstream server knows its window"
        return
    assert engine.info is not None
    for value in ("x y " * 2000, "x" * 3000, " " * 200_000, "\U0001f600" * 2_000_000):
        with pytest.raises(ContextRefused) as refusal:
            await content_of_text(engine, value)
        assert refusal.value.code == "context_length_exceeded"
