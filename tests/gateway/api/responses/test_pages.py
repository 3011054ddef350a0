"""gateway/api/responses/pages.py: pages of items."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.api.responses.pages import list_of, page_of
from gateway.errors import RequestError

ITEMS: list[dict[str, Any]] = [{"id": f"i{number}"} for number in range(30)]


def page(query: str) -> list[str]:
    return [item["id"] for item in page_of(make_mocked_request("GET", f"/?{query}"), ITEMS).data]


def test_all_pages_together_are_the_list() -> None:
    assert page("") == [f"i{number}" for number in range(29, 9, -1)]
    found: list[str] = []
    after = ""
    while new := page(f"order=asc&limit=7{after}"):
        found += new
        after = f"&after={new[-1]}"
    assert found == [item["id"] for item in ITEMS]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "order=up", "after=none", "after="])
def test_invalid_pages_are_refused(query: str) -> None:
    with pytest.raises(RequestError) as refused:
        page(query)
    assert refused.value.param == query.split("=")[0]


def test_an_empty_list_has_no_ids() -> None:
    empty = list_of([])
    assert (empty.first_id, empty.last_id, empty.has_more) == (None, None, False)
