"""GET /v1/models: the served models."""

from aiohttp import web

from compat.openai import Model, ModelList
from gateway.api.services import SERVICES
from gateway.http.json_body import json_response
from gateway.http.openapi import operation
from gateway.prompts.served_models import ServedModel

routes = web.RouteTableDef()


def _model(model: ServedModel) -> Model:
    return Model(id=model.id, created=model.created, max_model_len=model.window, capabilities=list(model.capabilities))


@routes.get("/v1/models")
@operation(ModelList, errors=(503,))
async def list_models(request: web.Request) -> web.Response:
    """Return all served models."""
    return json_response(ModelList([_model(model) for model in await request.app[SERVICES].models.all()]))


@routes.get("/v1/models/{id:.+}")
@operation(Model, errors=(404, 503))
async def get_model(request: web.Request) -> web.Response:
    """Return one model. Ids of a model hub contain a slash."""
    return json_response(_model(await request.app[SERVICES].models.get(request.match_info["id"])))
