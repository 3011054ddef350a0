"""Durability: accepted work survives that the server is killed or stopped."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from bench.chaos import chaos
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness

pytestmark = pytest.mark.waits

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model that loads fast."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", window=4096)


@pytest.mark.slow
async def test_no_accepted_work_is_lost_while_engines_and_gateways_are_killed(tiny: Path, tmp_path: Path) -> None:
    # short form of `python -m bench.chaos`
    arguments = ["--model", str(tiny), "--kv-tokens", "65536"]
    report = await chaos(arguments, engine_kills=5, gateway_kills=3, clients=4, seed=7, journal=str(tmp_path / "j"))
    assert report["ready"] > 50, "the load made progress"
    assert report["retries"] > 0, "the kills had an effect"


def defer(server: GatewayHarness, output: str, max_tokens: int = 4) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": max_tokens,
        "semantic": {"output": output, "defer": True},
    }
    return httpx.post(f"{server.address}/v1/chat/completions", json=body, headers={"X-Semantic-Session": "s"})


def wait(server: GatewayHarness, name: str) -> dict[str, object]:
    return dict(httpx.get(f"{server.address}/v1/sessions/s/variables/{name}?wait=true", timeout=30).json())


def test_a_restarted_server_continues_its_sessions(tiny: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(tiny), "--journal", str(tmp_path / "j"), "--drain", "0")
    with GatewayHarness(*arguments) as server:
        assert defer(server, "long", 2000).status_code == 200
        assert httpx.put(f"{server.address}/v1/sessions/s/variables/x", json={"value": "kept"}).status_code == 200
        assert server.stop() == 0
    with GatewayHarness(*arguments) as server:
        assert wait(server, "x")["value"] == "kept"
        assert wait(server, "long")["state"] == "ready"


def respond(server: GatewayHarness, **body: object) -> dict[str, Any]:
    fields = {"model": "tiny", "input": "Hi", "max_output_tokens": 4, "temperature": 0, "ignore_eos": True, **body}
    response = httpx.post(f"{server.address}/v1/responses", json=fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def response(server: GatewayHarness, id: str) -> dict[str, Any]:
    """Return a response once it has ended."""
    while True:
        result = httpx.get(f"{server.address}/v1/responses/{id}").json()
        if result["status"] not in ("queued", "in_progress"):
            return dict(result)
        time.sleep(0.02)


def test_responses_survive_a_restart(tiny: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(tiny), "--journal", str(tmp_path / "j"))
    with GatewayHarness(*arguments) as server:
        first = respond(server)
        second = respond(server, previous_response_id=first["id"])
        begun = [respond(server, background=True, max_output_tokens=tokens) for tokens in (4, 2000)]
        assert response(server, begun[0]["id"])["status"] == "incomplete"
        shown = respond(server, background=True, max_output_tokens=2000, temperature=1)
        with httpx.stream("GET", f"{server.address}/v1/responses/{shown['id']}?stream=true") as stream:
            next(line for line in stream.iter_lines() if "output_text.delta" in line)
        server.process.kill()
    with GatewayHarness(*arguments) as server:
        assert httpx.get(f"{server.address}/v1/responses/{second['id']}").json() == second
        third = respond(server, previous_response_id=second["id"])
        assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        result = response(server, begun[1]["id"])
        assert (result["status"], result["usage"]["output_tokens"]) == ("incomplete", 2000)
        assert result["created_at"] == begun[1]["created_at"]
        assert respond(server, previous_response_id=result["id"])["usage"]["input_tokens"] > 2000
        lost = response(server, shown["id"])
        assert (lost["status"], lost["error"]["type"]) == ("failed", "interrupted"), (
            "another run would give another answer"
        )
        with httpx.stream(
            "GET", f"{server.address}/v1/responses/{result['id']}?stream=true&starting_after=7"
        ) as stream:
            name, data, *nothing = stream.read().decode().split("\n")
        assert (name, json.loads(data.removeprefix("data: "))["sequence_number"]) == ("event: response.incomplete", 8)
        assert nothing == ["", ""]
        assert httpx.get(f"{server.address}/v1/sessions").json()["data"] == []


def test_a_background_response_continues_after_a_restart(tiny: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(tiny), "--journal", str(tmp_path / "j"), "--drain", "0")
    with GatewayHarness(*arguments) as server:
        begun = respond(server, background=True, max_output_tokens=2000)
        assert server.stop() == 0
    with GatewayHarness(*arguments) as server:
        assert response(server, begun["id"])["usage"]["output_tokens"] == 2000


def test_a_full_disk_is_reported_and_no_accepted_work_is_lost(tiny: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(tiny), "--journal", str(tmp_path / "j"))
    with GatewayHarness(*arguments) as server:
        assert defer(server, "before").status_code == 200
        assert wait(server, "before")["state"] == "ready"
        process = psutil.Process(server.process.pid)
        limit = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (8192, limit[1]))  # its files cannot grow, as on a full disk
        refusal = defer(server, "refused")
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "journal_failed")
        assert "Retry-After" in refusal.headers
        unkept = respond(server)
        assert (unkept["status"], unkept["store"]) == ("incomplete", False), "the client gets the answer nevertheless"
        body = {"model": "tiny", "input": "Hi", "background": True}
        refusal = httpx.post(f"{server.address}/v1/responses", json=body)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "journal_failed")
        plain = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert httpx.post(f"{server.address}/v1/chat/completions", json=plain).status_code == 200
        process.rlimit(psutil.RLIMIT_FSIZE, limit)
        for _ in range(100):
            again = defer(server, "after")
            if again.status_code == 200:
                break
            time.sleep(0.1)
        assert again.status_code == 200, again.text
        assert wait(server, "after")["state"] == "ready"
        assert any("journal" in line and "cannot be written" in line for line in server.log)
        server.process.kill()
    with GatewayHarness(*arguments) as server:
        assert wait(server, "before")["state"] == wait(server, "after")["state"] == "ready"


def test_an_unusable_journal_stops_the_start_with_a_one_line_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"no database, and long enough to be one " * 50)
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--model", str(tiny)]
    ended = subprocess.run([*command, "--journal", str(tmp_path / "j")], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("myna: the journal")
    assert "damaged" in line


def test_a_journal_of_an_older_version_is_read(tmp_path: Path) -> None:
    """`tests/data/journal-2026-11.sqlite.gz` was written before the redesign of that month, by a server that was killed."""
    journal = tmp_path / "j"
    journal.write_bytes(gzip.decompress((DATA / "journal-2026-11.sqlite.gz").read_bytes()))
    values = {
        "topic": "bees",
        "fact": "One fact about bees is that they are",
        "quoted": "“bees”",
        "one": "1, ",
        "two": "2, another",
        "colours": "One is 1, , another is 2, another.",
    }
    with GatewayHarness("--kv-tokens", "8192", "--journal", str(journal), "--response-ttl", "1e9") as server:
        session = f"{server.address}/v1/sessions/before"
        assert httpx.get(session).json()["metadata"] == {"k": "v"}
        for name, value in values.items():
            assert httpx.get(f"{session}/variables/{name}").json()["value"] == value
        assert httpx.get(f"{session}/variables/gone").status_code == 404
        assert httpx.put(f"{session}/variables/gone", json={"value": "2"}).status_code == 409, "its value was readable"
        assert httpx.get(f"{session}/variables/last").json()["state"] == "pending"
        assert httpx.put(f"{session}/variables/x", json={"value": "now"}).status_code == 200
        assert httpx.get(f"{session}/variables/last?wait=true", timeout=30).json()["state"] == "ready"
        response = httpx.get(f"{server.address}/v1/responses/resp_40f4656f6c17ce011ad79067").json()
        assert response["output"][0]["content"][0]["text"] == "The river that I'm referring"
