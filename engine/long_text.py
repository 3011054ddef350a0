"""Tokenise long and growing texts in pieces: the same tokens as for the whole text.

A byte-pair encoder splits a text into words and merges only inside words. So a text can be cut at borders between
words. A long word is cut at a border that no merge can cross. Let `a` be the last token before the border and `b` the
first one after it. If the text of `a` and `b` together is encoded as exactly these two tokens, then no merge crosses
the border in any text that has `a` and `b` there. Proof: assume that a merge crosses the border, and take the first
such merge. Before it, the encoder merged both sides independently. So the pieces next to the border are the same as
those when the text of `a` and `b` is encoded alone. There, the same merge would cross the border too. This contradicts
the assumption that this text is encoded as `a`, `b`.

In a growing text, `b` may change with the text after it. Without words, a border there is certain only between two
characters that stand next to each other in no token of the vocabulary: every merge makes such a token.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Encoding, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from engine.word_patterns import is_local

_CHUNK = 16_384
"""Length of the pieces that the tokenizer gets, in characters."""
_SLICE = 4_096
"""Length of the pieces of a long word that the tokenizer gets, in characters."""
_TRIES = 12
"""Maximum number of borders between tokens that are tried for one cut of a long word."""
_BATCH = 256
"""Number of short words, next to a long one, that the tokenizer gets in one batch."""
_COMPOSED = 3
"""Largest factor by which composition (NFC) shortens a text in UTF-8: iota with two marks, from six bytes to two."""
_ASSUMED = 1_024
"""Number of bytes for which at least one token is assumed, if the vocabulary may drop or shorten text."""
_LOOKS_BACK = re.compile(r"\(\?<[=!]|\\[bBAGKzZ]|(?<![\[\\])\^")
"""Pattern of the regex syntax that makes a match depend on the text before it."""


class LongTextEncoder:
    """Encoder for texts of any length. Immutable; safe to use from several threads.

    It calls `encode_batch` of the tokenizers library, which releases the GIL while it works; `encode` of that library
    does not.
    """

    def __init__(
        self, backend: Backend, content: dict[str, Any], table: Sequence[bytes], *, chunk: int = _CHUNK
    ) -> None:
        """`content`: the backend's JSON, without added tokens. `table`: the bytes of each token. `chunk`: the length of
        pieces, in characters."""
        self._backend = backend
        self._chunk, self._slice = chunk, min(chunk, _SLICE)
        model = content["model"]
        normalizers, parts = _flat_parts(content, "normalizer"), _flat_parts(content, "pre_tokenizer")
        if any(part["type"] == "Replace" and part["pattern"] == {"String": " "} for part in normalizers):
            parts = [part for part in parts if part.get("pattern") != {"String": " "}]  # no space is left to split at
        types = {part["type"] for part in parts}
        byte_level = "ByteLevel" in types
        self._composes = any(part["type"] == "NFC" for part in normalizers)
        known = all(map(_keeps_length, normalizers)) and all(map(_keeps_text, parts)) and model["type"] == "BPE"

        self._table = table
        self._max_token_bytes = max(map(len, table), default=1)
        single = {text[0] for text in table if len(text) == 1}
        self._dropped_bytes = bytes(set(range(256)) - single) if byte_level else b""
        """Bytes without a token: byte-level vocabularies drop them."""
        self._is_bounded = known and (byte_level or (bool(model.get("byte_fallback")) and len(single) == 256))

        self._can_cut = known and not any(
            map(model.get, ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        )
        self._has_words = any(map(_splits, parts))
        patterns = [part["pattern"].get("Regex", "") for part in parts if part["type"] == "Split"]
        self._can_grow = self._can_cut and all(map(is_local, patterns))
        """Whether tokens of a growing text can be known before its end."""
        self._is_byte_level = byte_level
        self._finder = Backend(models.WordLevel({"word": 0}, unk_token="word"))
        """Tokenizer that makes exactly one token of each word: it finds the words without merging anything."""
        self._words = Backend(backend.model)  # shares the vocabulary
        """Tokenizer that encodes its whole input as one word."""
        if self._can_cut:
            if parts:
                self._finder.pre_tokenizer = backend.pre_tokenizer
            if backend.normalizer is not None:
                self._finder.normalizer = self._words.normalizer = backend.normalizer
            if byte_level:
                self._words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            elif "Metaspace" in types:
                self._words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        self._vocabulary: dict[str, int] = model["vocab"]
        vocabulary = self._vocabulary
        self._unknown: int | None = vocabulary.get(model.get("unk_token"))
        self._byte_tokens: set[int] = set()
        """Tokens of single bytes (byte fallback), which are never merged."""
        if model.get("byte_fallback"):
            written = [text for text in vocabulary if "<0x" in text]
            if all(map(_BYTE.fullmatch, written)):
                self._byte_tokens = {vocabulary[text] for text in written}

    def minimum_tokens(self, text: str, *, is_part: bool = False) -> int:
        """Return a lower bound of a text's number of tokens, without tokenising it. `is_part`: only of those tokens
        that begin in it, if it is part of a larger text.

        Every byte of the text is in one token, and the length of the longest token is known. That is not so for
        vocabularies that may drop or shorten text: for these, one token for each 1,024 bytes is assumed.
        """
        encoded = text.encode()
        if not self._is_bounded:
            return len(encoded) // _ASSUMED
        if self._dropped_bytes:
            encoded = encoded.translate(None, self._dropped_bytes)
        shrinks = _COMPOSED if self._composes and not unicodedata.is_normalized("NFC", text) else 1
        divisor = self._max_token_bytes * shrinks
        return len(encoded) // divisor if is_part else -(-len(encoded) // divisor)

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Return the tokens of a text. After more than `max_tokens` tokens, the rest may be left out."""
        if not self._can_cut or len(text) <= self._chunk:
            return self._encode_whole(text)
        if self._composes and not unicodedata.is_normalized("NFC", text):
            assert self._backend.normalizer is not None
            text = self._backend.normalizer.normalize_str(text)
        if not self._has_words:
            return self._encode_word(text)
        tokens: list[int] = []
        position = 0
        while max_tokens is None or len(tokens) <= max_tokens:
            chunk = text[position : position + self._chunk]
            if position + len(chunk) == len(text):
                return tokens + self._encode_whole(chunk)
            (encoding,) = self._backend.encode_batch([chunk], add_special_tokens=False)
            if cut := _last_border(chunk, encoding):
                count, length = cut
                tokens += encoding.ids[:count]
                position += length
            else:
                position += self._append_long_words(text, position, tokens)
        return tokens

    def encode_stable(self, text: str, max_tokens: int | None = None) -> tuple[list[int], str]:
        """Return the tokens of the longest beginning of a growing text that later text cannot change, as far as that is
        known, and the rest of the text.

        They equal the first tokens of the whole text, and those of the rest follow them. The rest may be normalised.
        After more than `max_tokens` tokens, more of the text may be in the rest.
        """
        if not self._can_grow:
            return [], text
        end = len(text)
        if self._composes:  # later text may change the last character and the marks on it
            if not unicodedata.is_normalized("NFC", text):
                assert self._backend.normalizer is not None
                text = self._backend.normalizer.normalize_str(text)
            end = _last_starter(text)
        if not self._has_words:
            end = self._last_unmerged(text, end)
            return self.encode(text[:end]), text[end:]
        tokens: list[int] = []
        position = 0
        while position < end and (max_tokens is None or len(tokens) <= max_tokens):
            chunk = text[position : min(position + self._chunk, end)]
            (encoding,) = self._backend.encode_batch([chunk], add_special_tokens=False)
            if cut := _last_border(chunk, encoding):
                count, length = cut
                tokens += encoding.ids[:count]
            else:
                length = self._append_long_words(text[:end], position, tokens, is_growing=True)
            position += length
            if not length or len(chunk) < self._chunk:
                break
        return tokens, text[position:]

    def _last_unmerged(self, text: str, end: int) -> int:
        """Return the last position before `end` that no merge can cross, whatever text follows; 0 if there is none."""
        for index in range(end - 1, 0, -1):
            if not self._can_merge(text[index - 1], text[index]):
                return index
        return 0

    def _can_merge(self, left: str, right: str) -> bool:
        """Return whether two adjacent characters may become part of one token."""
        if self._is_byte_level:
            left, right = left.encode().decode("latin-1"), right.encode().decode("latin-1")
            return left[-1] + right[0] in self._pairs
        left, right = left.replace(" ", "▁"), right.replace(" ", "▁")
        if left + right in self._pairs:
            return True
        # adjacent unknown characters may become one unknown token
        return not self._byte_tokens and left not in self._vocabulary and right not in self._vocabulary

    @cached_property
    def _pairs(self) -> frozenset[str]:
        """Pairs of adjacent characters in the tokens; of adjacent bytes, as Latin-1, for byte-level vocabularies."""
        pairs: set[str] = set()
        texts = [token.decode("latin-1") for token in self._table] if self._is_byte_level else list(self._vocabulary)
        for text in texts:
            pairs.update([text[index : index + 2] for index in range(len(text) - 1)])
        return frozenset(pairs)

    def _encode_whole(self, text: str) -> list[int]:
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def _append_long_words(self, text: str, position: int, tokens: list[int], *, is_growing: bool = False) -> int:
        """Append tokens of the text from `position` on, up to a border between words.

        It is for places where a chunk has no such border, because of long words. Returns the number of characters
        whose tokens were appended. If the text `is_growing`, its end is no border.
        """
        size = 2 * self._chunk
        while True:
            chunk = text[position : position + size]
            (found,) = self._finder.encode_batch([chunk], add_special_tokens=False)
            words = found.offsets
            count = _first_border(chunk, words, self._chunk // 2)
            if count is not None:
                words = words[:count]
            elif position + len(chunk) < len(text):
                size *= 2
                continue
            elif is_growing:
                return 0
            short: list[str] = []
            for start, end in words:
                if end - start <= self._slice:
                    short.append(chunk[start:end])
                    if len(short) < _BATCH:
                        continue
                tokens += self._encode_short_words(short)
                short = []
                if end - start > self._slice:
                    tokens += self._encode_word(chunk[start:end])
            tokens += self._encode_short_words(short)
            return words[-1][1]

    def _encode_short_words(self, words: list[str]) -> list[int]:
        return [token for word in self._words.encode_batch_fast(words, add_special_tokens=False) for token in word.ids]

    def _encode_word(self, word: str) -> list[int]:
        """Return the tokens of one long word; see the proof at the top of this module."""
        tokens: list[int] = []
        position = 0
        encoding = self._encode_slice(word, 0)
        while position + self._slice < len(word):
            for index in range(len(encoding.ids) - 2, max(-1, len(encoding.ids) - 2 - _TRIES), -1):
                length = encoding.offsets[index][1]
                if length != encoding.offsets[index + 1][0]:
                    continue  # the border is inside a character
                following = self._encode_slice(word, position + length)
                if following.ids and self._never_merge(encoding.ids[index], following.ids[0]):
                    tokens += encoding.ids[: index + 1]
                    position += length
                    encoding = following
                    break
            else:
                (whole,) = self._words.encode_batch_fast([word], add_special_tokens=False)
                ids: list[int] = whole.ids
                return ids
        return tokens + encoding.ids

    def _encode_slice(self, word: str, position: int) -> Encoding:
        (encoding,) = self._words.encode_batch([word[position : position + self._slice]], add_special_tokens=False)
        return encoding

    def _never_merge(self, left: int, right: int) -> bool:
        if left in self._byte_tokens or right in self._byte_tokens:
            return True
        if self._unknown in (left, right):
            return left != right  # two unknown tokens next to each other may become one
        model = self._backend.model
        text = model.id_to_token(left) + model.id_to_token(right)
        return [token.id for token in model.tokenize(text)] == [left, right]


def _last_starter(text: str) -> int:
    """Return the position of the last character that composition (NFC) never joins to the text before it; 0 if there is
    none. Later text may compose with that character, and with those after it."""
    for index in range(len(text) - 1, 0, -1):
        if not may_compose(text[index]):
            return index
    return 0


def may_compose(character: str) -> bool:
    """Return whether composition (NFC) may join a character to the text before it: marks, vowels and final consonants
    of Hangul, and vowels of Kirat Rai."""
    code = ord(character)
    if code < 0x300:
        return False
    if 0x1160 <= code < 0x1200 or 0x16D63 <= code <= 0x16D6A:
        return True
    return unicodedata.combining(character) > 0 or unicodedata.category(character).startswith("M")


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def _flat_parts(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the parts of a normalizer or pre-tokenizer, with sequences flattened."""
    part = content.get(name)
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    children = part["pretokenizers" if name == "pre_tokenizer" else f"{name}s"]
    return [flat for child in children for flat in _flat_parts({name: child}, name)]


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """Return whether the normalizer changes lengths only by composition, or replaces single spaces by `▁`."""
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == {"String": " "} and normalizer["content"] == "▁")
    return bool(normalizer["type"] == "NFC")


def _keeps_text(part: dict[str, Any]) -> bool:
    """Return whether the pre-tokenizer drops no text, and finds words independently of the text before them."""
    if part["type"] == "Split":
        pattern = part["pattern"].get("Regex", "")
        return part["behavior"] == "Isolated" and (is_local(pattern) or not _LOOKS_BACK.search(pattern))
    if part["type"] == "Metaspace":
        return bool(part.get("replacement", "▁") == "▁")
    return bool(part["type"] == "Digits") or (part["type"] == "ByteLevel" and not part.get("add_prefix_space"))


def _splits(part: dict[str, Any]) -> bool:
    """Return whether the pre-tokenizer splits a text into words."""
    if part["type"] == "ByteLevel":
        return bool(part.get("use_regex", True))
    return part["type"] != "Metaspace" or bool(part.get("split", True))


def _last_border(chunk: str, encoding: Encoding) -> tuple[int, int] | None:
    """Find the last border between words that stays a border, whatever text follows the chunk.

    Return the numbers of tokens and of characters before it; None if there is no such border.

    At least two words that are not white space stand after the border: the last of them may continue after the chunk.
    The character before the border is not white space either: white space at the end of a text is split differently
    from white space before a word.
    """
    words, offsets = encoding.word_ids, encoding.offsets
    words_after, end = 0, len(words)
    for index in range(len(words) - 1, 0, -1):
        if words[index] == words[index - 1]:
            continue
        start = offsets[index][0]
        if end < len(words) and not chunk[start : offsets[end - 1][1]].isspace():
            words_after += 1
        end = index
        if words_after >= 2 and not chunk[start - 1].isspace():
            return index, start
    return None


def _first_border(chunk: str, words: Sequence[tuple[int, int]], minimum: int) -> int | None:
    """Return the number of words before the first such border with at least `minimum` characters before it, or None."""
    visible = [index for index, (start, end) in enumerate(words[:-1]) if not chunk[start:end].isspace()]
    if len(visible) < 2:
        return None
    for index in range(1, visible[-2] + 1):
        start = words[index][0]
        if start >= minimum and not chunk[start - 1].isspace():
            return index
    return None
