"""The spend of one call: its tokens, and their cost."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class CallSpend(NamedTuple):
    """A row of the ledger: the spend of one call of a model or a tool, or of one request that was passed on to an
    upstream server.

    `id`: the call's id; a row is stored once for each id. `ended`: seconds of the Unix clock. `key`: id of the API key,
    never the key; see `key_id_of`. `session`: if the call has none that can be named, the id of its program at the time
    of its end; empty if it has neither. `prompt` includes `cached`, and `completion` includes `reasoning`. `lost`:
    completion tokens of attempts whose engine was lost; they are in no answer and cost nothing. A call that an
    identical one serves has no tokens and costs nothing: the other call's row has them. `cost`: in the currency of the
    prices. `tool_calls`: 1 if a tool was run; then `model` is empty, and `engine` is the tool's server and name.
    """

    id: str
    ended: float
    key: str
    session: str
    model: str
    engine: str
    state: str
    prompt: int
    cached: int
    completion: int
    reasoning: int
    lost: int
    cost: float
    tags: Sequence[str] = ()
    tool_calls: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens of the prompt and the answer, as limits and budgets count them."""
        return self.prompt + self.completion


_CONTROL = str.maketrans({"\0": "\N{REPLACEMENT CHARACTER}"})
"""PostgreSQL's texts cannot contain the character 0."""


def storable_text(text: str) -> str:
    """Return a text that every database accepts: without lone surrogates and the character 0."""
    return text.encode(errors="replace").decode().translate(_CONTROL)


def storable_row(spend: CallSpend) -> tuple[Any, ...]:
    """Return the columns of a row for a database. The tags are one text, with a line each."""
    tags = "\n".join(spend.tags) if spend.tags else ""
    values = spend._replace(tags=tags)
    chosen_by_others = f"{spend.session}{spend.engine}{tags}"  # clients, and servers of tools
    if f"{chosen_by_others}{spend.model}".isascii() and "\0" not in chosen_by_others:
        return values  # most rows: names of models and engines are the operator's
    return tuple(storable_text(value) if isinstance(value, str) else value for value in values)


FREE = CallSpend("", 0.0, "", "", "", "", "", 0, 0, 0, 0, 0, 0.0)
