"""gateway/graph/variable.py"""

import asyncio

import pytest

from gateway.graph.errors import Failure, VariableAlreadySet
from gateway.graph.variable import Piece, Variable, VariableState

FAILURE = Failure("bad_logits", "no", "call_1")


async def read_all(variable: Variable) -> str:
    text = ""
    with variable.read() as reader:
        while pieces := await reader.next_pieces():
            text += "".join(piece.text for piece in pieces)
    return text


def test_a_variable_is_assigned_once() -> None:
    variable = Variable("a")
    variable.set("one")
    with pytest.raises(VariableAlreadySet, match="'a' is ready already"):
        variable.set("two")
    assert (variable.state, variable.value) == (VariableState.READY, "one")


async def test_readers_get_the_whole_value_whenever_they_begin() -> None:
    variable = Variable("a")
    early = asyncio.create_task(read_all(variable))
    variable.append(Piece("one "))
    await asyncio.sleep(0)
    middle = asyncio.create_task(read_all(variable))
    variable.append(Piece("two "))
    variable.append(Piece("three"))
    variable.complete()
    assert await early == await middle == await read_all(variable) == variable.value == "one two three"


async def test_a_cancelled_reader_does_not_disturb_the_others() -> None:
    variable = Variable("a")
    leaving, staying = asyncio.create_task(variable.wait_final()), asyncio.create_task(variable.wait_final())
    also = asyncio.create_task(read_all(variable))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    variable.append(Piece("x"))
    variable.complete()
    await staying
    assert await also == "x"
    assert leaving.cancelled()


@pytest.mark.parametrize("method", ["fail", "cancel"])
async def test_a_failed_variable_wakes_its_readers_and_stays_failed(method: str) -> None:
    variable = Variable("a")
    waiting = asyncio.create_task(variable.wait_final())
    reading = asyncio.create_task(read_all(variable))
    await asyncio.sleep(0)
    variable.append(Piece("half"))
    getattr(variable, method)(FAILURE)
    await waiting
    assert await reading == "half"
    assert variable.failure is FAILURE
    assert variable.value is None
    state = variable.state
    variable.append(Piece("more"))
    variable.complete()
    variable.fail(Failure("other", "later"))
    assert (variable.state, variable.failure) == (state, FAILURE)
    with pytest.raises(VariableAlreadySet):
        variable.set("x")
