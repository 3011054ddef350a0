"""Which tokens may come next where a text has to fit a regular expression or a JSON schema, by llguidance."""

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from engine.errors import ContextError
from engine.link import Sampling
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:  # it is there for type checkers only
    from llguidance._lib import JsonCompileOptions

_JSON: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write each value: where white space is free, a small model rambles in it."""


class Grammars:
    """What all grammars over one vocabulary share; made when the first is asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer)))

    def matcher(self, sampling: Sampling) -> "Matcher | None":
        """What holds a text to its grammar, if the request has one. Raises ContextError."""
        try:
            grammar = _grammar(sampling)
        except ValueError as error:
            raise ContextError("bad_grammar", str(error)) from error
        if grammar is None:
            return None
        matcher = LLMatcher(self._vocabulary, grammar)
        if matcher.is_error():
            raise ContextError("bad_grammar", matcher.get_error())
        return Matcher(matcher, self._vocabulary.vocab_size)


def _grammar(sampling: Sampling) -> str | None:
    """As llguidance wants it. Raises ValueError."""
    if sampling.thinks is not None:
        return _behind_thoughts(sampling)
    if sampling.regex is not None:
        return LLMatcher.grammar_from_regex(sampling.regex)
    if sampling.json_schema is not None:
        schema = sampling.json_schema
        if schema.strip() == "true":  # any value; options go with objects only
            schema = "{}"
        return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)
    return None if sampling.grammar is None else LLMatcher.grammar_from_lark(sampling.grammar)


def _behind_thoughts(sampling: Sampling) -> str | None:
    """The same, with thoughts before it. Raises ValueError."""
    if sampling.regex is not None:
        form = f"/{_written(sampling.regex)}/"
    elif sampling.json_schema is not None:
        schema = json.loads(sampling.json_schema)
        if not isinstance(schema, dict) and schema is not True:
            raise ValueError("a JSON schema is an object")
        form = f"%json {json.dumps({'x-guidance': _JSON, **(schema if isinstance(schema, dict) else {})})}"
    elif sampling.grammar is not None:
        form = f"%lark {{\n{sampling.grammar}\n}}"
    else:
        return None
    start = "thoughts form" if sampling.thinks == "begun" else '("<think>" thoughts)? form'
    return LLMatcher.grammar_from_lark(_THOUGHTS.format(start=start, form=form))


_THOUGHTS = """start: {start}
thoughts: thought SPACE
thought[lazy]: /(?s:.*)<\\/think>/
SPACE: /\\s{{0,2}}/
form: {form}
"""


def _written(regex: str) -> str:
    """As it stands between slashes."""
    return _SLASH.sub(lambda found: found[0] if len(found[0]) > 1 else "\\/", regex).replace("\n", "\\n")


_SLASH = re.compile(r"\\.|/", re.DOTALL)
"""What is escaped already, or has to be."""


class Matcher:
    """Owner of one text's place in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary)

    def allowed(self) -> NDArray[np.int32]:
        """Which tokens can come next, a bit each, (words,); good until the next call."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        mask: NDArray[np.int32] = self._mask[0]
        return mask

    def forced(self) -> list[int]:
        """The tokens that come next whatever the model would say, as far as they are certain; not taken yet.

        They are how the vocabulary writes the one text that can follow, and end before a token that what comes behind
        could change.
        """
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def push(self, token: int) -> bool:
        """Takes the next token. Whether nothing can follow it."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


class _Vocabulary:
    """The tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocabulary)]
        self.special_token_ids = list(tokenizer.control.values())
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode(errors="replace") if isinstance(text, bytes) else text)
