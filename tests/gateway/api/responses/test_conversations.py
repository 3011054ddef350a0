"""gateway/api/responses/conversations.py: what the model reads when a response is continued."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from compat.openai.responses import ResponseRequest
from gateway.api.responses.conversations import Turn, new_response_id, not_found_message
from gateway.api.semantic.extension import Scope
from gateway.errors import RequestError
from gateway.graph.errors import GraphError
from gateway.graph.session import Session
from gateway.http.json_body import encode_json
from gateway.responses import MemoryDatabase, SqliteResponseStore, StoredResponse


@pytest.fixture
async def store() -> AsyncIterator[SqliteResponseStore]:
    store = SqliteResponseStore(MemoryDatabase(), 1 << 22, 60.0, owns=True)
    yield store
    await store.close()


def stored(id: str, input: Any, text: str, before: str | None = None, **more: Any) -> StoredResponse:
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [part]}
    return StoredResponse("t", id, encode_json(input), encode_json({"output": [message]}), before, **more)


async def begin(
    store: SqliteResponseStore, session: str | None = None, /, *, deferred: bool = False, agent: str = "", **body: Any
) -> Turn:
    """Load a turn in the session. `agent`: id of the session that an agent's header names."""
    request = ResponseRequest.model_validate({"model": "m", "input": "new", **body})
    scope = Scope(Session(session or "", "t", 0.0, 60.0), session is not None, deferred)
    return await Turn.load(store, "t", request, scope, Session(agent, "t", 0.0, 60.0) if agent else None)


async def test_earlier_turns_come_before_the_new_input(store: SqliteResponseStore) -> None:
    await store.add(stored("r1", "first", "one"))
    await store.add(stored("r2", [{"role": "user", "content": "second"}], "two", "r1"))
    turn = await begin(store, previous_response_id="r2", instructions="Be brief.")
    messages, places = turn.messages_with_paths
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [str(message.content) for message in messages if message.role == "user"][-1] == "new"
    assert places[:1] == ["instructions"]
    assert places[1:5] == ["previous_response_id"] * 4
    assert len(places) == len(messages)
    assert turn.size > 0


async def test_instructions_of_earlier_turns_do_not_apply(store: SqliteResponseStore) -> None:
    await store.add(stored("r1", "first", "one"))
    messages, _ = (await begin(store, previous_response_id="r1")).messages_with_paths
    assert all(message.role != "system" for message in messages)


@pytest.mark.parametrize("id", ["resp_none", "r-other"])
async def test_an_unknown_response_cannot_be_continued(store: SqliteResponseStore, id: str) -> None:
    await store.add(StoredResponse("other", "r-other", b'"x"', b'{"output": []}'))
    with pytest.raises(RequestError) as refused:
        await begin(store, previous_response_id=id)
    assert (refused.value.param, str(refused.value)) == ("previous_response_id", not_found_message(id))
    assert refused.value.status in (400, 404)


async def test_an_unfinished_response_cannot_be_continued(store: SqliteResponseStore) -> None:
    await store.add(stored("r1", "first", "", resume_data=b"1", call_session="its-own"))
    with pytest.raises(RequestError) as refused:
        await begin(store, previous_response_id="r1")
    assert refused.value.param == "previous_response_id"


async def test_a_response_of_a_session_is_continued_only_there(store: SqliteResponseStore) -> None:
    await store.add(stored("r1", "first", "one", session="s"))
    assert (await begin(store, "s", previous_response_id="r1")).is_stored
    for session in (None, "other"):
        with pytest.raises((RequestError, GraphError)):
            await begin(store, session, previous_response_id="r1")


async def test_an_agents_header_suffices_to_continue_a_response_of_its_session(store: SqliteResponseStore) -> None:
    await store.add(stored("r1", "first", "one", session="s"))
    await store.add(stored("r2", "first", "one"))
    turn = await begin(store, agent="s", previous_response_id="r1")
    assert (turn.scope.session.id, turn.scope.is_named) == ("s", True)
    assert not (await begin(store, agent="s", previous_response_id="r2")).scope.is_named
    with pytest.raises(RequestError) as refused:
        await begin(store, agent="other", previous_response_id="r1")
    assert refused.value.code == "session_conflict"


@pytest.mark.parametrize(
    ("body", "deferred", "keeps"),
    [({}, False, True), ({"store": True}, False, True), ({"store": False}, False, False), ({}, True, False)],
)
async def test_which_responses_are_stored(
    store: SqliteResponseStore, body: dict[str, Any], deferred: bool, keeps: bool
) -> None:
    assert (await begin(store, deferred=deferred, **body)).is_stored == keeps


@pytest.mark.parametrize("field", ["store", "background"])
async def test_a_deferred_response_cannot_be_stored(store: SqliteResponseStore, field: str) -> None:
    with pytest.raises(RequestError, match="use its reference to continue") as refused:
        await begin(store, deferred=True, **{field: True})
    assert refused.value.param == field


def test_ids_are_new() -> None:
    ids = {new_response_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(id.startswith("resp_") and len(id) == 29 for id in ids)
