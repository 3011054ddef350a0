"""Make, list, change, rotate and delete virtual API keys. The routes need an admin key."""

import time

from aiohttp import web

from compat.openai.admin_keys import (
    CreateKeyRequest,
    KeyDeleted,
    KeyList,
    KeyObject,
    KeyUsage,
    KeyWithSecret,
    RotateKeyRequest,
    UpdateKeyRequest,
)
from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.accounts.limits.periods import window_at
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.http.json_body import json_response, read_json
from gateway.http.openapi import operation
from gateway.http.query_params import int_param

routes = web.RouteTableDef()

_PAGE_QUERY = {"limit": {"type": "integer", "minimum": 1, "maximum": 100}, "after": {"type": "string"}}
_NO_STORE = {"Cache-Control": "no-store"}
"""Headers of an answer with a key."""


def _describe(request: web.Request, record: KeyRecord) -> KeyObject:
    return {
        "id": record.id,
        "object": "api_key",
        "name": record.name,
        "created_at": record.created,
        "expires_at": record.expires_at,
        "disabled": record.disabled,
        "models": None if record.models is None else list(record.models),
        "weight": record.weight,
        "parallel": record.parallel,
        "rpm": record.rpm,
        "tpm": record.tpm,
        "budget_cost": record.budget_cost,
        "budget_tokens": record.budget_tokens,
        "budget_period": record.budget_period,
        "tags": list(record.tags),
        "usage": _usage(request, record),
    }


def _usage(request: web.Request, record: KeyRecord) -> KeyUsage:
    now = time.time()
    limits = request.app[SERVICES].accounts.limits_of(record.id)
    meters = {} if limits is None else limits.meters
    tokens, cost = meters.get("budget_tokens"), meters.get("budget_cost")
    window = window_at(record.budget_period, now) if record.budget_period is not None else None
    return {
        "tokens": None if tokens is None else int(tokens.used_at(now)),
        "cost": None if cost is None else cost.used_at(now),
        "reserved_tokens": None if tokens is None else int(tokens.reserved),
        "reserved_cost": None if cost is None else cost.reserved,
        "period_start": None if window is None else int(window.start),
        "period_end": None if window is None else int(window.end),
    }


def _with_secret(request: web.Request, record: KeyRecord, secret: str, status: int) -> web.Response:
    answer: KeyWithSecret = {**_describe(request, record), "key": secret}
    response = json_response(answer, status)
    response.headers.update(_NO_STORE)
    return response


@routes.post("/v1/admin/keys")
@operation(KeyWithSecret, body=CreateKeyRequest, status=201, errors=(409, 503))
async def create(request: web.Request) -> web.Response:
    """Make a virtual API key.

    Only this answer has the key. The server stores a digest of it.
    """
    body = await read_json(request, CreateKeyRequest)
    if body.expires_at is not None and body.expires_at <= time.time():
        raise RequestError(400, "expires_at is in the past", code="invalid_value", param="expires_at")
    record, secret = await request.app[SERVICES].key_admin.create(body.model_dump())
    return _with_secret(request, record, secret, 201)


@routes.get("/v1/admin/keys")
@operation(KeyList, query=_PAGE_QUERY, errors=(400,))
async def list_keys(request: web.Request) -> web.Response:
    """List virtual API keys, newest first."""
    limit = int_param(request, "limit", 20, minimum=1, maximum=100)
    directory = request.app[SERVICES].accounts.directory
    records, has_more = directory.page(request.query.get("after"), limit)
    page: KeyList = {
        "object": "list",
        "data": [_describe(request, record) for record in records],
        "first_id": records[0].id if records else None,
        "last_id": records[-1].id if records else None,
        "has_more": has_more,
    }
    return json_response(page)


@routes.get("/v1/admin/keys/{id}")
@operation(KeyObject, errors=(404,))
async def get(request: web.Request) -> web.Response:
    """Return one virtual API key, and what it has used of its budgets."""
    return json_response(_describe(request, request.app[SERVICES].key_admin.get(request.match_info["id"])))


@routes.patch("/v1/admin/keys/{id}")
@operation(KeyObject, body=UpdateKeyRequest, errors=(404, 503))
async def update(request: web.Request) -> web.Response:
    """Change a virtual API key. Fields that are left out keep their values; null removes a limit.

    If it is disabled, its running calls are cancelled.
    """
    body = await read_json(request, UpdateKeyRequest)
    fields = body.model_dump(include=body.model_fields_set)
    record = await request.app[SERVICES].key_admin.update(request.match_info["id"], fields)
    return json_response(_describe(request, record))


@routes.delete("/v1/admin/keys/{id}")
@operation(KeyDeleted, errors=(404, 503))
async def delete(request: web.Request) -> web.Response:
    """Delete a virtual API key. Its running calls are cancelled; its sessions and its responses are deleted."""
    services, id = request.app[SERVICES], request.match_info["id"]
    await services.key_admin.delete(id)
    await services.response_store.delete_tenant(id)
    answer: KeyDeleted = {"id": id, "object": "api_key.deleted", "deleted": True}
    return json_response(answer)


@routes.post("/v1/admin/keys/{id}/rotate")
@operation(KeyWithSecret, body=RotateKeyRequest, errors=(404, 503))
async def rotate(request: web.Request) -> web.Response:
    """Replace the secret of a virtual API key. Its id, sessions and limits stay.

    Only this answer has the new key. The previous key is accepted for `grace_seconds` more.
    """
    body = await read_json(request, RotateKeyRequest) if request.body_exists else RotateKeyRequest()
    record, secret = await request.app[SERVICES].key_admin.rotate(request.match_info["id"], body.grace_seconds)
    return _with_secret(request, record, secret, 200)
