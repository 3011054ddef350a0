"""gateway/cli/server_client.py: requests of commands, and tables."""

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
