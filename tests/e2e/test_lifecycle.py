"""Start, stop, crashes and API keys."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import psutil
import pytest

from gateway.simulator.simulation import Scenario, simulate
from gateway.simulator.trace import read_applications
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness

pytestmark = pytest.mark.waits

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
LONG: Any = {"max_tokens": 20_000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model that loads fast and has a long context window."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", window=32_768)


@pytest.fixture
def small(tiny: Path) -> Iterator[GatewayHarness]:
    with GatewayHarness("--model", str(tiny), "--kv-tokens", "65536") as server:
        yield server


def gone(process: psutil.Process) -> bool:
    try:
        process.wait(10)
    except psutil.TimeoutExpired:
        return False
    return True


def start_long_answer(server: GatewayHarness, **options: Any) -> tuple[threading.Thread, list[Any]]:
    """Start a thread that reads a long answer. Return it, and a list that receives the chunks or the error."""
    got: list[Any] = []

    def read() -> None:
        try:
            stream = server.client().chat.completions.create(
                model="tiny", messages=MESSAGES, stream=True, **{**LONG, **options}
            )
            got.extend(stream)
        except openai.APIError as error:
            got.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    deadline = time.monotonic() + 20
    while len(got) < 3 and time.monotonic() < deadline:
        # the list is extended as the stream is read
        threading.Event().wait(0.01)
    return thread, got


def test_the_start_line_shows_the_chosen_configuration(small: GatewayHarness) -> None:
    assert re.fullmatch(
        r"myna serves tiny \(\d+M parameters, bfloat16, window 32768\) on cpu with \d+ threads, "
        r"kernels: \S.*, KV 65536 tokens, at http://127\.0\.0\.1:\d+/v1 \(ready in [\d.]+ s\)\n",
        small.started,
    )
    assert httpx.get(f"{small.address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{small.address}/health/ready").json() == {"status": "ready"}


def test_the_address_of_the_live_page_is_printed_and_works(small: GatewayHarness) -> None:
    assert small.process.stdout is not None
    assert small.process.stdout.readline() == f"the live page is at {small.address}/ui\n"
    page = httpx.get(f"{small.address}/ui")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert httpx.get(f"{small.address}/v1/status").json()["engines"][0]["kv_blocks"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_running_answers_finish_before_the_server_stops(small: GatewayHarness, number: signal.Signals) -> None:
    engines = small.engine_processes()
    thread, got = start_long_answer(small, max_tokens=600)
    small.process.send_signal(number)
    thread.join(30)
    assert got[-1].choices[0].finish_reason == "length", "the answer is complete"
    assert small.wait(20) == 0
    assert all(gone(engine) for engine in engines)


def test_a_stopping_server_refuses_new_work_and_stops_in_time(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--kv-tokens", "65536", "--drain", "2") as server:
        engines = server.engine_processes()
        thread, got = start_long_answer(server)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 2
        refused = None
        while refused is None and time.monotonic() < deadline:
            try:
                server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
            except openai.InternalServerError as error:
                refused = error
        assert refused is not None
        assert (refused.status_code, refused.code) == (503, "stopping")
        ready = httpx.get(f"{server.address}/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
        assert httpx.get(f"{server.address}/health").status_code == 200
        assert server.wait(15) == 0
        thread.join(10)
        assert isinstance(got[-1], openai.APIError)
        assert all(gone(engine) for engine in engines)


def test_a_hanging_thread_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    # the interpreter waits for the thread at its exit, for example for one that waits for a broken disk
    script = """
import sys, threading, time
from gateway.server.shutdown import force_exit_after
threading.Thread(target=time.sleep, args=(60,)).start()
force_exit_after(0.2)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=40)
    assert ended.returncode == 1
    assert "the shutdown did not complete within 0.2 s; exiting now" in ended.stderr
    assert "in sleep" in ended.stderr or "File" in ended.stderr, "the log shows where it hangs"


def test_the_metrics_show_how_many_kv_blocks_requests_hold(small: GatewayHarness) -> None:
    def blocks(name: str) -> float:
        text = httpx.get(f"{small.address}/metrics").text
        (value,) = re.findall(rf"^{name}\{{engine=\"[^\"]+\"\}} (\S+)$", text, re.MULTILINE)
        return float(value)

    assert blocks("myna_kv_blocks") == 65536 / 16
    stream = small.client().chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **LONG)
    next(iter(stream))
    deadline = time.monotonic() + 30
    while not blocks("myna_kv_blocks_in_use"):
        assert time.monotonic() < deadline
    stream.close()
    while blocks("myna_kv_blocks_in_use"):
        assert time.monotonic() < deadline


def test_no_engine_outlives_a_killed_gateway(small: GatewayHarness) -> None:
    engines = small.engine_processes()
    assert len(engines) == 1
    thread, _ = start_long_answer(small)
    small.process.kill()
    assert all(gone(engine) for engine in engines)
    thread.join(10)


def test_a_dead_engine_is_restarted_and_its_calls_run_again(small: GatewayHarness) -> None:
    # a call whose tokens were sent to a client fails; other calls run again, with the same answer
    (engine,) = small.engine_processes()
    exact: Any = {"max_tokens": 2500, "temperature": 0, "extra_body": {"ignore_eos": True}}
    wanted = small.client().chat.completions.create(model="tiny", messages=MESSAGES, **exact)
    thread, got = start_long_answer(small)
    answers: list[Any] = []

    def wait_whole() -> None:
        answers.append(small.client().chat.completions.create(model="tiny", messages=MESSAGES, **exact))

    whole = threading.Thread(target=wait_whole)
    whole.start()
    threading.Event().wait(0.3)
    os.kill(engine.pid, signal.SIGKILL)
    thread.join(30)
    whole.join(30)
    assert "was lost while it worked" in str(got[-1]), "a stream that has started ends with an error event"
    assert answers[0].choices[0].message.content == wanted.choices[0].message.content
    assert answers[0].usage.completion_tokens == wanted.usage.completion_tokens
    assert small.process.poll() is None
    assert small.engine_processes()[0].pid != engine.pid
    assert any("trying again in" in line for line in small.log)
    assert any("gets another attempt" in line for line in small.log)


def test_another_engine_runs_the_calls_of_a_dead_one(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--kv-tokens", "65536", "--engines", "2") as server:
        assert "on 2 engines, each cpu with" in server.started
        first, second = server.engine_processes()
        names = [f"v{index}" for index in range(12)]
        for name in names:
            server.client().chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": f"Tell {name}"}],
                max_tokens=1500,
                extra_headers={"X-Semantic-Session": "s"},
                extra_body={"ignore_eos": True, "semantic": {"output": name, "defer": True}},
            )

        def graph() -> list[dict[str, Any]]:
            calls: list[dict[str, Any]] = httpx.get(f"{server.address}/v1/sessions/s/graph").json()["calls"]
            return calls

        assert {call["engine"] for call in graph()} == {"embedded-0", "embedded-1"}
        first.kill()
        deadline = time.monotonic() + 60
        while not all(call["state"] == "done" for call in graph()) and time.monotonic() < deadline:
            threading.Event().wait(0.1)
        assert {call["state"] for call in graph()} == {"done"}
        assert second.is_running(), "the other engine was not affected"


def test_a_hanging_engine_is_replaced_and_its_calls_run_again(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--engine-timeout", "1.5") as server:
        (engine,) = server.engine_processes()
        engine.suspend()
        answer = server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert not engine.is_running()
        assert any("has been silent for" in line for line in server.log)


def test_an_idle_engine_is_not_replaced(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--engine-timeout", "0.4") as server:
        (engine,) = server.engine_processes()
        for _ in range(3):
            server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
            threading.Event().wait(1.0)
        assert engine.is_running()


def test_calls_are_recorded_without_their_texts(tiny: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    with GatewayHarness("--model", str(tiny), "--record", str(trace), "--journal", "memory") as server:
        graph = {
            "calls": [
                {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, "semantic": {"output": "first"}},
                {
                    "model": "tiny",
                    "messages": [{"role": "user", "content": "Confidential: <<first>>"}],
                    "max_tokens": 7,
                    "semantic": {"output": "second"},
                    "ignore_eos": True,
                },
            ],
            "outputs": ["second"],
        }
        assert httpx.post(f"{server.address}/v1/graphs", json=graph).status_code == 200
        server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3)
    text = trace.read_text()
    assert len(text.splitlines()) == 3
    assert "onfidential" not in text
    (session, request), _ = read_applications(trace)
    assert [(spec.output, len(spec.slots)) for step in session.steps for spec in step.calls] == [
        ("first", 1),
        ("second", 1),
    ]
    assert [step.awaited for step in session.steps] == [["second"]]
    assert request.kind == "request"
    (outcome,) = simulate(Scenario(trace=trace), ["myna"])
    assert outcome.calls == 3
    with pytest.raises(RuntimeError, match=r"cannot write .*Is a directory"):
        GatewayHarness("--model", str(tiny), "--record", str(tmp_path))


def test_keys_are_required_and_isolate_sessions(tiny: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("second\n")
    with GatewayHarness("--model", str(tiny), "--api-key", "first", "--api-key-file", str(keys)) as server:
        for wrong in ("none", "first2"):
            with pytest.raises(openai.AuthenticationError):
                server.client(api_key=wrong).models.list()
        assert httpx.get(f"{server.address}/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.address}/health").status_code == 200

        def cached(key: str) -> int:
            messages: Any = [{"role": "user", "content": "The same words for everybody. " * 8}]
            answer = server.client(api_key=key).chat.completions.create(model="tiny", messages=messages, max_tokens=1)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            return answer.usage.prompt_tokens_details.cached_tokens or 0

        assert cached("first") == 0
        assert cached("first") > 0
        assert cached("second") == 0, "another key shares no KV"

        def status(key: str, method: str, path: str, body: Any = None) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.request(method, f"{server.address}/v1{path}", headers=headers, json=body).status_code

        server.client(api_key="first", default_headers={"X-Semantic-Session": "mine"}).chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=1
        )
        chat = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1, "semantic": {"session": "mine"}}
        routes: list[tuple[str, str, Any]] = [
            ("GET", "/sessions/mine", None),
            ("GET", "/sessions/mine/graph", None),
            ("PUT", "/sessions/mine/variables/x", {"value": "x"}),
            ("GET", "/sessions/mine/variables", None),
            ("GET", "/sessions/mine/variables/x", None),
            ("POST", "/chat/completions", chat),
            ("POST", "/completions", {"model": "tiny", "prompt": "Hi", "semantic": {"session": "mine"}}),
            ("POST", "/graphs", {"session": "mine"}),
            ("DELETE", "/sessions/mine/variables/x", None),
            ("DELETE", "/sessions/mine", None),
        ]
        for method, path, body in routes:
            assert status("second", method, path, body) == 404, (method, path)
        assert status("second", "GET", "/sessions/mine/events") == 404
        for method, path, body in routes:
            assert status("first", method, path, body) == 200, (method, path)


def test_the_number_of_unfinished_calls_is_limited(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--max-calls", "1", "--kv-tokens", "65536") as server:
        begun, fresh = (server.client(default_headers={"X-Semantic-Session": name}) for name in ("begun", "fresh"))
        begun.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
        thread, got = start_long_answer(server, max_tokens=3000)
        with pytest.raises(openai.RateLimitError) as refusal:
            server.client().chat.completions.create(model="tiny", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError):
            fresh.chat.completions.create(model="tiny", messages=MESSAGES)
        assert begun.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1).choices, (
            "a session in progress may continue"
        )
        assert refusal.value.code == "overloaded"
        assert int(refusal.value.response.headers["Retry-After"]) >= 1
        thread.join(30)
        assert got[-1].choices[0].finish_reason == "length"
        assert server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1).choices


def test_sessions_expire(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--session-ttl", "0.5") as server:
        assert httpx.post(f"{server.address}/v1/sessions", json={"id": "brief"}).status_code == 201
        inside, outside = (respond(server, headers=headers) for headers in ({"X-Semantic-Session": "brief"}, {}))
        deadline = time.monotonic() + 20
        status = 200
        while status == 200 and time.monotonic() < deadline:
            threading.Event().wait(1.0)
            status = httpx.get(f"{server.address}/v1/sessions/brief").status_code
        assert status == 410
        while httpx.get(inside).status_code == 200 and time.monotonic() < deadline:
            threading.Event().wait(0.1)
        assert [httpx.get(response).status_code for response in (inside, outside)] == [404, 200]


def respond(server: GatewayHarness, **options: Any) -> str:
    """Return the path of a new response."""
    body = {"model": "tiny", "input": "Hi", "max_output_tokens": 2}
    answer = httpx.post(f"{server.address}/v1/responses", json=body, **options)
    assert answer.status_code == 200, answer.text
    return f"{server.address}/v1/responses/{answer.json()['id']}"


def test_responses_expire(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--response-ttl", "0.5") as server:
        response = respond(server)
        deadline = time.monotonic() + 20
        while httpx.get(response).status_code == 200 and time.monotonic() < deadline:
            threading.Event().wait(0.2)
        assert httpx.get(response).status_code == 404


def test_an_unavailable_model_stops_the_start_with_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"myna: .* has no config\.json"):
        GatewayHarness("--model", str(tmp_path))


def _without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _with_half_a_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:500])


def _with_half_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


def _with_a_broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")


def _with_impossible_memory(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 10**14}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_tokenizer, r"has no tokenizer\.json"),
        (_with_half_a_tokenizer, r"tokenizer\.json is not a valid tokenizer"),
        (_with_half_the_weights, r"model\.safetensors cannot be read"),
        (_with_a_broken_template, r"the chat template of broken is invalid: .*line 1"),
        (_with_impossible_memory, r"broken cannot be loaded: \w+Error: .*"),
    ],
)
def test_a_broken_model_stops_the_start_with_a_one_line_error(
    tiny: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny, folder)
    damage(folder)
    command = [sys.executable, "-m", "gateway", "serve", "--model", str(folder), "--port", "0", "--journal", "memory"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"myna: .*{message}.*\n", done.stderr), done.stderr


def test_an_ignored_hangup_does_not_stop_the_server(tiny: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does for its child processes
    try:
        with GatewayHarness("--model", str(tiny)) as server:
            server.process.send_signal(signal.SIGHUP)
            for _ in range(3):
                assert httpx.get(f"{server.address}/health/ready").status_code == 200
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_port_in_use_stops_the_start_with_a_one_line_error(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError, match="cannot listen on"):
        GatewayHarness("--model", str(tiny), "--port", str(taken.getsockname()[1]))


def test_an_idle_server_uses_no_cpu(small: GatewayHarness) -> None:
    small.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    everyone = [psutil.Process(small.process.pid), *small.engine_processes()]

    def used() -> float:
        return sum(p.cpu_times().user + p.cpu_times().system for p in everyone)

    deadline = time.monotonic() + 30
    quiet = False
    while not quiet and time.monotonic() < deadline:
        before = used()
        threading.Event().wait(2.0)
        quiet = used() - before <= 0.02  # clocks tick in hundredths
    assert quiet


async def test_the_command_works_from_any_folder(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("myna")
    arguments = [str(command), "serve", "--help"]
    done = await asyncio.to_thread(
        subprocess.run, arguments, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert "--kv-tokens" in done.stdout


def test_every_limit_of_a_session_has_a_setting_and_an_error(tiny: Path) -> None:
    settings = {"calls": 5, "variables": 5, "bytes": 30_000, "edges": 1}
    flags = [text for name, limit in settings.items() for text in (f"--max-session-{name}", str(limit))]
    flags += ["--max-key-sessions", "3", "--max-depth", "2", "--max-waiters", "1", "--max-value-bytes", "1000"]
    with GatewayHarness("--model", str(tiny), *flags) as server, httpx.Client(base_url=f"{server.address}/v1") as http:

        def defer(session: str, text: str, output: str) -> httpx.Response:
            semantic = {"session": session, "output": output, "defer": True}
            messages = [{"role": "user", "content": text}]
            return http.post(
                "/chat/completions", json={"model": "tiny", "messages": messages, "max_tokens": 1, "semantic": semantic}
            )

        def put(session: str, name: str, value: str | None) -> httpx.Response:
            return http.put(f"/sessions/{session}/variables/{name}", json={"value": value})

        def refused(response: httpx.Response, words: str, status: int = 413, code: str = "too_large") -> None:
            assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
            assert words in response.json()["error"]["message"]

        for name in "abc":
            assert http.post("/sessions", json={"id": name}).status_code == 201
        refused(http.post("/sessions", json={"id": "d"}), "this key has 3 sessions")

        assert defer("a", "Hi", "v0").status_code == 200
        assert defer("a", "<<v0>>", "v1").status_code == 200
        refused(defer("a", "<<v1>>", "v2"), "3 calls would wait for one another")
        refused(defer("a", "<<v0>>", "v2"), "read 2 inputs; the maximum is 1")
        for name in ("v2", "v3", "v4"):
            assert defer("a", "Hi", name).status_code == 200
        refused(defer("a", "Hi", "v5"), "has 5 calls")

        for index in range(5):
            assert put("b", f"v{index}", None).status_code == 200
        refused(put("b", "v5", None), "has had 5 variables")
        refused(put("b", "v0", "x" * 1001), "1001 bytes")
        assert put("b", "v0", "x" * 1000).status_code == 200
        assert put("b", "v1", "x" * 1000).status_code == 200
        refused(
            http.put("/sessions/c/variables/v0", json={"template": "x" * 30_000}), "holds 0 bytes; the maximum is 30000"
        )

        def wait_once_admitted() -> None:  # the requests of the loop below also wait, one at a time
            while http.get("/sessions/b/variables/v3?wait=true&timeout=20", timeout=30).status_code == 429:
                pass

        waiting = threading.Thread(target=wait_once_admitted)
        waiting.start()
        deadline = time.monotonic() + 30
        while (busy := http.get("/sessions/b/variables/v4?wait=true&timeout=0.05")).status_code == 504:
            assert time.monotonic() < deadline
        refused(busy, "1 requests wait", 429, "overloaded")
        assert http.delete("/sessions/b").status_code == 200
        waiting.join(20)
