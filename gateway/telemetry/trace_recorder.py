"""Record the calls of a server in a file: `myna serve --record` writes it, `gateway/simulator/trace.py` reads it.

The file has a line of JSON for each call that is done. It holds no texts. Prompts are recorded as digests and numbers
of tokens, so that equal beginnings are equal in the file too.
"""

import json
import logging
from array import array
from hashlib import blake2b
from typing import IO, Any

from gateway.graph.call import Call, CallState
from gateway.graph.segments import Characters, Input, Messages, Slot, Text
from gateway.graph.variable import Variable

log = logging.getLogger("myna.record")

_CHUNK = 16
"""Number of tokens that share a digest, as they share a block in an engine."""
_CHARACTERS_PER_TOKEN = 4


class TraceRecorder:
    """Owner of the file. Call `observe` with every call that ends."""

    def __init__(self, file: IO[str]) -> None:
        """`file`: opened for appending."""
        self._file = file
        self._has_failed = False

    def observe(self, call: Call) -> None:
        """Write a line for a call that is done. After a write has failed, write nothing more."""
        if call.state is CallState.DONE and not self._has_failed:
            try:
                self._file.write(json.dumps(_describe(call), separators=(",", ":")) + "\n")
            except OSError as error:
                self._has_failed = True
                log.error("recording of calls stopped: %s", error.strerror or error)


def _describe(call: Call) -> dict[str, Any]:
    session, spec = call.session, call.spec
    session_key = session.id and blake2b(f"{session.tenant}\0{session.id}".encode(), digest_size=8).hexdigest()
    tokens_per_slot = call.usage.completion // max(1, len(spec.slots))
    prompt: list[Any] = []
    for segment in spec.segments:
        match segment:
            case Text(tokens):
                prompt.append({"text": _chunks(array("i", tokens).tobytes(), len(tokens))})
            case Characters(text):
                chunks = _chunks(text.encode("utf-32-le", "surrogatepass"), len(text))
                size = segment.length  # in tokens, if the model's tokens are known
                prompt.append({"text": [(chunk, -(-length * size // len(text))) for chunk, length in chunks]})
            case Messages():
                text = json.dumps([segment.fields, segment.messages])
                prompt.append({"text": _chunks(text.encode("utf-32-le"), len(text))})
            case Slot(name):
                prompt.append({"slot": name, "tokens": tokens_per_slot})
            case Input(reference) if reference.name in call.slots:
                prompt.append({"value": reference.name})
            case Input(reference):
                prompt.append(_value(call.inputs[reference.name]))
    parts = [_value(call.inputs[part.reference.name]) for part in spec.parts or () if isinstance(part, Input)]
    return {
        "session": session_key or call.id,
        "at": call.times.created,
        "ended": call.times.finished,
        "output": call.output.name if session.id else "answer",
        "prompt": prompt if spec.model and call.leader is None else [],
        "parts": [{"value": call.leader.output.name}] if call.leader else [] if spec.model else parts,
        "read": call.output.latency_subscribers > 0 or not session.id,
    }


def _chunks(data: bytes, length: int) -> list[tuple[int, int]]:
    """Return a digest for each chunk of a text, and the chunk's number of tokens or characters.

    `data`: the text as int32 tokens or as UTF-32 characters. `length`: their number.
    """
    return [
        (digest(data[4 * index : 4 * (index + _CHUNK)]), min(_CHUNK, length - index))
        for index in range(0, length, _CHUNK)
    ]


def digest(data: bytes) -> int:
    """Return a digest of 31 bits, so that it can stand for a token id in the simulator."""
    return int.from_bytes(blake2b(data, digest_size=4).digest()) >> 1


def _value(variable: Variable) -> dict[str, Any]:
    if variable.producer is not None:
        return {"value": variable.name}
    text = variable.value or ""
    return {"text": [(digest(text.encode()), -(-len(text) // _CHARACTERS_PER_TOKEN))]}
