"""Facts about requests and answers from which `ProgramIndex` finds programs, and hashes of their texts."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from gateway.programs.text_links import MIN_CHARACTERS

_FULL_CHARACTERS, _FULL_ASCII_CHARACTERS = 16_384, 131_072
"""Maximum length of a text that is hashed completely, in characters. The second is for texts in ASCII. The first holds
for the number of token ids as well."""
_EDGE_CHARACTERS = 8_192
"""Number of characters that are hashed at each end of a longer text. Over the whole text, between 1 and 1.5 times as
many at equal distances are hashed too."""
_SEED = secrets.randbits(64)
"""Seed of the hashes of texts."""
_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(128)))).encode()
"""White space in ASCII: the characters at which `str.split` splits."""
_ID_CHARACTERS = 64
"""Maximum length of a client's id that is stored unchanged, in characters. A digest replaces longer ids."""
_new_tuple = tuple.__new__
"""Creates a named tuple in half the time of a call of its class. It does not check the number of fields."""
_HEAD_CHARACTERS = 48
"""Number of characters at the start of an answer that are compared if the client has rewritten the rest."""
_MAX_TOOL_CALLS = 32
"""Maximum number of tool calls of one answer that are searched for texts, and of texts that are returned."""
_MAX_ARGUMENTS = 262_144
"""Maximum length of arguments that are parsed as JSON, in characters. Longer ones count as one text."""
_SESSION_PART = re.compile(r"(?:^|_)session_([0-9A-Za-z-]{8,128})$|\"session_id\"\s*:\s*\"([^\"\\]{8,128})\"")
"""The session in Anthropic's `metadata.user_id` as Claude Code writes it: a suffix of a text, or a field of JSON."""
SYSTEM_ROLES = ("system", "developer")
"""Roles of the instructions of an application."""
_ID_HEADERS = (
    ("x-session-id", "x-parent-session-id"),
    ("x-claude-code-session-id", ""),
    ("x-dynamo-session-id", "x-dynamo-parent-session-id"),
    ("session-id", ""),
    ("thread-id", ""),
)
"""Headers in which agents send a session id, the most specific first, each with the header of the parent session; empty
if there is none."""


def text_hash(text: str) -> int:
    """Return a hash of a text. Its seed differs between processes, so do not store the hash.

    Of a long text, only the length, both ends and characters at equal distances are hashed, so that one message takes
    bounded time. Two long texts that differ only in other places have the same hash.

    Texts in ASCII of at most `_FULL_ASCII_CHARACTERS`, as most texts of agents are, are hashed with xxHash. It takes a
    quarter of the time of Python's `hash`, which hashes all others.
    """
    if text.isascii():
        if len(text) <= _FULL_ASCII_CHARACTERS:
            return xxh3_64_intdigest(text.encode(), _SEED)
    elif len(text) <= _FULL_CHARACTERS:
        return hash(text)
    step = len(text) // _EDGE_CHARACTERS
    return hash((len(text), text[:_EDGE_CHARACTERS], text[-_EDGE_CHARACTERS:], text[::step]))


def token_hash(tokens: Sequence[int]) -> int:
    """Return a hash of a prompt that is given as token ids. Unlike `text_hash`, it has no seed. Of a long prompt, it
    hashes the same parts as `text_hash` does of a text."""
    if len(tokens) <= _FULL_CHARACTERS:
        return hash(tuple(tokens))
    step = len(tokens) // _EDGE_CHARACTERS
    ends = (*tokens[:_EDGE_CHARACTERS], *tokens[-_EDGE_CHARACTERS:])
    return hash((len(tokens), ends, tuple(tokens[::step])))


class AnswerKeys(NamedTuple):
    """Hashes of an answer: of all of it, of its first characters, and of the names of the tools that it calls.

    `is_long`: whether its text and arguments together have at least `MIN_CHARACTERS`, so that two calls rarely generate
    the same answer by chance.

    White space around the text and in the arguments, ids of tool calls and reasoning do not count: clients change them.
    """

    whole: int
    head: int
    tools: int
    is_long: bool


def answer_keys(text: str, tool_calls: Sequence[tuple[str, str]] = ()) -> AnswerKeys:
    """Return the keys of an answer. `tool_calls`: names and arguments."""
    text = text.strip()
    head = hash(text[:_HEAD_CHARACTERS]) if text else 0
    length, tools = len(text), 0
    calls: object = 0
    if tool_calls:
        calls = tuple([(name, _arguments_hash(arguments)) for name, arguments in tool_calls])
        length += sum([len(arguments) for _, arguments in tool_calls])
        tools = hash(tuple([name for name, _ in tool_calls]))
    return _new_tuple(AnswerKeys, (_answer_hash(text, calls), head, tools, length >= MIN_CHARACTERS))


def _answer_hash(text: str, tool_calls: object) -> int:
    """Return the hash of a whole answer. `text`: without white space around it. `tool_calls`: their names and hashes of
    their arguments; 0 if there are none."""
    return hash((text_hash(text), tool_calls))


def _arguments_hash(arguments: str) -> int:
    """Return a hash of the arguments of a tool call for which white space does not count."""
    if arguments.isascii() and len(arguments) <= _FULL_ASCII_CHARACTERS:  # in a quarter of the time of `split`
        return xxh3_64_intdigest(arguments.encode().translate(None, _WHITE_SPACE), _SEED)
    return text_hash("".join(arguments.split()))


class PromptMessage(NamedTuple):
    """A message of a prompt. `key`: hash of its role and content; for the role `assistant`, `whole` of its answer keys.
    `texts`: its texts, in which answers are searched. `computed_answer`: its answer keys, if they are computed already.

    A prompt has many messages, and `ProgramIndex` reads the keys of few answers. So `text_message` does not compute the
    keys, and `answer` computes them at each access. `prompt_message` computes them at once: those of tool calls take
    much longer.
    """

    role: str
    key: int
    texts: Sequence[str] = ()
    computed_answer: AnswerKeys | None = None

    @property
    def answer(self) -> AnswerKeys | None:
        """Its keys as an answer; None if its role is not `assistant`."""
        if self.computed_answer is not None or self.role != "assistant":
            return self.computed_answer
        return answer_keys("".join(self.texts))


def token_message(tokens: Sequence[int]) -> PromptMessage:
    """Return the message of a prompt that is given as token ids."""
    return PromptMessage("user", hash(("tokens", token_hash(tokens))))


def text_message(role: str, text: str) -> PromptMessage:
    """Return a message with one text, and with no tool calls and no media, in half the time of `prompt_message`. Most
    messages are like this."""
    key = _answer_hash(text.strip(), 0) if role == "assistant" else hash((role, text_hash(text)))
    return _new_tuple(PromptMessage, (role, key, (text,), None))


def prompt_message(
    role: str, texts: Sequence[str], tool_calls: Sequence[tuple[str, str]] = (), media: Sequence[object] = ()
) -> PromptMessage:
    """Return a message with its hashes. `tool_calls`: names and arguments; `media`: parts that are not text."""
    if role == "assistant":
        answer = answer_keys(texts[0] if len(texts) == 1 else "".join(texts), tool_calls)
        return _new_tuple(PromptMessage, (role, answer.whole, texts, answer))
    keys: object = text_hash(texts[0]) if len(texts) == 1 else tuple(map(text_hash, texts))
    parts = (role, keys, *[text_hash(repr(part)) for part in media]) if media else (role, keys)
    return PromptMessage(role, hash(parts), texts)


@dataclass(frozen=True, slots=True)
class ClientIds:
    """Ids that a client sent by itself.

    `session`: names one application run; requests with the same one belong to one program. `parent`: the session that
    started it. `weak`: an id that may stand for a whole application or user; see `ProgramIndex`.
    """

    session: str | None = None
    parent: str | None = None
    weak: str | None = None


NO_IDS = ClientIds()
"""Ids of a client that sends none."""


def client_ids(
    headers: Mapping[str, str], prompt_cache_key: str | None = None, user_id: str | None = None
) -> ClientIds:
    """Return the ids in a request's headers and fields. Ids of any length and characters are accepted.

    `headers`: a mapping that ignores case, or one with names in lower case.
    `user_id`: Anthropic's `metadata.user_id`. Claude Code writes its session into it; that part is a session's id.
    """
    session = parent = None
    for name, parent_name in _ID_HEADERS:
        if value := headers.get(name):
            session = f"{name}:{_short(value)}"
            if parent_name and (value := headers.get(parent_name)):
                parent = f"{name}:{_short(value)}"
            break
    if session is None and user_id and (found := _SESSION_PART.search(user_id[-1_024:])):
        session = f"x-claude-code-session-id:{_short(found[1] or found[2])}"
    weak = prompt_cache_key or user_id
    if session is None and weak is None:
        return NO_IDS
    return ClientIds(session, parent, _short(weak) if weak else None)


def _short(id: str) -> str:
    if len(id) <= _ID_CHARACTERS:
        return id
    return blake2b(id.encode(errors="surrogatepass"), digest_size=16).hexdigest()


@dataclass(slots=True)  # not frozen: each request makes one, and setting frozen fields takes three times as long
class ProgramFacts:
    """Facts of a request about its program: its messages, the session that it names, and ids of the client.

    `session`: id of the gateway's session that the request names. `ids.session` is another id, which an agent sends by
    itself.
    """

    messages: Sequence[PromptMessage] = ()
    session: str | None = None
    ids: ClientIds = NO_IDS


@dataclass(slots=True)  # not frozen: each request makes one, and setting frozen fields takes three times as long
class AnswerFacts:
    """Facts about a call that has ended. `tool_calls`: names and arguments, as JSON. `state`: final state."""

    text: str = ""
    tool_calls: Sequence[tuple[str, str]] = ()
    state: str = "done"

    @property
    def argument_texts(self) -> list[str]:
        """Texts in the arguments of the tool calls that have at least `MIN_CHARACTERS`, at most `_MAX_TOOL_CALLS`.

        Of a JSON object, these are the values that are strings; nested values are left out. Arguments that are not JSON
        are one text.
        """
        texts: list[str] = []
        for _, arguments in self.tool_calls[:_MAX_TOOL_CALLS]:
            if len(arguments) < MIN_CHARACTERS:
                continue
            try:
                value = json.loads(arguments) if len(arguments) <= _MAX_ARGUMENTS else arguments
            except (ValueError, RecursionError):
                value = arguments
            values = value.values() if isinstance(value, dict) else [value]
            texts += [text for text in values if isinstance(text, str) and len(text) >= MIN_CHARACTERS]
        return texts[:_MAX_TOOL_CALLS]
