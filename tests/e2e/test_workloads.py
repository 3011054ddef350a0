"""The workloads of the examples: every application does the same in every mode."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from bench.workloads import Result, Way, main, mixed_once, table, timeline
from examples.workloads.apps import WORKLOADS
from examples.workloads.client import MODES, App, RequestFailed
from examples.workloads.texts import Texts
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import MODEL, GatewayHarness


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a server with a random model whose tokens are bytes."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", window=16384)
    with GatewayHarness("--model", str(folder), "--kv-tokens", "131072") as server:
        yield f"{server.address}/v1"


@pytest.mark.parametrize("name", WORKLOADS)
async def test_every_application_does_the_same_in_every_mode(tiny: str, name: str) -> None:
    calls = {}
    async with aiohttp.ClientSession() as http:
        for mode in MODES:
            app = App(http, tiny, "tiny", mode)
            await WORKLOADS[name](app, Texts(1, scale=0.1))
            await app.close()
            calls[mode] = sorted(span.name.replace(" ", "_").replace(".", "_") for span in app.spans)
            assert all(span.begin <= (span.first or span.begin) <= span.end for span in app.spans)
        async with http.get(f"{tiny}/sessions") as response:
            assert (await response.json())["data"] == [], "the sessions were deleted"
    semantic = [sorted(span.rpartition("_")[0] for span in calls[mode]) for mode in MODES[1:]]
    assert semantic == [calls["client"]] * 2, "the same calls"


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("name", ["chain", "thoughts"])
async def test_every_answer_has_the_same_text_in_every_mode(server: GatewayHarness, name: str) -> None:
    answers = []
    async with aiohttp.ClientSession() as http:
        for mode in MODES:
            app = App(http, f"{server.address}/v1", MODEL, mode)
            await WORKLOADS[name](app, Texts(7, scale=0.05))
            await app.close()
            answers.append(app.answers)
    assert len(answers[0]) > 7
    assert answers[0] == answers[1] == answers[2]


async def test_a_reference_equals_the_text_that_a_client_would_paste(tiny: str) -> None:
    found = []
    async with aiohttp.ClientSession() as http:
        for mode in MODES:
            app = App(http, tiny, "tiny", mode)
            first = await app.ask("Begin.", 8)
            second = await app.ask([{"role": "user", "content": "Go on."}, {"role": "user", "content": first}], 8)
            found.append(await app.texts(first, second))
            await app.close()
    assert found[1] == found[2]
    assert found[0][0] == found[1][0]


async def test_the_mixed_load_is_reported(tiny: str) -> None:
    async with aiohttp.ClientSession() as http:
        for mode in ("client", "graph"):
            seconds, chats = await mixed_once(http, Way(mode, tiny, "tiny", mode), 1, 0.0, ["chain", "react"], 0.5)
            assert len(seconds) == 2
            assert chats
        app = App(http, tiny, "tiny", "graph")
        await WORKLOADS["chain"](app, Texts(2, scale=0.1))
        await app.close()
    found = {"chain": {"client": Result([2.0, 3.0, 2.5]), "graph": Result([1.0], app.spans, 7, 8)}}
    assert table(found).splitlines()[-1] == "| chain | 2.50 s | 1.00 s | 2.50 | 7 of 8 |"
    drawn = timeline(found)
    assert drawn.count('class="run"') == 8
    assert "chain, graph: 1.00 s" in drawn


def test_the_command_prints_a_table_and_draws_a_timeline(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "calls.svg"
    words = f"bench.workloads --base-url {tiny} --only chain --runs 1 --modes client graph --svg {drawing}"
    monkeypatch.setattr(sys, "argv", words.split())
    main()
    row = r"^\| chain \| \d+\.\d\d s \| \d+\.\d\d s \| \d+\.\d\d \| 8 of 8 \|$"
    assert re.search(row, capsys.readouterr().out, re.MULTILINE)
    assert drawing.read_text().startswith("<svg")


async def test_an_error_of_the_server_is_in_the_message(tiny: str) -> None:
    async with aiohttp.ClientSession() as http:
        with pytest.raises(RequestFailed, match="no_such_model"):
            await App(http, tiny, "no_such_model").ask("Hi", 1)


@pytest.mark.parametrize("mode", MODES)
async def test_modes_do_not_share_the_cache(tiny: str, mode: str) -> None:
    prompt = f"{mode}: {Texts(7, scale=0.2).chunk(0, 500)}"
    async with aiohttp.ClientSession() as http:
        app = App(http, tiny, "tiny", mode, salt=f"{mode}'s")
        await app.ask(prompt, 1, needs_text=True)
        await app.close()
        cached = {}
        for salt in ("another's", f"{mode}'s"):
            body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
            async with http.post(f"{tiny}/chat/completions", json={**body, "cache_salt": salt}) as response:
                cached[salt] = (await response.json())["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached["another's"] == 0
    assert cached[f"{mode}'s"] > 100
