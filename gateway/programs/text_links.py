"""Find texts of answers again in later prompts.

Two texts have 40 characters in common only if a window of 17 characters occurs in both, at each of 24 positions that
follow each other. Answers are indexed at 4 positions of each 24, and prompts are looked up at each 4th position. One of
the 24 positions is in both sets, however the texts are shifted against each other. So a search takes a lookup for every
4 characters of a prompt, and no common text is missed. (The positions are a difference cover, as in Burkhardt and
Kärkkäinen, "Fast lightweight suffix array construction and checking", CPM'03.) Each find is then compared character by
character.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from gateway.graph.limits import SharedLimit

Source = TypeVar("Source", bound=Hashable)

MIN_CHARACTERS = 40
"""Shortest part of an answer that is a link, in characters (code points)."""
MIN_WHOLE_CHARACTERS = 16
"""Shortest answer that is a link if it is a whole text of a prompt, in characters."""
_STEP = 4
"""Distance of the positions at which a prompt is looked up, and number of consecutive positions that are indexed."""
_PERIOD = 6 * _STEP
"""Distance of the indexed groups of positions."""
_WINDOW = MIN_CHARACTERS - _PERIOD + 1
"""Length of the windows that are hashed, in characters."""
_MARKS = b"\1" * _WINDOW
"""Marks of the characters of a window."""
MAX_INDEXED = 32_768
"""Maximum number of characters of one answer that are indexed: half of them at its start, half at its end."""
_MAX_SEARCHED = 131_072
"""Maximum number of characters of one prompt that are searched."""
_MAX_SOURCES = 8
"""Maximum number of answers that are remembered for one window: the newest."""
_MAX_LINKS = 128
"""Maximum number of links of one prompt."""
_MAX_COMPARISONS = 4_096
"""Maximum number of places at which the texts are compared for one prompt. Repetitive texts have more."""
_SCANNED_PER_COMPARISON = 256
"""Number of characters that are scanned for a window in about the time of one comparison, in repetitive texts."""
_MAX_SCANNED = 65_536
"""Maximum number of characters of one prompt that are scanned for windows of an answer, before hashes are compared."""
_ANSWER_BYTES, _WINDOW_BYTES = 900, 90
"""Approximate memory of an answer beside its text, and of a window, in bytes."""


@dataclass(frozen=True, slots=True)
class TextLink(Generic[Source]):
    """Text of an answer that stands in a prompt.

    `length`: characters that were found in one piece. `share`: their share of the answer. `is_prompt`: whether a whole
    text of the prompt stands in the answer, as the prompt of a sub-agent does. `is_common`: whether sources of other
    owners contain this part too; then it is not known where the prompt's text is from.
    """

    source: Source
    length: int
    share: float
    is_prompt: bool
    is_common: bool


@dataclass(eq=False, slots=True)
class _Answer(Generic[Source]):
    """An indexed text. `windows`: hashes under which it is in the index. `whole`: hash of the whole text. `copied`:
    marks the characters that it copied from its own prompt; empty if there are none."""

    source: Source
    owner: object
    text: str
    whole: int
    windows: tuple[int, ...]
    size: int
    copied: bytes
    is_common: bool = False


@dataclass(eq=False, slots=True)
class _Tenant(Generic[Source]):
    """The answers of one tenant, oldest first, and the index of their windows."""

    answers: "OrderedDict[int, _Answer[Source]]" = field(default_factory=OrderedDict)
    windows: "dict[int, _Answer[Source] | tuple[_Answer[Source], ...]]" = field(default_factory=dict)
    wholes: "dict[int, _Answer[Source]]" = field(default_factory=dict)
    of_source: dict[Source, list[int]] = field(default_factory=dict)


class TextLinks(Generic[Source]):
    """Owner of the texts of recent answers, by tenant and source. A prompt is searched only for its tenant's answers.

    The memory is bounded: the oldest answer of the tenant with the most bytes is forgotten first, so a tenant displaces
    only its own answers unless it has less than its share. The limits of a search are constants of this module; beyond
    them links are missed, but never invented.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        several_tenants: bool = True,
        owner_of: Callable[[Source], Hashable] = lambda source: source,
    ) -> None:
        """`max_bytes`: maximum memory of all tenants together. `owner_of`: owner of a source. A text that only sources
        of one owner contain is not common."""
        self._limit = SharedLimit(max_bytes, several=several_tenants)
        self._owner_of = owner_of
        self._tenants: dict[str, _Tenant[Source]] = {}
        self._numbers = 0

    @property
    def bytes(self) -> int:
        """Approximate memory of all answers, in bytes."""
        return sum(map(self._limit.amount, self._tenants))

    def add(
        self,
        tenant: str,
        source: Source,
        texts: Iterable[str],
        prompt: Sequence[str] = (),
        *,
        most: int = MAX_INDEXED,
    ) -> None:
        """Remember the texts of an answer.

        `prompt`: texts of its own prompt. Text that the answer copied from them is not indexed: a later prompt probably
        got it from the same place as this prompt. `most`: number of characters at the start of each text in which
        common text must begin.
        """
        for text in texts:
            stripped = text.strip()
            if len(stripped) >= MIN_WHOLE_CHARACTERS:
                self._add_text(tenant, source, _shortened(stripped), prompt, most)

    def _add_text(self, tenant: str, source: Source, text: str, prompt: Sequence[str], most: int) -> None:
        end = min(len(text), most)
        keys = _indexed_keys(text, end)
        whole = hash(text)
        copied = _copied(text, keys, prompt)
        if copied:
            if 0 not in copied:  # the prompt has all of it
                return
            keys, whole = _indexed_keys(text, end, copied), 0
        held = self._tenants.get(tenant)
        if held is None:
            held = self._tenants[tenant] = _Tenant()
        length = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        size = _ANSWER_BYTES + length + len(copied) + _WINDOW_BYTES * len(keys)
        answer = _Answer(source, self._owner_of(source), text, whole, tuple(keys), size, copied)
        self._numbers += 1
        held.answers[self._numbers] = answer
        held.of_source.setdefault(source, []).append(self._numbers)
        if whole:
            twin = held.wholes.get(whole)
            if twin is not None and twin.owner != answer.owner:
                twin.is_common = answer.is_common = True
            held.wholes[whole] = answer
        windows = held.windows
        if windows.keys().isdisjoint(keys):
            windows.update(dict.fromkeys(keys, answer))  # a third of the time of the loop below
        else:
            for key in keys:
                before = windows.setdefault(key, answer)
                if before is not answer:
                    others = before[1 - _MAX_SOURCES :] if isinstance(before, tuple) else (before,)
                    windows[key] = (*others, answer)
        self._limit.add(tenant, size)
        self._make_room(tenant)

    def _make_room(self, tenant: str) -> None:
        while not self._limit.has_room(tenant, 0) and self._tenants[tenant].answers:
            self._forget_oldest(tenant)
            if tenant not in self._tenants:
                return
        for largest in self._limit.excess_holders():
            self._forget_oldest(largest)

    def _forget_oldest(self, tenant: str) -> None:
        held = self._tenants[tenant]
        number, answer = next(iter(held.answers.items()))
        numbers = held.of_source[answer.source]
        numbers.remove(number)
        if not numbers:
            del held.of_source[answer.source]
        self._forget(tenant, held, number)

    def remove(self, tenant: str, source: Source) -> int:
        """Forget the texts of a source. Return the number of their windows, to which the time is proportional."""
        held = self._tenants.get(tenant)
        if held is None:
            return 0
        return sum([self._forget(tenant, held, number) for number in held.of_source.pop(source, ())])

    def _forget(self, tenant: str, held: "_Tenant[Source]", number: int) -> int:
        answer = held.answers.pop(number)
        if held.wholes.get(answer.whole) is answer:
            del held.wholes[answer.whole]
        windows = held.windows
        for key in answer.windows:
            found = windows.pop(key, None)
            if found is not answer and found is not None:
                left = tuple([other for other in found if other is not answer]) if isinstance(found, tuple) else found
                windows[key] = left[0] if isinstance(left, tuple) and len(left) == 1 else left
        self._limit.remove(tenant, answer.size)
        if not held.answers:
            del self._tenants[tenant]
        return len(answer.windows)

    def find(self, tenant: str, texts: Iterable[str]) -> list[TextLink[Source]]:
        """Return the answers that stand in the texts of a prompt, whole or in parts, each source once."""
        held = self._tenants.get(tenant)
        if held is None:
            return []
        found: dict[Source, TextLink[Source]] = {}
        work = [_MAX_COMPARISONS]
        left = _MAX_SEARCHED
        for text in texts:
            if len(text) < MIN_WHOLE_CHARACTERS:
                continue
            stripped = text.strip()
            whole = held.wholes.get(hash(stripped)) if len(stripped) <= MAX_INDEXED else None
            if whole is not None and whole.text == stripped:
                is_prompt = len(stripped) >= MIN_CHARACTERS
                link = TextLink(whole.source, len(stripped), 1.0, is_prompt, whole.is_common)
                found.setdefault(whole.source, link)
            if left > 0 and len(text) >= MIN_CHARACTERS:
                self._search(held, text[:left], stripped, found, work)
                left -= len(text)
            if len(found) >= _MAX_LINKS:
                break
        return list(found.values())

    def _search(
        self,
        held: "_Tenant[Source]",
        text: str,
        stripped: str,
        found: dict[Source, TextLink[Source]],
        work: list[int],
    ) -> None:
        """Add the links of one text. `work`: number of comparisons that are left."""
        windows = held.windows
        keys = _searched_keys(text)
        if windows.keys().isdisjoint(keys):  # half the time of an intersection
            return
        known = windows.keys() & set(keys)
        for number, key in enumerate(keys):
            if key not in known:
                continue
            entry, index = windows[key], number * _STEP
            answers = entry if isinstance(entry, tuple) else (entry,)
            is_shared = len(answers) > 1 and len({answer.owner for answer in answers}) > 1
            is_settled = True
            for answer in reversed(answers):
                before = found.get(answer.source)
                if before is not None and (not before.is_common or is_shared or answer.is_common):
                    continue
                if work[0] <= 0 or len(found) >= _MAX_LINKS:
                    return
                common = _common_range(answer.text, text, index, work, answer.copied)
                if common is None:
                    is_settled = False
                    continue
                length = common.end - common.start
                is_prompt = len(stripped) >= MIN_CHARACTERS and stripped in answer.text
                share = length / len(answer.text)
                is_common = is_shared or answer.is_common
                found[answer.source] = TextLink(answer.source, length, share, is_prompt, is_common)
            if is_settled:  # the same window further on shows nothing new
                known.discard(key)


def _shortened(text: str) -> str:
    """Return the part of a text that is indexed."""
    return text if len(text) <= MAX_INDEXED else text[: MAX_INDEXED // 2] + "\0" + text[-MAX_INDEXED // 2 :]


def _indexed_windows(text: str) -> Iterator[tuple[int, int]]:
    """Yield the positions at which a text is indexed, with the hashes of the windows there."""
    for offset in range(_STEP):
        for position in range(offset, len(text) - _WINDOW + 1, _PERIOD):
            yield position, hash(text[position : position + _WINDOW])


def _indexed_keys(text: str, end: int, copied: bytes = b"") -> set[int]:
    """Return the hashes under which a text is indexed up to `end`. `copied`: marks characters; windows of marked ones
    are left out."""
    last = min(len(text) - _WINDOW + 1, end)
    return {
        hash(text[index : index + _WINDOW])
        for offset in range(_STEP)
        for index in range(offset, last, _PERIOD)
        if not copied or not copied.startswith(_MARKS, index)
    }


def _searched_keys(text: str) -> list[int]:
    """Return the hashes at which a text is looked up, one for each `_STEP` characters."""
    return list(map(hash, [text[index : index + _WINDOW] for index in range(0, len(text) - _WINDOW + 1, _STEP)]))


class _CommonRange(NamedTuple):
    """A range of an answer that a text has in common with it."""

    start: int
    end: int


def _common_range(answer: str, text: str, index: int, work: list[int], copied: bytes = b"") -> _CommonRange | None:
    """Return the range of the answer that the text has in common around the window at `index`; None if it is shorter
    than `MIN_CHARACTERS`. `work`: number of comparisons that are left. `copied`: marks characters of the answer;
    windows of marked ones are ignored.

    It takes time in proportion to the range, besides the search for the window.
    """
    window = text[index : index + _WINDOW]
    at = answer.find(window)
    work[0] -= (at if at >= 0 else len(answer)) // _SCANNED_PER_COMPARISON
    while at >= 0 and work[0] > 0:
        work[0] -= 1
        if not copied.startswith(_MARKS, at):
            common = _range_around(answer, at, text, index)
            if common.end - common.start >= MIN_CHARACTERS:
                return common
        start = at + 1
        at = answer.find(window, start)
        work[0] -= ((at if at >= 0 else len(answer)) - start) // _SCANNED_PER_COMPARISON
    return None


def _range_around(answer: str, at: int, text: str, index: int) -> _CommonRange:
    """Return the range of the answer around `at` that the text has in common with it around `index`."""
    return _CommonRange(at - _equal_length(answer, at, text, index, -1), at + _equal_length(answer, at, text, index, 1))


def _equal_length(answer: str, at: int, text: str, index: int, direction: int) -> int:
    """Return how many characters are equal from these positions on, or before them. `direction`: 1 or -1."""
    limit = min(len(answer) - at, len(text) - index) if direction > 0 else min(at, index)
    found, size = 0, _PERIOD
    while found < limit:  # compare growing pieces, then halve the one that differs
        size = min(size, limit - found)
        shift = found if direction > 0 else -found - size
        if answer[at + shift : at + shift + size] == text[index + shift : index + shift + size]:
            found += size
            size *= 2
        elif size == 1:
            break
        else:
            size //= 2
            limit = min(limit, found + 2 * size + 1)
    return found


def _copied(answer: str, indexed: set[int], prompt: Sequence[str]) -> bytes:
    """Return marks for the characters of an answer that it has copied from its own prompt, however often; nothing if
    there are none. `indexed`: hashes under which the answer is indexed.

    The indexed positions of the answer find each copy of at least `MIN_CHARACTERS`, as in a search.
    """
    copied: bytearray | None = None
    places: dict[int, list[int]] = {}
    """Indexed positions of the answer that are not marked, by the hash of the window there."""
    # `MIN_CHARACTERS` in common contain one of these windows: to scan short texts for them is faster than to hash
    samples = [answer[index : index + _WINDOW] for index in range(0, len(answer) - _WINDOW + 1, _PERIOD)]
    work, left, scanned = _MAX_COMPARISONS, _MAX_SEARCHED, _MAX_SCANNED
    for whole in prompt:
        if left <= 0:
            break
        text, left = whole[:left], left - len(whole)
        if len(text) < MIN_CHARACTERS:
            continue
        scanned -= len(samples) * len(text)
        if scanned >= 0 and not any(sample in text for sample in samples):
            continue
        keys = _searched_keys(text)
        known = indexed.intersection(keys)
        if not known:
            continue
        if copied is None:
            copied = bytearray(len(answer))
            for position, key in _indexed_windows(answer):
                if key in indexed:
                    places.setdefault(key, []).append(position)
        for number, key in enumerate(keys):
            if key not in known:
                continue
            unmarked: list[int] = []
            for position in places[key]:
                if copied.startswith(_MARKS, position):
                    continue
                if work <= 0:
                    return bytes(copied)
                work -= 1
                start, end = _range_around(answer, position, text, number * _STEP)
                if end - start >= MIN_CHARACTERS:
                    copied[start:end] = b"\1" * (end - start)
                else:
                    unmarked.append(position)
            places[key] = unmarked
            if not unmarked:
                known.discard(key)
    return bytes(copied) if copied is not None and 1 in copied else b""
