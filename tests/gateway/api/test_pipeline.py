"""gateway/api/pipeline.py: long prompts are built in threads. tests/e2e tests the rest."""

import threading
from types import SimpleNamespace
from typing import cast

import pytest

from gateway.api.pipeline import offload_if_long
from gateway.prompts.served_models import ServedModel


def model(*, is_passthrough: bool) -> ServedModel:
    return cast("ServedModel", SimpleNamespace(is_passthrough=is_passthrough))


HERE, ELSEWHERE = model(is_passthrough=False), model(is_passthrough=True)


@pytest.mark.parametrize(
    ("characters", "models", "in_a_thread"),
    [
        (100, [HERE], False),
        (50_000, [HERE], True),
        (50_000, [ELSEWHERE], False),
        (50_000, [ELSEWHERE, HERE], True),
        (5_000_000, [ELSEWHERE], True),
    ],
)
async def test_where_a_request_is_made_a_call(characters: int, models: list[ServedModel], in_a_thread: bool) -> None:
    made_in = await offload_if_long(threading.current_thread, characters, *models)
    assert (made_in is not threading.current_thread()) == in_a_thread
