"""gateway/http/query_params.py: parameters of a query are checked."""

from urllib.parse import quote

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http.query_params import bool_param, choice_param, int_param, parse_integer


@pytest.mark.parametrize(("query", "expected"), [("", False), ("?wait=true", True), ("?wait=false", False)])
def test_flags(query: str, expected: bool) -> None:
    assert bool_param(make_mocked_request("GET", f"/{query}"), "wait") is expected


@pytest.mark.parametrize("value", ["", "1", "True", "yes", "true "])
def test_other_values_of_a_flag_are_refused(value: str) -> None:
    with pytest.raises(RequestError, match="wait must be 'true' or 'false'") as refused:
        bool_param(make_mocked_request("GET", f"/?wait={quote(value)}"), "wait")
    assert (refused.value.status, refused.value.param) == (400, "wait")


def test_the_first_choice_is_the_default() -> None:
    choices = ("json", "mermaid", "dot")
    assert choice_param(make_mocked_request("GET", "/"), "format", choices) == "json"
    assert choice_param(make_mocked_request("GET", "/?format=dot"), "format", choices) == "dot"
    with pytest.raises(RequestError, match="format must be 'mermaid' or 'json' or 'dot'"):
        choice_param(make_mocked_request("GET", "/?format=png"), "format", choices)


@given(st.integers(0, 2**53), st.integers(0, 100), st.integers(0, 2**53))
def test_integers_within_the_bounds_are_accepted(number: int, minimum: int, maximum: int) -> None:
    request = make_mocked_request("GET", f"/?limit={number}")
    if minimum <= number <= maximum:
        assert int_param(request, "limit", 5, minimum=minimum, maximum=maximum) == number
    else:
        with pytest.raises(RequestError, match="limit must be an integer"):
            int_param(request, "limit", 5, minimum=minimum, maximum=maximum)


@given(st.text())
def test_only_ascii_digits_are_a_number(text: str) -> None:
    try:
        number = parse_integer(text, "after", 0, minimum=0)
    except RequestError:
        assert not (text.isascii() and text.isdigit() and len(text) < 17)
    else:
        assert text.isascii()
        assert int(text) == number


@pytest.mark.parametrize("text", ["-1", "+1", "1.0", "1_0", " 1", "٣", "99999999999999999999", ""])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="Last-Event-ID must be an integer of at least 0") as refused:
        parse_integer(text, "Last-Event-ID", 0, minimum=0)
    assert refused.value.param is None


def test_the_default_is_not_checked() -> None:
    assert int_param(make_mocked_request("GET", "/"), "limit", 0, minimum=1, maximum=10) == 0
    with pytest.raises(RequestError, match="limit must be an integer from 1 to 10"):
        int_param(make_mocked_request("GET", "/?limit=11"), "limit", 0, minimum=1, maximum=10)
