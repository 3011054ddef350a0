"""GET /v1/usage: the tokens and the cost of the calls of an API key."""

import datetime
import time
from typing import Any, cast

from aiohttp import web

from compat.openai import UsageList, UsageRow
from gateway.accounts.ledger.usage_query import GROUPS, LedgerError, UsageQuery, UsageSum
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.http.json_body import json_response
from gateway.http.middleware.auth import ADMIN, TENANT
from gateway.http.openapi import operation
from gateway.http.query_params import int_param

routes = web.RouteTableDef()

_DAYS = 30
"""Number of days before now that a request without `start` covers."""
_MAX_LIMIT = 1_000
_MAX_OFFSET = 10_000_000
_LAST_TIME = 1 << 40
_LONGEST_NAME = 500

_TIME = {"type": "string", "description": "seconds of the Unix clock, or a day such as 2026-11-29, in UTC"}


@routes.get("/v1/usage")
@operation(
    UsageList,
    query={
        "group_by": {"type": "string", "description": f"any of {', '.join(GROUPS)}, separated by commas"},
        "start": _TIME,
        "end": _TIME,
        "key": {"type": "string"},
        "session": {"type": "string"},
        "model": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_LIMIT},
        "offset": {"type": "integer", "minimum": 0, "maximum": _MAX_OFFSET},
    },
    errors=(400, 404, 429, 503),
)
async def usage(request: web.Request) -> web.Response:
    """Return numbers of calls, and sums of their tokens and cost, of the API key, by key, session, model or day.

    With an admin key, the sums are those of all API keys.
    """
    services, tenant = request.app[SERVICES], request[TENANT]
    if services.ledger is None:
        message = "this server does not record usage; the operator can enable it with --ledger on"
        raise RequestError(404, message, code="no_ledger")
    limit = int_param(request, "limit", 100, minimum=1, maximum=_MAX_LIMIT)
    offset = int_param(request, "offset", 0, minimum=0, maximum=_MAX_OFFSET)
    now = time.time()
    query = UsageQuery(
        _groups(request),
        _time_param(request, "start", now - _DAYS * 86_400),
        _time_param(request, "end", now + 1),
        _text_param(request, "key"),
        _text_param(request, "session"),
        _text_param(request, "model"),
        limit + 1,
        offset,
    )
    try:
        if tenant in ("", ADMIN):  # a server without API keys, or an operator
            rows = await services.ledger.sums(query, tenant)
        else:
            rows = await services.ledger.sums_of(tenant, query)
    except LedgerError as error:
        raise RequestError(503, str(error), code="ledger_unavailable") from error
    has_more = len(rows) > limit
    answer: UsageList = {
        "object": "list",
        "data": [_row(query, row) for row in rows[:limit]],
        "has_more": has_more,
        "next": offset + limit if has_more else None,
    }
    return json_response(answer)


def _row(query: UsageQuery, row: UsageSum) -> UsageRow:
    fields: dict[str, Any] = dict(zip(query.groups, row.groups, strict=True))
    fields |= {
        "calls": row.calls,
        "tool_calls": row.tool_calls,
        "prompt_tokens": row.prompt,
        "cached_tokens": row.cached,
        "completion_tokens": row.completion,
        "reasoning_tokens": row.reasoning,
        "lost_tokens": row.lost,
        "cost": row.cost,
    }
    return cast("UsageRow", fields)


def _groups(request: web.Request) -> list[str]:
    groups = [name.strip() for name in request.query.get("group_by", "").split(",") if name.strip()]
    if len(set(groups)) < len(groups) or not set(groups) <= set(GROUPS):
        message = f"group_by must consist of {', '.join(GROUPS)}, each at most once, separated by commas"
        raise RequestError(400, message, code="invalid_value", param="group_by")
    return groups


def _text_param(request: web.Request, name: str) -> str | None:
    text = request.query.get(name)
    if text is not None and len(text) > _LONGEST_NAME:
        raise RequestError(400, f"{name} has more than {_LONGEST_NAME} characters", code="invalid_value", param=name)
    return text


def _time_param(request: web.Request, name: str, default: float) -> float:
    """Return a time of the Unix clock, in seconds. Raises RequestError if the parameter is no time and no day."""
    text = request.query.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= _LAST_TIME:
        return float(text)
    try:
        day = datetime.date.fromisoformat(text)
        return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()
    except ValueError:
        message = f"{name} must be seconds of the Unix clock, or a day such as 2026-11-29"
        raise RequestError(400, message, code="invalid_value", param=name) from None
