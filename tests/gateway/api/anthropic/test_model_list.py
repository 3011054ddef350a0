"""gateway/api/anthropic/model_list.py: the served models in Anthropic's shape, with its pages."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from anthropic.types import ModelInfo

from gateway.api.anthropic.model_list import anthropic_model_page
from gateway.errors import RequestError
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.served_models import ServedModel
from tests.fakes.in_process_gateway import ScriptedGateway

MODELS = [ServedModel(name, 100, None, None, PassthroughPromptBuilder(), created=0) for name in "abcde"]


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ("", "abcde", False),
        ("?limit=2", "ab", True),
        ("?limit=2&after_id=b", "cd", True),
        ("?limit=2&after_id=c", "de", False),
        ("?after_id=e", "", False),
        ("?limit=2&before_id=d", "bc", True),
        ("?before_id=c", "ab", False),
        ("?after_id=a&before_id=d", "bc", False),
        ("?after_id=d&before_id=b", "", False),
    ],
)
def test_pages(query: str, ids: str, has_more: bool) -> None:
    page = anthropic_model_page(make_mocked_request("GET", f"/v1/models{query}"), MODELS)
    assert ("".join(model.id for model in page.data), page.has_more) == (ids, has_more)
    assert (page.first_id, page.last_id) == ((ids[0], ids[-1]) if ids else (None, None))


@pytest.mark.parametrize(
    ("query", "param"), [("?limit=0", "limit"), ("?limit=x", "limit"), ("?after_id=z", "after_id")]
)
def test_invalid_pages_are_refused(query: str, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        anthropic_model_page(make_mocked_request("GET", f"/v1/models{query}"), MODELS)
    assert (refused.value.status, refused.value.param) == (400, param)


async def test_the_header_decides_about_the_shape(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    version = {"anthropic-version": "2023-06-01"}

    async def get(path: str, headers: Any = None) -> tuple[int, Any]:
        async with client.get(path, headers=headers) as answer:
            return answer.status, await answer.json()

    _, page = await get("/v1/models", version)
    (model,) = [ModelInfo.model_validate(model) for model in page["data"]]
    assert (model.id, model.max_input_tokens, model.lifecycle) == ("fake", 4096, "active")
    _, one = await get("/v1/models/fake", version)
    assert one == page["data"][0]
    assert (await get("/v1/models/claude-opus-4-5", version))[1] == one, "it answers requests for this name"
    status, error = await get("/v1/models/other", version)
    assert (status, error["type"], error["error"]["type"]) == (404, "error", "not_found_error")
    assert (await get("/v1/models"))[1]["object"] == "list"
    assert (await get("/v1/models/claude-opus-4-5"))[0] == 404
