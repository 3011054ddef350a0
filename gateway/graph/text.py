"""Check that texts are Unicode without lone surrogates. All texts that become values are checked here."""

import re

from gateway.graph.errors import BadText

_SURROGATE = re.compile("[\ud800-\udfff]")


def has_surrogate(text: str) -> bool:
    """Return whether the string holds a lone surrogate: half of a character, which has no UTF-8 form."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def check_text(text: str, what: str, where: str | None = None) -> str:
    """Return the text. Raises BadText if it contains a lone surrogate.

    `what` names the text in the message; `where` is the path of its field in the request.
    """
    if has_surrogate(text):
        found = _SURROGATE.search(text)
        assert found is not None
        raise BadText(f"{what} is not Unicode text: it contains the lone surrogate U+{ord(found[0]):04X}", where)
    return text


def size_of(text: str) -> int:
    """Return the size of the text in bytes of UTF-8. A lone surrogate counts as three bytes."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
