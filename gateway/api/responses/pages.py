"""Pages of lists of items."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from compat.openai.responses import InputItems
from gateway.errors import RequestError
from gateway.http.query_params import choice_param, int_param

PAGE_QUERY = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "order": {"type": "string", "enum": ["asc", "desc"]},
    "after": {"type": "string"},
}
"""JSON schemas of the query parameters of a page."""


def page_of(request: web.Request, items: Sequence[dict[str, Any]]) -> InputItems:
    """Return the page of the items that the query asks for: the newest first, unless `order` is `asc`. Raises
    RequestError."""
    limit = int_param(request, "limit", 20, minimum=1, maximum=100)
    ordered = [*items] if choice_param(request, "order", ("desc", "asc")) == "asc" else [*reversed(items)]
    after = request.query.get("after")
    if after is not None:
        positions = [position for position, item in enumerate(ordered) if item["id"] == after]
        if not positions:
            raise RequestError(400, f"there is no item {after!r} in this list", code="invalid_value", param="after")
        ordered = ordered[positions[0] + 1 :]
    return list_of(ordered[:limit], has_more=len(ordered) > limit)


def list_of(items: Sequence[dict[str, Any]], *, has_more: bool = False) -> InputItems:
    """Return a list of items."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return InputItems(data=[*items], first_id=first, last_id=last, has_more=has_more)
