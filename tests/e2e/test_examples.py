"""The examples, which run against a server as a user would run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(server: Server, *command: str) -> str:
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.address}/v1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.*")} == {
        "background.py",
        "chat.py",
        "chain.py",
        "chain.sh",
        "map_reduce.py",
        "review.py",
        "stream_variable.py",
    }


def test_chat(server: Server) -> None:
    first, *second = run(server, sys.executable, str(EXAMPLES / "chat.py")).splitlines()
    assert first.strip()
    assert any(line.strip() for line in second)


def test_chain(server: Server) -> None:
    text = run(server, sys.executable, str(EXAMPLES / "chain.py"))
    assert "the first answer, for now: <<v_" in text
    assert "title: " in text
    assert text.count(": done, reads ") == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_chain_with_curl(server: Server) -> None:
    first, second, value = run(server, str(EXAMPLES / "chain.sh")).strip().splitlines()
    assert '"content":"<<points>>"' in first
    assert '"content":"<<sentence>>"' in second
    assert '"state":"ready"' in value


def test_map_reduce(server: Server) -> None:
    text = run(server, sys.executable, str(EXAMPLES / "map_reduce.py"))
    assert text.count("<<v_") == 3
    assert "the whole: " in text
    assert "\n4 calls, " in text


def test_review(server: Server) -> None:
    text = run(server, sys.executable, str(EXAMPLES / "review.py"))
    reviews = re.findall(r"== (\w+)_review\nVerdict: (accept|revise)\nRemark: ", text)
    assert [name for name, _ in reviews] == ["facts", "style"]
    assert re.search(r"== final\n\S", text)


def test_stream_variable(server: Server) -> None:
    text = run(server, sys.executable, str(EXAMPLES / "stream_variable.py"))
    *story, last = text.splitlines()
    assert last == f"a second subscriber received the same, {len(chr(10).join(story))} characters"


def test_background(server: Server) -> None:
    begun, *story, end = run(server, sys.executable, str(EXAMPLES / "background.py")).splitlines()
    assert re.fullmatch(r"resp_[0-9a-f]{24} is (queued|in_progress)", begun)
    assert " … " in "".join(story)
    assert re.match(r"\d+ tokens, (completed|incomplete); a title: ['\"]", end)
