"""GET /v1/models: the served models."""

from aiohttp import web

from compat.openai import Model, ModelList
from gateway.api.anthropic.model_list import anthropic_model, anthropic_model_page
from gateway.api.services import models_of
from gateway.http.anthropic import speaks_anthropic
from gateway.http.json_body import json_response
from gateway.http.openapi import operation
from gateway.prompts.served_models import ServedModel

routes = web.RouteTableDef()


def _model(model: ServedModel) -> Model:
    return Model(id=model.id, created=model.created, max_model_len=model.window, capabilities=list(model.capabilities))


@routes.get("/v1/models")
@operation(ModelList, errors=(503,))
async def list_models(request: web.Request) -> web.Response:
    """Return all served models.

    Requests with the header `anthropic-version` get a page of them in Anthropic's shape.
    """
    served = await models_of(request).all()
    if speaks_anthropic(request):
        return json_response(anthropic_model_page(request, served))
    return json_response(ModelList([_model(model) for model in served]))


@routes.get("/v1/models/{id:.+}")
@operation(Model, errors=(404, 503))
async def get_model(request: web.Request) -> web.Response:
    """Return one model, in the shape of the list. Ids of a model hub contain a slash."""
    models, id = models_of(request), request.match_info["id"]
    if speaks_anthropic(request):
        return json_response(anthropic_model(await models.get_or_substitute(id)))
    return json_response(_model(await models.get(id)))
