"""Find texts of answers again in later prompts.

An index of the windows of all answers gives the places at which a prompt and an answer may have text in common; see
`text_windows`. Each find is then compared character by character.
"""

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from gateway.graph.limits import SharedLimit
from gateway.programs.text_windows import (
    PERIOD,
    WINDOW,
    Keys,
    WindowFilter,
    hash_indexed_windows,
)

Source = TypeVar("Source", bound=Hashable)

MIN_CHARACTERS = 40
"""Shortest part of an answer that is a link, in characters (code points): `WINDOW + PERIOD - 1`, so that each such part
contains an indexed window."""
MIN_WHOLE_CHARACTERS = 16
"""Shortest answer that is a link if it is a whole text of a prompt, in characters."""
_MARKS = b"\1" * WINDOW
"""Marks of the characters of a window."""
MAX_INDEXED = 32_768
"""Maximum number of characters of one answer that are indexed: half of them at its start, half at its end."""
_MAX_SEARCHED = 131_072
"""Maximum number of characters of one prompt that are searched."""
_MAX_SOURCES = 8
"""Maximum number of answers in the index for one window. The index retains the newest."""
_MAX_LINKS = 128
"""Maximum number of links of one prompt."""
_MAX_FOUND = 32_768
"""Maximum number of positions of one prompt that are looked up after the filter. Only repetitive texts have more."""
_MAX_PIECES = 8
"""Maximum number of pieces of one source that are found in one prompt."""
_CHANCE_CHARACTERS = 8
"""Number of characters at an end of a piece that may be equal to those of an answer by chance."""
_MAX_COMPARISONS = 4_096
"""Maximum number of places at which the texts are compared for one prompt. Repetitive texts have more."""
_CHARACTERS_PER_COMPARISON = 256
"""Number of characters of a common text, or of windows of an answer, that take about the time of one comparison."""
_RARE = 8
"""Maximum number of positions of one prompt at which a rare window occurs."""
_MAX_SCANNED = 65_536
"""Maximum number of characters that are scanned to search each window of an answer in its own prompt: length of the
texts, multiplied by the number of windows. Texts beyond it are hashed."""
_CAPACITY_PER_WINDOW = 8
"""Capacity of the filter for one answer, in windows for each window of the answer. More capacity lets fewer other
windows pass."""
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
    """An indexed text. `windows`: hashes at its indexed positions, -1 where the window is not in the index. The filter
    has the hashes of all of them. `whole`: hash of the whole text."""

    source: Source
    owner: object
    text: str
    whole: int
    windows: tuple[int, ...]
    size: int


_Answers = dict[int, _Answer[Source] | tuple[_Answer[Source], ...]]
"""Answers by a hash, the newest last."""


def _append(answers: _Answers[Source], key: int, answer: _Answer[Source]) -> None:
    """Add an answer under a hash, once."""
    before = answers.setdefault(key, answer)
    if before is not answer:
        others = before[1 - _MAX_SOURCES :] if isinstance(before, tuple) else (before,)
        answers[key] = (*others, answer)


def _discard(answers: _Answers[Source], key: int, answer: _Answer[Source]) -> None:
    """Remove an answer from under a hash. Do nothing if it is not there."""
    found = answers.get(key)
    if found is answer:
        del answers[key]
    elif isinstance(found, tuple):
        left = tuple([other for other in found if other is not answer])
        answers[key] = left[0] if len(left) == 1 else left


def _add_windows(windows: _Answers[Source], answer: _Answer[Source]) -> None:
    """Add an answer under the hashes of its windows."""
    keys = dict.fromkeys(answer.windows, answer)
    keys.pop(-1, None)
    if windows.keys().isdisjoint(keys):
        windows.update(keys)  # a third of the time of the loop below
        return
    for key in keys:
        _append(windows, key, answer)


@dataclass(eq=False, slots=True)
class _Tenant(Generic[Source]):
    """The answers of one tenant, oldest first, and the index of their windows."""

    answers: "OrderedDict[int, _Answer[Source]]" = field(default_factory=OrderedDict)
    windows: _Answers[Source] = field(default_factory=dict)
    wholes: _Answers[Source] = field(default_factory=dict)
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
        self._filter = WindowFilter(max_bytes // _WINDOW_BYTES)
        """The windows of all tenants' answers. A window that only others have costs a lookup, and is no link."""
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
        got it from the same place as this prompt. `most`: number of characters at the start of each text in which the
        first indexed window of common text must begin.
        """
        work = [_MAX_COMPARISONS]
        for text in texts:
            stripped = text.strip()
            if len(stripped) >= MIN_WHOLE_CHARACTERS:
                self._add_text(tenant, source, _shortened(stripped), prompt, most, work)

    def _add_text(
        self, tenant: str, source: Source, text: str, prompt: Sequence[str], most: int, work: list[int]
    ) -> None:
        hashes = hash_indexed_windows(text, min(len(text), most))
        keys, whole = hashes[:, 0].tolist(), hash(text)
        copied = _copied(text, hashes, prompt, work)
        if copied:
            if 0 not in copied:  # the prompt has all of it
                return
            keys = [-1 if copied.startswith(_MARKS, number * PERIOD) else key for number, key in enumerate(keys)]
            whole = 0
        held = self._tenants.get(tenant)
        if held is None:
            held = self._tenants[tenant] = _Tenant()
        length = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        size = _ANSWER_BYTES + length + _WINDOW_BYTES * len(keys)
        answer = _Answer(source, self._owner_of(source), text, whole, tuple(keys), size)
        self._numbers += 1
        held.answers[self._numbers] = answer
        held.of_source.setdefault(source, []).append(self._numbers)
        if whole:
            _append(held.wholes, whole, answer)
        self._filter.add(hashes)
        _add_windows(held.windows, answer)
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
        _discard(held.wholes, answer.whole, answer)
        for key in answer.windows:
            _discard(held.windows, key, answer)
        self._filter.remove(hash_indexed_windows(answer.text, PERIOD * len(answer.windows)))
        self._limit.remove(tenant, answer.size)
        if not held.answers:
            del self._tenants[tenant]
        return len(answer.windows)

    def find(self, tenant: str, texts: Iterable[str]) -> list[TextLink[Source]]:
        """Return the answers that stand in the texts of a prompt, whole or in parts, each source once."""
        held = self._tenants.get(tenant)
        if held is None:
            return []
        pieces: dict[Source, list[_Piece[Source]]] = {}
        searched: list[str] = []
        left = _MAX_SEARCHED
        end = beside = 0
        """`end`: length of the joined texts. `beside`: lowest position of whole texts that are not searched. These have
        positions below 0, so they never overlap the joined texts."""
        for text in texts:
            if len(text) < MIN_WHOLE_CHARACTERS:
                continue
            stripped = text.strip()
            entry = held.wholes.get(hash(stripped)) if len(stripped) <= MAX_INDEXED else None
            equal = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
            if equal and equal[-1].text == stripped and equal[-1].source not in pieces:
                newest = equal[-1]
                is_common = len({answer.owner for answer in equal}) > 1
                is_long = len(stripped) >= MIN_CHARACTERS
                start = end + len(text) - len(text.lstrip()) if is_long and left > 0 else beside - len(text) - 1
                beside = min(beside, start)
                pieces[newest.source] = [_Piece(newest, start, start + len(stripped), is_long, is_common)]
                if len(pieces) >= _MAX_LINKS:
                    break
            if left > 0 and len(text) >= MIN_CHARACTERS:
                searched.append(text[:left])
                end += len(searched[-1]) + 1
                left -= len(text)
        if searched and len(pieces) < _MAX_LINKS:
            self._search(held, _Texts(searched, is_cut=left < 0), pieces)
        return _links(pieces) if pieces else []

    def _search(self, held: "_Tenant[Source]", texts: "_Texts", pieces: "dict[Source, list[_Piece[Source]]]") -> None:
        """Add the pieces of texts that stand in answers."""
        windows = held.windows
        work = [_MAX_COMPARISONS]
        settled: set[tuple[int, int]] = set()
        """Pairs of the number of a text and the hash of a window, whose answers were all found: other occurrences in
        this text are skipped."""
        found = [place for place in self._filter.find(texts.joined, _MAX_FOUND) if place[1] in windows]
        for position, key in _rare_first(found):
            place = texts.at(position)
            if place is None or (place.number, key) in settled:
                continue
            entry = windows[key]
            is_settled = True
            for answer in reversed(entry) if isinstance(entry, tuple) else (entry,):
                known = pieces.get(answer.source, ())
                if len(known) >= _MAX_PIECES or any(piece.start <= position < piece.end for piece in known):
                    continue
                if work[0] <= 0 or len(pieces) >= _MAX_LINKS:
                    return
                common = _common_range(answer, key, place.text, place.position, work)
                if common is None:
                    is_settled = False
                    continue
                start, end = (position - place.position + edge for edge in common)
                is_prompt = texts.is_whole(place.number, common)
                pieces.setdefault(answer.source, []).append(_Piece(answer, start, end, is_prompt))
            if is_settled:
                settled.add((place.number, key))


@dataclass(slots=True)
class _Piece(Generic[Source]):
    """A piece of a prompt's joined texts, from `start` to `end`, that stands in an answer."""

    answer: _Answer[Source]
    start: int
    end: int
    is_prompt: bool
    is_common: bool = False


def _links(pieces: dict[Source, list[_Piece[Source]]]) -> list[TextLink[Source]]:
    """Return a link for each source, in the order of the prompt: for its longest piece that is not common, or for its
    longest piece."""
    _mark_common([piece for of_source in pieces.values() for piece in of_source])
    links = []
    for source, of_source in sorted(pieces.items(), key=lambda entry: min(piece.start for piece in entry[1])):
        best = max(of_source, key=lambda piece: (not piece.is_common, piece.end - piece.start))
        length = best.end - best.start
        is_prompt = any(piece.is_prompt for piece in of_source)
        links.append(TextLink(source, length, length / len(best.answer.text), is_prompt, best.is_common))
    return links


def _mark_common(pieces: list[_Piece[Source]]) -> None:
    """Mark each piece that lies within a piece of another owner, but for some characters at its ends that are equal by
    chance."""
    pieces.sort(key=lambda piece: piece.start)
    longest: dict[object, int] = {}
    """Ends of the pieces that begin before this piece, by owner: of the two owners whose pieces end last."""
    begun = 0
    for piece in pieces:
        while begun < len(pieces) and pieces[begun].start <= piece.start + _CHANCE_CHARACTERS:
            owner, end = pieces[begun].answer.owner, pieces[begun].end
            longest[owner] = max(end, longest.get(owner, end))
            if len(longest) > 2:
                del longest[min(longest, key=longest.__getitem__)]
            begun += 1
        own, least = piece.answer.owner, piece.end - _CHANCE_CHARACTERS
        is_within = any(owner != own and end >= least for owner, end in longest.items())
        piece.is_common = piece.is_common or is_within


class _CommonRange(NamedTuple):
    """A range of a text that it has in common with another one."""

    start: int
    end: int


class _Place(NamedTuple):
    """A window of a text: the number of the text, the text, and the position of the window in it."""

    number: int
    text: str
    position: int


class _Texts:
    """Texts of a prompt, joined, because one long text is searched in less time than many short ones."""

    def __init__(self, texts: Sequence[str], *, is_cut: bool = False) -> None:
        """`is_cut`: whether the last text is only the beginning of one."""
        self._texts = texts
        self._cut = len(texts) - 1 if is_cut else -1
        self._starts = [0]
        for text in texts[:-1]:
            self._starts.append(self._starts[-1] + len(text) + 1)
        self._stripped: dict[int, _CommonRange] = {}
        self.joined = "\0".join(texts)

    def at(self, position: int) -> _Place | None:
        """Return the window at a position of the joined texts; None if it reaches beyond its text."""
        number = bisect_right(self._starts, position) - 1
        text, index = self._texts[number], position - self._starts[number]
        return _Place(number, text, index) if index + WINDOW <= len(text) else None

    def is_whole(self, number: int, part: _CommonRange) -> bool:
        """Return whether a part of a text is all of it, but for white space, and long enough."""
        stripped = self._stripped.get(number)
        if stripped is None:
            text = self._texts[number]
            stripped = self._stripped[number] = _CommonRange(len(text) - len(text.lstrip()), len(text.rstrip()))
        is_long = stripped.end - stripped.start >= MIN_CHARACTERS
        return is_long and number != self._cut and part.start <= stripped.start and part.end >= stripped.end


def _rare_first(found: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """Sort positions and their hashes: hashes at more than `_RARE` positions come last, otherwise the order stays.

    The number of comparisons is bounded. Repetitive texts, such as lines of dashes, need many, so they are compared
    after all others.
    """
    if len(found) <= _RARE:
        return found
    counts = Counter([key for _, key in found])
    return sorted(found, key=lambda place: counts[place[1]] > _RARE)


def _shortened(text: str) -> str:
    """Return the part of a text that is indexed."""
    return text if len(text) <= MAX_INDEXED else text[: MAX_INDEXED // 2] + "\0" + text[-MAX_INDEXED // 2 :]


def _common_range(answer: _Answer[Source], key: int, text: str, index: int, work: list[int]) -> _CommonRange | None:
    """Return the range of the text that the answer has in common around the window at `index`; None if it is shorter
    than `MIN_CHARACTERS`. `key`: hash of this window. `work`: number of comparisons that are left.
    """
    work[0] -= 1 + len(answer.windows) // _CHARACTERS_PER_COMPARISON
    number = -1
    while work[0] > 0:
        try:
            number = answer.windows.index(key, number + 1)
        except ValueError:
            return None
        common = _range_around(text, index, answer.text, number * PERIOD)
        length = common.end - common.start
        work[0] -= 1 + length // _CHARACTERS_PER_COMPARISON
        if length >= MIN_CHARACTERS:
            return common
    return None


def _range_around(text: str, at: int, other: str, index: int) -> _CommonRange:
    """Return the range of a text around `at` that another text has in common with it around `index`."""
    return _CommonRange(at - _equal_length(text, at, other, index, -1), at + _equal_length(text, at, other, index, 1))


def _equal_length(first: str, at: int, second: str, index: int, direction: int) -> int:
    """Return how many characters are equal from these positions on, or before them. `direction`: 1 or -1."""
    limit = min(len(first) - at, len(second) - index) if direction > 0 else min(at, index)
    found, size = 0, PERIOD
    while found < limit:  # compare growing pieces, then halve the one that differs
        size = min(size, limit - found)
        shift = found if direction > 0 else -found - size
        if first[at + shift : at + shift + size] == second[index + shift : index + shift + size]:
            found += size
            size *= 2
        elif size == 1:
            break
        else:
            size //= 2
            limit = min(limit, found + 2 * size + 1)
    return found


def _copied(answer: str, hashes: Keys, prompt: Sequence[str], work: list[int]) -> bytes:
    """Return marks for the characters of an answer that it has copied from its own prompt, however often; nothing if
    there are none. `hashes`: what `hash_indexed_windows` returns for the answer. `work`: number of comparisons that
    are left.

    The indexed positions of the answer find each copy of at least `MIN_CHARACTERS`, within the limits of a search.
    """
    if work[0] <= 0:
        return b""
    # A common text of `MIN_CHARACTERS` contains one of these windows. To search short texts for each is faster than
    # to hash them.
    samples = [answer[index : index + WINDOW] for index in range(0, len(answer) - WINDOW + 1, PERIOD)]
    searched: list[str] = []
    left, scanned = _MAX_SEARCHED, _MAX_SCANNED
    for whole in prompt:
        if left <= 0:
            break
        text, left = whole[:left], left - len(whole)
        if len(text) < MIN_CHARACTERS:
            continue
        scanned -= len(samples) * len(text)
        if scanned < 0 or any(sample in text for sample in samples):
            searched.append(text)
    if not searched:
        return b""
    texts, windows = _Texts(searched), WindowFilter(_CAPACITY_PER_WINDOW * len(hashes))
    windows.add(hashes)
    indexed = hashes[:, 0].tolist()
    keys = set(indexed)
    found = _rare_first([place for place in windows.find(texts.joined, _MAX_FOUND) if place[1] in keys])
    return _copied_places(answer, indexed, texts, found, work)


def _copied_places(
    answer: str, indexed: Sequence[int], texts: _Texts, found: Sequence[tuple[int, int]], work: list[int]
) -> bytes:
    """Return marks for the characters of an answer that are copied. `found`: positions of the texts, and the hashes
    there, at which they may have text in common with the answer."""
    if not found:
        return b""
    copied = bytearray(len(answer))
    places: dict[int, list[int]] = {}
    """Indexed positions of the answer that are not marked, by the hash of the window there."""
    for number, key in enumerate(indexed):
        places.setdefault(key, []).append(number * PERIOD)
    for position, key in found:
        if not places.get(key) or (found_place := texts.at(position)) is None:
            continue
        unmarked: list[int] = []
        for place in places[key]:
            if copied.startswith(_MARKS, place):
                continue
            if work[0] <= 0:
                return bytes(copied)
            start, end = _range_around(answer, place, found_place.text, found_place.position)
            work[0] -= 1 + (end - start) // _CHARACTERS_PER_COMPARISON
            if end - start >= MIN_CHARACTERS:
                copied[start:end] = b"\1" * (end - start)
            else:
                unmarked.append(place)
        places[key] = unmarked
    return bytes(copied) if 1 in copied else b""
