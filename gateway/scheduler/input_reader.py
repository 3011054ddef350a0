"""Resolve the references of a call to the values of other variables, within limits, and render templates."""

import asyncio

from gateway.graph.call import Call
from gateway.graph.errors import Failure, GraphError, TooLarge, UnresolvedPath
from gateway.graph.references import Reference, resolve
from gateway.graph.segments import Input
from gateway.graph.text import size_of
from gateway.graph.variable import Piece, Variable
from gateway.runtime.fair_gate import FairGate

_PARSED_BYTES = 64 << 20
"""Maximum size of the JSON that one call parses to follow paths into values, in characters. A value counts again for
each reference to it."""

_SMALL = 64 << 10
"""Size of JSON up to which it is parsed without passing the gate: parsing takes less than a millisecond."""

_CHUNK = 100
"""Number of a template's parts that are resolved before other tasks of the event loop get a turn."""


class CallFailed(Exception):
    """The call cannot continue, because of `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class InputReader:
    """Resolver of a call's references to final variables.

    Parsing blocks the event loop. So large values are parsed one at a time, with a pause after each, and one call
    parses at most 64 MiB. `gate`: shared by all calls of a scheduler.
    """

    def __init__(self, call: Call, gate: FairGate) -> None:
        self._call = call
        self._gate = gate
        self._parsed = 0

    async def read(self, source: Variable, reference: Reference) -> str:
        """Return the text that a reference to a final variable stands for. Raises CallFailed if the variable failed or
        the path leads nowhere."""
        if not source.has_value:
            raise CallFailed(upstream_failure(source))
        value = source.value or ""
        if not reference.path:
            return value
        self._parsed += len(value)
        if self._parsed > _PARSED_BYTES:
            message = f"the references of this call would parse more than {_PARSED_BYTES} bytes of JSON"
            raise CallFailed(Failure(TooLarge.code, message, self._call.id))
        if len(value) <= _SMALL:
            return self._resolve(value, reference)
        async with self._gate.turn(self._call.session.tenant):
            return self._resolve(value, reference)

    def _resolve(self, value: str, reference: Reference) -> str:
        try:
            return resolve(value, reference)
        except UnresolvedPath as error:
            raise CallFailed(Failure(error.code, str(error), self._call.id)) from error


async def render_template(call: Call, gate: FairGate) -> None:
    """Render a template into its call's output, once all variables that it refers to are final. Raises CallFailed if a
    variable failed or the value is too large.

    The size is checked before the parts are joined: a template may name one value many times. `gate`: see InputReader.
    """
    reader = InputReader(call, gate)
    parts = call.spec.parts or ()
    for part in parts:
        if isinstance(part, Input):
            await call.until_final(call.inputs[part.reference.name])
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
    origin = f"call {root.call}, " if root.call else ""
    return Failure(
        "upstream_failed",
        f"variable {source.name!r} {source.state}: {origin}{root.code}: {root.message}",
        root.call,
    )
