"""The examples, which run against a server as a user would run them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes.gateway_harness import GatewayHarness

CURL = shutil.which("curl") is not None
EXAMPLES = Path(__file__).parents[2] / "examples"


NAMES = (
    *("background.py", "chat.py", "chain.py", "chain.sh", "map_reduce.py", "review.py", "stream_variable.py"),
    *("agent_with_tools.py", "plan_and_map.py", "review_until_accepted.py"),
)


def run(server: GatewayHarness, name: str, *options: str) -> str:
    """Run an example and return what it prints."""
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.address}/v1"}
    command = [sys.executable, str(EXAMPLES / name), *options] if name.endswith(".py") else [str(EXAMPLES / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed(server: GatewayHarness) -> Iterator[Callable[[str], str]]:
    """Run all examples in parallel. Yield a function that waits for an example and returns what it printed."""
    with ThreadPoolExecutor(len(NAMES)) as threads:
        running = {name: threads.submit(run, server, name) for name in NAMES if name != "chain.sh" or CURL}
        yield lambda name: running[name].result(110)


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.*")} == set(NAMES)


def test_chat(printed: Callable[[str], str]) -> None:
    first, *second = printed("chat.py").splitlines()
    assert first.strip()
    assert any(line.strip() for line in second)


def test_chain(printed: Callable[[str], str]) -> None:
    text = printed("chain.py")
    assert "the first answer, for now: <<v_" in text
    assert "title: " in text
    assert text.count(": done, reads ") == 3


@pytest.mark.skipif(not CURL, reason="curl is not installed")
def test_chain_with_curl(printed: Callable[[str], str]) -> None:
    first, second, value = printed("chain.sh").strip().splitlines()
    assert '"content":"<<points>>"' in first
    assert '"content":"<<sentence>>"' in second
    assert '"state":"ready"' in value


def test_map_reduce(printed: Callable[[str], str]) -> None:
    text = printed("map_reduce.py")
    assert text.count("<<v_") == 3
    assert "the whole: " in text
    assert "\n4 calls, " in text


def test_review(printed: Callable[[str], str]) -> None:
    text = printed("review.py")
    reviews = re.findall(r"== (\w+)_review\nVerdict: (accept|revise)\nRemark: ", text)
    assert [name for name, _ in reviews] == ["facts", "style"]
    assert re.search(r"== final\n\S", text)


def test_stream_variable(printed: Callable[[str], str]) -> None:
    text = printed("stream_variable.py")
    *story, last = text.splitlines()
    assert last == f"a second subscriber received the same, {len(chr(10).join(story))} characters"


def test_background(printed: Callable[[str], str]) -> None:
    begun, *story, end = printed("background.py").splitlines()
    assert re.fullmatch(r"resp_[0-9a-f]{24} is (queued|in_progress)", begun)
    assert " … " in "".join(story)
    assert re.match(r"\d+ tokens, (completed|incomplete); a title: ['\"]", end)


def test_plan_and_map(printed: Callable[[str], str]) -> None:
    first, _, *steps = printed("plan_and_map.py").splitlines()
    assert first == "the first explanation was ready before the end of the plan"
    assert re.findall(r"^(\d)\. \S", "\n".join(steps), re.MULTILINE)[:1] == ["1"]
    assert "\n6. " in "\n".join(steps)


def test_review_until_accepted(printed: Callable[[str], str]) -> None:
    assert re.search(r"\S\nproblem: \S", printed("review_until_accepted.py"))


def test_agent_with_tools(printed: Callable[[str], str]) -> None:
    lines = printed("agent_with_tools.py").splitlines()
    turns = [f"done: answer@{number}" for number in range(1, 9)]
    assert [line for line in lines if line in turns] == turns
    assert "done: answer@1.0" in lines
    assert any(line.startswith("answer: ") for line in lines)


@pytest.mark.parametrize("name", ["plan_and_map.py", "review_until_accepted.py", "agent_with_tools.py"])
def test_an_ordinary_client_does_the_same(server: GatewayHarness, name: str) -> None:
    assert run(server, name, "--client").strip()
