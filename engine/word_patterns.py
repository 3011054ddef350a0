"""Regular expressions with which byte-level tokenizers split a text into words, before they merge bytes.

The words of a growing text can be used before the text ends only if it is known how far a pattern looks ahead. That is
so for the patterns of this module: each word ends where its character class ends, and depends on at most the next
visible word. Other patterns may look further.
"""

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"
GPT4O = rf"{_CASED % ((_CONTRACTION + '?',) * 2)}|\p{{N}}{{1,3}}|{_CASED_REST}"
TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_REST}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
"""Patterns of DeepSeek-V3 and R1, which are applied one after another."""

_LOCAL = frozenset({LLAMA3, QWEN2, GPT4O, TEKKEN, *_DEEPSEEK3})


def is_local(pattern: str) -> bool:
    """Return whether the words of a pattern depend only on text nearby: whether it is one of this module's."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n") in _LOCAL
