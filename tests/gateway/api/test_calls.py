"""gateway/api/calls.py: what takes long is made in a thread, and holds nobody else up."""

import threading
from types import SimpleNamespace
from typing import cast

import pytest

from gateway.api.calls import prepared
from gateway.models import ServedModel


def model(*, passes_on: bool) -> ServedModel:
    return cast("ServedModel", SimpleNamespace(tokenizer=SimpleNamespace(passes_on=passes_on)))


HERE, ELSEWHERE = model(passes_on=False), model(passes_on=True)


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
    made_in = await prepared(threading.current_thread, characters, *models)
    assert (made_in is not threading.current_thread()) == in_a_thread
