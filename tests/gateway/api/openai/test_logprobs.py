"""gateway/api/openai/logprobs.py: log probabilities in the format of answers."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.api.openai.logprobs import finite, token_logprobs
from gateway.engines.openai.stream_parser import Logprob
from gateway.graph.variable import Piece

MODEL: Any = SimpleNamespace(token_bytes=lambda token: token if isinstance(token, bytes) else bytes([token]))
MINUS_INFINITY = float("-inf")


def test_every_token_of_every_piece_has_an_entry() -> None:
    first = Logprob(b"a", -0.5, ((b"a", -0.5), (b"b", MINUS_INFINITY)))
    pieces = [Piece("ac", 2, (first, Logprob(99, -1.0, ()))), Piece(""), Piece("x", 1, (Logprob(b"x", 0.0, ()),))]
    told = token_logprobs(MODEL, pieces)
    assert [(entry.token, entry.logprob, entry.bytes) for entry in told] == [
        ("a", -0.5, [97]),
        ("c", -1.0, [99]),
        ("x", 0.0, [120]),
    ]
    assert [(top.token, top.logprob) for top in told[0].top_logprobs] == [("a", -0.5), ("b", -9999.0)]


def test_a_token_that_is_part_of_a_character_keeps_its_bytes() -> None:
    (entry,) = token_logprobs(MODEL, [Piece("", 1, (Logprob(b"\xc3", -1.0, ()),))])
    assert (entry.token, entry.bytes) == ("\ufffd", [0xC3])


@pytest.mark.parametrize(
    ("logprob", "expected"), [(0.0, 0.0), (-12.5, -12.5), (MINUS_INFINITY, -9999.0), (-1e9, -9999.0)]
)
def test_log_probabilities_are_finite(logprob: float, expected: float) -> None:
    assert finite(logprob) == expected
