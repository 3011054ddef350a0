"""The served models in Anthropic's shape."""

from collections.abc import Sequence
from datetime import UTC, datetime

from aiohttp import web

from compat.anthropic import AnthropicModel, AnthropicModelList
from gateway.errors import RequestError
from gateway.http.query_params import int_param
from gateway.prompts.served_models import ServedModel

_MAX_LIMIT = 1_000
_DEFAULT_LIMIT = 20


def anthropic_model(model: ServedModel) -> AnthropicModel:
    """Return a model in Anthropic's shape. An answer may have as many tokens as the window."""
    created = datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return AnthropicModel(
        id=model.id,
        display_name=model.id,
        created_at=created,
        max_input_tokens=model.window,
        max_tokens=model.window,
    )


def anthropic_model_page(request: web.Request, models: Sequence[ServedModel]) -> AnthropicModelList:
    """Return the page of models that the query asks for, by `limit`, `after_id` and `before_id`. Raises RequestError
    if a parameter is invalid."""
    limit = int_param(request, "limit", _DEFAULT_LIMIT, minimum=1, maximum=_MAX_LIMIT)
    start, end = _position(request, "after_id", models, -1) + 1, _position(request, "before_id", models, len(models))
    chosen = models[start:end]
    goes_back = "before_id" in request.query and "after_id" not in request.query
    page = chosen[-limit:] if goes_back else chosen[:limit]
    data = [anthropic_model(model) for model in page]
    ids = [model.id for model in data]
    return AnthropicModelList(
        data=data, has_more=len(chosen) > limit, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None
    )


def _position(request: web.Request, name: str, models: Sequence[ServedModel], default: int) -> int:
    """Return the position of the model that a query parameter names. Raises RequestError if there is none."""
    id = request.query.get(name)
    if id is None:
        return default
    position = next((index for index, model in enumerate(models) if model.id == id), None)
    if position is None:
        raise RequestError(400, f"{name}: there is no model {id[:100]!r}", code="invalid_value", param=name)
    return position
