"""gateway/cli/server_client.py: requests of commands, and tables."""

import os
import subprocess
import sys

import pytest

from gateway.cli.server_client import RequestFailed, as_table, base_url, request_json


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_an_address_may_have_no_path(url: str) -> None:
    assert base_url(url) == "http://a:1/v1"


def test_a_table_aligns_its_columns() -> None:
    assert as_table([("a", "b"), ("long", "c")]) == "a     b\nlong  c"


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(RequestFailed, match=r"http://127\.0\.0\.1:1/v1 does not answer"):
        request_json("GET", "http://127.0.0.1:1/v1", "key")


def test_a_reader_that_ends_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "from gateway.cli.server_client import print_text\nprint_text('x' * 100_000)"
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
