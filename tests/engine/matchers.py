"""Matchers for tests, each with a budget of its own."""

from itertools import count

from engine.grammar import Grammars, Matcher
from engine.sampling_params import SamplingParams

_scopes = count()


def compile_matcher(grammars: Grammars, sampling: SamplingParams) -> Matcher:
    """Return the matcher of a constrained request."""
    return grammars.compile(sampling, scope=f"test {next(_scopes)}").result(timeout=30)
