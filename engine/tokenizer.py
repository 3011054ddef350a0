"""A checkpoint's tokenizer: from text to tokens, and incrementally back to text. This module imports no torch.

Text is data: `encode` never yields a control token, whatever the text contains. Only the text of a chat template goes
through `encode_template`, which recognises them.
"""

import codecs
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
from tokenizers import Tokenizer as _Backend

from engine.errors import CheckpointError
from engine.json_files import read_object
from engine.long_text import LongTextEncoder

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is one text at a time, so a thread pool gains nothing
_SHORT_TEXT = 100
_SHORT_TEXTS = 4096
"""Maximum length, in characters, and number of texts in the cache of token lists: the text that a chat template writes
between messages is the same in every prompt."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ALWAYS = ("bos_token", "eos_token")
"""Special tokens that templates use without checking that they exist."""
Preceding = Literal["nothing", "control", "text"]
"""Kind of the part that precedes a text in a prompt."""


class Tokenizer:
    """Tokenizer of a checkpoint. Immutable after loading; safe to use from several threads."""

    is_passthrough = False
    """Whether the engine renders prompts itself, so that the gateway forwards messages as messages."""

    def __init__(self, folder: str | Path) -> None:
        """Load `tokenizer.json` and the files beside it. Raise CheckpointError, which names the file, if one of them
        cannot be read."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json, so its text cannot be tokenised")
        try:
            self._read(path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        except Exception as error:  # tokenizers raises plain exceptions
            raise CheckpointError(f"{path} is not a valid tokenizer: {type(error).__name__}: {error}") from error
        try:
            self._read_beside(folder)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise CheckpointError(f"a JSON file beside {path} is invalid: {error}") from error

    def _read(self, path: Path) -> None:
        """Read the vocabulary and the tokenization rules."""
        content: dict[str, Any] = msgspec.json.decode(path.read_bytes())  # some megabytes, and faster than json
        added = content.get("added_tokens") or []
        plain = _plain(content)
        self._backend = _Backend.from_str(msgspec.json.encode(plain).decode())
        self._short = lru_cache(_SHORT_TEXTS)(self._encode_short)
        self._leading_space = _leading_space(content)
        self.control: dict[str, int] = {token["content"]: token["id"] for token in added}
        """Added tokens by their texts. No value and no message may become one of them."""
        self.special: frozenset[int] = frozenset(token["id"] for token in added if token["special"])
        """Control tokens that are never shown as text."""
        alternatives = "|".join(re.escape(text) for text in sorted(self.control, key=len, reverse=True))
        self.control_pattern: re.Pattern[str] | None = re.compile(f"({alternatives})") if added else None
        self._bytes = _byte_table(content, self.control)
        self._long = LongTextEncoder(self._backend, plain, self._bytes)
        self._around = _tokens_around(content)

    def _read_beside(self, folder: Path) -> None:
        """Read the special tokens, the chat template and the tokens that end an answer, from the tokenizer's folder."""
        config = _read_json(folder / "tokenizer_config.json")
        generation = _read_json(folder / "generation_config.json")
        model = _read_json(folder / "config.json")
        texts = {name: _token_text(config.get(name)) for name in _SPECIAL}
        self.special_texts: Mapping[str, str] = {name: text for name, text in texts.items() if text or name in _ALWAYS}
        """Texts of special tokens, by the names that chat templates use."""
        self.bos_text = self.special_texts["bos_token"]
        self.eos_text = self.special_texts["eos_token"]
        before, after = self._around
        bos, eos = (self.control.get(text) for text in (self.bos_text, self.eos_text))
        if config.get("add_bos_token") and bos is not None and bos not in before:
            before = [bos, *before]
        if config.get("add_eos_token") and eos is not None and eos not in after:
            after = [*after, eos]
        self._around = before, after
        self.adds_bos = bool(config.get("add_bos_token", False)) and self.bos_text in self.control
        self.chat_template = _chat_template(folder, config)
        stops: set[int] = set()
        for value in (generation.get("eos_token_id"), model.get("eos_token_id")):
            stops.update([value] if isinstance(value, int) else value or [])
        if self.eos_text in self.control:
            stops.add(self.control[self.eos_text])
        self.eos_ids: frozenset[int] = frozenset(stops)
        """Tokens that end an answer."""

    @property
    def eos_id(self) -> int | None:
        """Token that ends an answer, or one of them if there are several; None if there is none."""
        return self.control.get(self.eos_text, min(self.eos_ids, default=None))

    @property
    def vocabulary(self) -> int:
        """Number of token ids that have a text."""
        return len(self._bytes)

    def encode(self, text: str, *, after: Preceding = "text", max_tokens: int | None = None) -> list[int]:
        """Return the tokens of ordinary text; `<|im_end|>` in it becomes several ordinary tokens.

        `after`: what precedes the text in the prompt. Vocabularies like SentencePiece's put a space before a text after
            a control token or at the beginning.
        `max_tokens`: after more tokens than that, the rest may be left out.
        """
        if after in self._leading_space and text:
            text = " " + text
        if len(text) <= _SHORT_TEXT:
            return list(self._short(text))
        return self._long.encode(text, max_tokens)

    def minimum_tokens(self, text: str, *, is_part: bool = False) -> int:
        """Return a lower bound of a text's number of tokens, without tokenising it.

        See `LongTextEncoder.minimum_tokens`.
        """
        return self._long.minimum_tokens(text, is_part=is_part)

    def _encode_short(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_stable(self, text: str, max_tokens: int | None = None) -> tuple[list[int], str]:
        """Return the tokens of the beginning of a growing text that later text cannot change, and the rest of the text.

        See `LongTextEncoder.encode_stable`.
        """
        return self._long.encode_stable(text, max_tokens)

    def encode_document(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Return the tokens of a whole text with the control tokens that the checkpoint puts around texts, as for
        embeddings. Control tokens in the text are ordinary text. `max_tokens`: see `encode`."""
        before, after = self._around
        return [*before, *self.encode(text, after="control" if before else "nothing", max_tokens=max_tokens), *after]

    def adds_space(self, after: Preceding) -> bool:
        """Return whether the vocabulary puts a space before a text at such a place."""
        return after in self._leading_space

    def encode_template(self, text: str) -> list[int]:
        """Return the tokens of a text that a template rendered: control tokens are recognised."""
        if self.control_pattern is None:
            return self.encode(text, after="nothing")
        tokens: list[int] = []
        for index, piece in enumerate(self.control_pattern.split(text)):
            if index % 2:
                tokens.append(self.control[piece])
            elif piece:
                tokens.extend(self.encode(piece, after="control" if tokens else "nothing"))
        return tokens

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for; empty for ids without a text (padding of the vocabulary)."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def decode(self, tokens: list[int], *, skip_special: bool = True) -> str:
        """Return the text of a whole token list; bytes that are not UTF-8 become U+FFFD."""
        pieces = (self.token_bytes(t) for t in tokens if not (skip_special and t in self.special))
        return b"".join(pieces).decode("utf-8", errors="replace")


class Detokenizer:
    """Incremental detokenizer. Joined, its pieces equal `Tokenizer.decode` of all tokens."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int, cut: int = 0) -> str:
        """Return the text that is complete after this token: never half a character, so sometimes empty. `cut`: number
        of bytes to leave out at the token's beginning."""
        if token in self._skip:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token)[cut:])

    @property
    def has_partial_character(self) -> bool:
        """Whether part of a character is held back."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """Return the rest at the end of the tokens: U+FFFD for half a character, or nothing."""
        return self._decoder.decode(b"", final=True)


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer's JSON without added tokens, and without anything that it would put before or around a
    text."""
    plain = {**content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    plain["normalizer"] = _without_prepend(content.get("normalizer"))
    pre = content.get("pre_tokenizer")
    if pre is not None and pre.get("type") == "Metaspace":
        plain["pre_tokenizer"] = {**pre, "prepend_scheme": "never"}
    return plain


def _tokens_around(content: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the control tokens before and after a text, which the post-processor of a tokenizer adds."""
    if content.get("post_processor") is None:
        return [], []
    backend = _Backend.from_str(msgspec.json.encode({**content, "truncation": None, "padding": None}).decode())
    marked = backend.encode("a")
    inside = [index for index, special in enumerate(marked.special_tokens_mask) if not special]
    if not inside:
        return [], []
    return marked.ids[: inside[0]], marked.ids[inside[-1] + 1 :]


def _without_prepend(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    if normalizer is None or normalizer.get("type") == "Prepend":
        return None
    if normalizer.get("type") != "Sequence":
        return normalizer
    return {**normalizer, "normalizers": [part for part in normalizer["normalizers"] if part["type"] != "Prepend"]}


def _leading_space(content: dict[str, Any]) -> frozenset[Preceding]:
    """Return after which places this tokenizer puts a space before a text."""
    normalizer, pre = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    parts = [normalizer, *normalizer.get("normalizers", [])]
    scheme = pre.get("prepend_scheme", "always") if pre.get("type") == "Metaspace" else "never"
    if scheme == "always" or any(part.get("type") == "Prepend" for part in parts):
        return frozenset({"nothing", "control"})
    return frozenset({"nothing"}) if scheme == "first" else frozenset()


def _byte_table(content: dict[str, Any], control: dict[str, int]) -> list[bytes]:
    """Return the bytes of each token id, for byte-level vocabularies and for those of SentencePiece (`▁`, `<0x41>`)."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        raise CheckpointError(f"a tokenizer of type {content['model'].get('type')} is not supported; BPE is")
    size = max([*vocabulary.values(), *control.values()]) + 1
    table = [b""] * size
    if b'"ByteLevel"' in msgspec.json.encode(content.get("decoder")):
        alphabet = _byte_level_alphabet()
        for text, token in vocabulary.items():
            try:
                table[token] = text.translate(alphabet).encode("latin-1")
            except UnicodeEncodeError:  # an added token's text, which is not encoded
                table[token] = text.encode()
    else:
        for text, token in vocabulary.items():
            byte = re.fullmatch(r"<0x([0-9A-F]{2})>", text)
            table[token] = bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()
    for text, token in control.items():
        table[token] = text.encode()
    return table


def _byte_level_alphabet() -> dict[int, str]:
    """Return a translation table from GPT-2's printable stand-ins to the 256 bytes as Latin-1 (Radford et al. 2019,
    `bytes_to_unicode`)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    stand_ins = {256 + n: chr(byte) for n, byte in enumerate(hidden)}
    return stand_ins | dict.fromkeys(hidden, "\ufffd")


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


def _token_text(token: Any) -> str:
    """Return the text of a special token, which is a string or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token or ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_object(path)
