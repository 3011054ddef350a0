"""compat/langchain/variable.py: a text that is fetched when it is read, and not before."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from compat.langchain.variable import SemanticVariable, SemanticVariableError

TEXT = "red and blue"


class Source:
    """The server's side of a variable, which counts the reads."""

    def __init__(self, failure: SemanticVariableError | None = None) -> None:
        self.reads = 0
        self.failure = failure
        self.variable = SemanticVariable("<<colour>>", self.fetch, self.fetch_async)

    def fetch(self) -> str:
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        return TEXT

    async def fetch_async(self) -> str:
        return self.fetch()


INSERTIONS: list[Callable[[SemanticVariable], str]] = [
    lambda variable: f"It is {variable}.",
    lambda variable: "It is " + variable + ".",
    lambda variable: "It is {}.".format(variable),  # noqa: UP032
    lambda variable: "It is {colour}.".format_map({"colour": variable}),
    lambda variable: "".join(["It is ", variable, "."]),
]


@pytest.mark.parametrize("insert", INSERTIONS)
def test_inserting_it_into_a_text_fetches_nothing(insert: Callable[[SemanticVariable], str]) -> None:
    source = Source()
    assert insert(source.variable) == "It is <<colour>>."
    assert source.reads == 0


def test_its_name_and_its_repr_fetch_nothing() -> None:
    source = Source()
    assert (source.variable.name, source.variable.reference) == ("colour", "<<colour>>")
    assert repr(source.variable) == "SemanticVariable('colour')"
    assert copy.copy(source.variable) is copy.deepcopy(source.variable) is source.variable
    assert source.reads == 0


READS: list[tuple[Callable[[SemanticVariable], Any], Any]] = [
    (str, TEXT),
    (len, len(TEXT)),
    (lambda variable: variable == TEXT, True),
    (lambda variable: variable != "<<colour>>", True),
    (lambda variable: "blue" in variable, True),
    (lambda variable: variable[:3], "red"),
    (list, list(TEXT)),
    (lambda variable: variable.upper(), TEXT.upper()),
    (lambda variable: variable.split(), TEXT.split()),
    (lambda variable: variable.encode(), TEXT.encode()),
    (lambda value: hash(value) == hash(TEXT), True),
    (lambda variable: variable * 2, TEXT * 2),
    (lambda variable: variable < "s", True),
    (lambda variable: f"{variable:>20}", f"{TEXT:>20}"),
    (lambda variable: pickle.loads(pickle.dumps(variable)), TEXT),
]


@pytest.mark.parametrize(("read", "expected"), READS)
def test_reading_it_fetches_its_text_once(read: Callable[[SemanticVariable], Any], expected: Any) -> None:
    source = Source()
    for _ in range(2):
        assert read(source.variable) == expected
    assert source.reads == 1


async def test_it_can_be_awaited() -> None:
    source = Source()
    assert await source.variable == TEXT
    assert str(source.variable) == await source.variable == TEXT
    assert source.reads == 1


async def test_a_failure_is_raised_at_each_read() -> None:
    source = Source(SemanticVariableError("its call failed", "engine_failed"))
    assert f"It is {source.variable}." == "It is <<colour>>."
    for _ in range(2):
        with pytest.raises(SemanticVariableError, match="its call failed") as failure:
            str(source.variable)
        assert failure.value.code == "engine_failed"
    with pytest.raises(SemanticVariableError):
        await source.variable
