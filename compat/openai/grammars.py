"""Check with llguidance whether a schema, regex or grammar can be enforced, within limits of size and time.

Clients send these texts, and llguidance limits only most of its own work. So `schemas` and `lark` first
refuse grammars that its limits do not bound.
"""

from functools import cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

MAX_FORM_BYTES = 262_144
"""Maximum size of a JSON schema, in bytes."""
MAX_PATTERN_BYTES = 65_536
"""Maximum size of a regular expression or a grammar, in bytes."""
MAX_CHOICES = 10_000
"""Maximum number of texts in a `choice`. All of them become one automaton."""
MAX_CHOICE_BYTES = 262_144
"""Maximum total size of these texts, in characters."""
_FIRST_LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=20_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Limits with less fuel than the engine's: the engine compiles for a larger vocabulary."""
_MAX_MESSAGE = 200


def problem_of_schema(schema: str) -> str:
    """Return why a JSON schema, as text, cannot be enforced; "" if it can."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema)
    except ValueError as error:
        return client_message(str(error))
    return _problem(grammar)


def problem_of_regex(pattern: str) -> str:
    """Return why a regular expression cannot be enforced; "" if it can."""
    return _problem(LLMatcher.grammar_from_regex(pattern))


def problem_of_lark(grammar: str) -> str:
    """Return why a grammar cannot be enforced; "" if it can."""
    return _problem(LLMatcher.grammar_from_lark(grammar))


def matches_lark(grammar: str, text: str) -> bool | None:
    """Return whether a text matches a grammar in Lark; None if that takes too long. It takes about 1 µs for a byte."""
    matcher = LLMatcher(_byte_tokenizer(), LLMatcher.grammar_from_lark(grammar), log_level=0, limits=_FIRST_LIMITS)
    tokens = list(text.encode(errors="replace"))
    count = matcher.try_consume_tokens(tokens)
    if matcher.is_error():
        return None
    return count == len(tokens) and bool(matcher.is_accepting())


def _problem(grammar: str) -> str:
    """Compile the grammar, compute which bytes may be first. Return the error message, or "" if there is no error."""
    matcher = LLMatcher(_byte_tokenizer(), grammar, log_level=0, limits=_FIRST_LIMITS)
    if matcher.is_error():
        error = matcher.get_error()
        if "special token" in error:  # only the engine knows which special tokens the model has
            error = LLMatcher.validate_grammar(grammar, limits=_FIRST_LIMITS)
        return client_message(error) if error else ""
    if not any(matcher.compute_bitmask()):
        return client_message(matcher.get_error()) if matcher.is_error() else _UNSATISFIABLE
    return client_message(matcher.get_error()) if matcher.is_error() else ""


_UNSATISFIABLE = "unsatisfiable: no text matches it"


def client_message(error: str) -> str:
    """Return the first line of an error of llguidance, as a message for a client."""
    first, *others = error.strip().split("\n")
    line = first.strip()
    reasons = [other.strip() for other in others if other.strip().startswith("error: ")]
    if line.endswith(":") and reasons:
        line = f"{line} {reasons[-1].removeprefix('error: ')}"
    if "NoExtension" in line:
        return _UNSATISFIABLE
    if not line or line.startswith("panic") or "backtrace" in line:
        return "it is too large or too complex"
    line = "".join(character if character.isprintable() else " " for character in line)
    return line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]}…"


class _ByteVocabulary:
    """Vocabulary of the single bytes and an end token: compiling needs a vocabulary, and a small one costs little."""

    eos_token_id = 256
    bos_token_id = None
    tokens = tuple([bytes([byte]) for byte in range(256)] + [b"<end>"])
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_ByteVocabulary()))
