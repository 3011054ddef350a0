"""Resolve the references of a call to the values of other variables, within limits, and render templates."""

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial

from gateway.graph.call import Call
from gateway.graph.errors import Failure, GraphError, TooLarge, UnresolvedPath
from gateway.graph.forms.results import call_of_element, read_element, reads_element
from gateway.graph.references import Reference, resolve
from gateway.graph.segments import Input
from gateway.graph.text import size_of
from gateway.graph.transform import Transform
from gateway.graph.variable import Piece, Variable
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler.transforms import apply, search

_PARSED_BYTES = 64 << 20
"""Maximum size of the JSON that one call parses to follow paths into values, in characters. A value counts again for
each reference to it."""

_SMALL = 64 << 10
"""Size of the JSON that may be parsed without a turn in a window of time, in characters: it takes less than a
millisecond."""
_WINDOW_SECONDS = 0.01

_CHUNK = 100
"""Number of a template's parts that are resolved before other tasks of the event loop get a turn."""


class CallFailed(Exception):
    """The call cannot continue, because of `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ParsingGate(FairGate):
    """Gate of work on values that blocks the event loop or a thread. All calls of a scheduler share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self.searches = FairGate(rests=False)
        """Gate of searches with regular expressions, which take up to a second of one thread."""
        self._window = -math.inf
        self._parsed = 0

    def is_free(self, size: int) -> bool:
        """Return whether JSON of this size may be parsed without a turn. Many calls may read values at the same
        time, so only a small amount is free in each window of time."""
        now = self._clock()
        if now - self._window > _WINDOW_SECONDS:
            self._window, self._parsed = now, 0
        self._parsed += size
        return self._parsed <= _SMALL


class InputReader:
    """Resolver of a call's references.

    Parsing blocks the event loop. So values are parsed one at a time, with a pause after each, except for a small
    amount in each window of time. One call parses at most 64 MiB.
    """

    def __init__(self, call: Call, gate: ParsingGate) -> None:
        self._call = call
        self._gate = gate
        self._parsed = 0

    async def until_readable(self, source: Variable, reference: Reference) -> None:
        """Wait until `read` can return the text of a reference: the variable is final, or the reference reads an
        element of a map that has its answer."""
        if not source.state.is_final and reads_element(source, reference):
            await self._until_listed(source)
            element = call_of_element(source, reference)
            if element is not None:
                await self._call.until_final(element.output)
                if element.output.has_value:
                    return
        await self._call.until_final(source)

    async def _until_listed(self, source: Variable) -> None:
        """Wait until a map has added the calls of all its elements: then it begins to write its list."""
        with source.read() as reader:
            await self._call.next_pieces(reader, source)

    async def read(self, source: Variable, reference: Reference) -> str:
        """Return the text that a reference stands for, see `until_readable`. Raises CallFailed if the variable failed
        or the path leads nowhere."""
        default = self._call.default_of(source)
        if default is not None:
            return default
        if source.state.is_final and not source.has_value:
            raise CallFailed(upstream_failure(source))
        element = call_of_element(source, reference) if reads_element(source, reference) else None
        if element is not None and element.output.has_value:
            # also if the list is complete: what a call may parse must not depend on when it reads
            return await self._resolve_in_turn(element.output.value or "", partial(read_element, source, reference))
        assert source.state.is_final, "see `until_readable`"
        value = source.value or ""
        if not reference.path:
            return value
        return await self._resolve_in_turn(value, lambda text: resolve(text, reference))

    async def _resolve_in_turn(self, value: str, resolve_path: Callable[[str], str]) -> str:
        """Follow a path into a value. Raises CallFailed."""
        self._parsed += len(value)
        if self._parsed > _PARSED_BYTES:
            message = f"the references of this call would parse more than {_PARSED_BYTES} bytes of JSON"
            raise CallFailed(Failure(TooLarge.code, message, self._call.id))
        if self._gate.is_free(len(value)):
            return self._resolve(value, resolve_path)
        async with self._gate.turn(self._call.session.tenant):
            return self._resolve(value, resolve_path)

    async def search(self, regex: str, group: int, text: str) -> str | None:
        """Search a text in the tenant's turn. See `transforms.search`."""
        async with self._gate.searches.turn(self._call.session.tenant):
            return await search(regex, group, text)

    async def apply(self, transform: Transform, text: str) -> str:
        """Transform a text, in the tenant's turn if a step searches. See `transforms.apply`."""
        if transform.regex is None:
            return await apply(transform, text)
        async with self._gate.searches.turn(self._call.session.tenant):
            return await apply(transform, text)

    def _resolve(self, value: str, resolve_path: Callable[[str], str]) -> str:
        try:
            return resolve_path(value)
        except UnresolvedPath as error:
            raise CallFailed(Failure(error.code, str(error), self._call.id)) from error


async def render_template(call: Call, gate: ParsingGate) -> None:
    """Render a template into its call's output, once all variables that it refers to are final. Raises CallFailed if a
    variable failed or the value is too large.

    The size is checked before the parts are joined: a template may name one value many times. `gate`: see InputReader.
    """
    reader = InputReader(call, gate)
    parts = call.spec.parts or ()
    for part in parts:
        if isinstance(part, Input):
            await reader.until_readable(call.inputs[part.reference.name], part.reference)
    texts: list[str] = []
    size = 0
    for number, part in enumerate(parts, start=1):
        text = part
        if isinstance(part, Input):
            text = await reader.read(call.inputs[part.reference.name], part.reference)
        assert isinstance(text, str)
        texts.append(text)
        size += size_of(text)
        try:
            call.session.check_room(call.output.name, size)
        except GraphError as error:
            raise CallFailed(Failure(error.code, str(error), call.id)) from error
        if number % _CHUNK == 0:
            await asyncio.sleep(0)
    call.output.append(Piece("".join(texts)))


def upstream_failure(source: Variable) -> Failure:
    """Return the failure of a call that reads a failed variable. It names the first call that failed, and why."""
    root = source.failure or Failure("cancelled", f"{source.name} was {source.state}")
    if root.code == "upstream_failed":
        return root
    verb = "failed" if source.state == "failed" else f"was {source.state}"
    origin = f"call {root.call}, {root.code}" if root.call else root.code
    return Failure("upstream_failed", f"variable {source.name!r} {verb} ({origin}): {root.message}", root.call)
