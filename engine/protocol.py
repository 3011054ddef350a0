"""Messages between a gateway and an engine, and their framing.

A frame is a little-endian u32 length followed by one MessagePack value: a `Command` to the engine, or a `Report` from
it. This module imports no torch.
"""

import struct
from collections.abc import Iterator

import msgspec

from engine.sampling_params import SamplingParams

_LENGTH = struct.Struct("<I")
VERSION = 5
"""Version of the protocol. Both sides must have the same."""
MAX_FRAME = 256 * 1024 * 1024
"""Maximum length of a frame, in bytes. A longer announcement means that the stream has another format or is out of
step."""


class Fill(msgspec.Struct, frozen=True, tag="fill"):
    """Append `tokens` to `context`. The first fill creates the context, as a fork of `parent` if given.

    A fill is done once the KV of the context's full blocks is computed. The rest is computed together with the next
    fill or generate.

    `start`: position in the context at which the tokens belong, if they replace those from there on. Tokens that are
        there already stay.
    `scope`: contexts of different scopes never share KV. The part before a NUL character names the owner: owners have
        shares of the pool, see `engine.kv.fair_shares`.
    `interactive`: a client reads the generated text as it grows, so prefill must not make its steps long.
    `pausable`: the engine may delay the prompt of a new context while it would evict KV that is read soon; see
        `engine.admission`. Set it only if no other context depends on this one. Later fills ignore it.
    """

    context: int
    tokens: list[int]
    parent: int | None = None
    rank: float = 0.0
    scope: str = ""
    interactive: bool = True
    start: int | None = None
    pausable: bool = False


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Sample after the context's last token until a stop, the length limit, or `Free`.

    `heals`: the prompt may end inside a token; see `healing`.
    """

    context: int
    sampling: SamplingParams
    rank: float | None = None
    heals: bool = False


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Compute the embedding of a text in a new context. See `Fill` for the fields."""

    context: int
    tokens: list[int]
    rank: float = 0.0
    scope: str = ""
    interactive: bool = False


class Free(msgspec.Struct, frozen=True, tag="free"):
    """Delete the context and abort its work. The cache retains its full blocks until it evicts them. Unknown ids
    are ignored: freeing is idempotent."""

    context: int


class Retain(msgspec.Struct, frozen=True, tag="retain"):
    """Set the expected reader of a freed context: a later context that will probably read its KV again.

    `returns`: sorted durations of earlier gaps, in seconds. A gap is the time from an answer to the request that
        extends it. Of more than 128 durations, the engine uses 128 at equal distances in the list. It ignores values
        that are negative or not finite. Without any, no reader is expected, and the KV is evicted like that of other
        contexts.

    If a `pausable` context without remaining work is freed, the engine expects a reader for 2 seconds. Send this
    command within this time.

    Contexts that are unknown, not freed, or not among the last 1,024 freed ones of the connection are ignored.
    """

    context: int
    returns: list[float]


class Rerank(msgspec.Struct, frozen=True, tag="rerank"):
    """Set the rank of contexts, and whether they are `interactive`; see `Fill`. Lower ranks go first."""

    contexts: list[int]
    rank: float
    interactive: bool = True


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame to an engine server: the gateway's token, and its `VERSION`."""

    token: str
    version: int


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Reply to a `Hello` that the engine accepts. `files`: the tokenizer's files, by name. Commands may follow."""

    info: "EngineInfo"
    files: dict[str, bytes]


class Refusal(msgspec.Struct, frozen=True, tag="unwelcome"):
    """Reply to a `Hello` that the engine rejects, with the reason. It closes the connection then."""

    message: str


Command = Fill | Generate | Embed | Free | Retain | Rerank | Shutdown


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a loaded engine. `folder` holds the checkpoint with its tokenizer; sizes are in tokens.

    `embedding`: number of values of an embedding; 0 if the model generates text. `normalizes`: whether embeddings have
    length 1.
    """

    model: str
    folder: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    kernels: str
    threads: int
    window: int
    vocabulary: int
    kv_tokens: int
    block_size: int
    load_seconds: float
    embedding: int = 0
    normalizes: bool = False


class FolderReport(msgspec.Struct, frozen=True, tag="resolved"):
    """Report that the checkpoint is on disk, in `folder`. Loading begins."""

    folder: str


class ReadyReport(msgspec.Struct, frozen=True, tag="ready"):
    """Report that the engine accepts commands."""

    info: EngineInfo


class FatalReport(msgspec.Struct, frozen=True, tag="fatal"):
    """Report that the engine cannot start or continue, with the reason for the operator."""

    message: str


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probability of a token under the model's own distribution, and the most likely alternatives.

    `cut`: number of bytes at the beginning of the token that belong to the prompt; see `healing`.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]
    cut: int = 0


class Update(msgspec.Struct, array_like=True, omit_defaults=True):
    """Changes of one context in one step.

    `tokens`: tokens sampled in this step, without those that only repeat the end of the prompt.
    `text`: the text that they add, whole characters only, without any part of a stop string.
    `finish`: `stop` or `length`. `error`: (code, message); the engine has freed the context then.
    `filled`: number of tokens in the context, once a fill is done. `cached`: how many of its tokens were not computed.
    `missed`: number of computed tokens by the reason of the cache miss, see `MissReason` in `engine/kv/cache.py`.
    `held`, `starved`: how long the fill waited for room in a step, and for KV memory, in seconds.
    `accepted`, `rejected`: tokens of the prediction that the check accepted and rejected.
    `stop_string`: the stop string that ended the text, if one did.
    `embedding`: the values of a finished embedding, in float32, little-endian.
    """

    context: int
    tokens: list[int] = []
    text: str = ""
    finish: str | None = None
    filled: int | None = None
    cached: int = 0
    logprobs: list[TokenLogprob] = []
    error: tuple[str, str] | None = None
    held: float = 0.0
    starved: float = 0.0
    missed: dict[str, int] = {}
    accepted: int = 0
    rejected: int = 0
    stop_string: str | None = None
    embedding: bytes = b""


class StepReport(msgspec.Struct, frozen=True, tag="step"):
    """Updates of one step.

    `running`: number of contexts with work left. `free_tokens`: KV tokens that are free or evictable.
    `commands`: number of commands received since the start.
    `row_seconds`, `step_seconds`: duration of one prefill row, and of one generated token while one or two contexts
        decode.
    `drafted`, `right`: number of drafted tokens since the start, of all contexts, and how many were accepted.

    While there is work, the engine sends a report at least once a second, and one more when the work ends: silence
    means a hang.
    """

    updates: list[Update]
    running: int
    free_tokens: int
    commands: int
    row_seconds: float = 0.0
    step_seconds: float = 0.0
    drafted: int = 0
    right: int = 0


Report = FolderReport | ReadyReport | FatalReport | StepReport

command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
hello_decoder: msgspec.msgpack.Decoder[Hello] = msgspec.msgpack.Decoder(Hello)
welcome_decoder: msgspec.msgpack.Decoder[Welcome | Refusal] = msgspec.msgpack.Decoder(Welcome | Refusal)
report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: Command | Report | Hello | Welcome | Refusal) -> bytes:
    """Return a message as one frame."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameError(Exception):
    """The byte stream contains no valid frame."""


class FrameBuffer:
    """Splitter of a byte stream into frame bodies, independent of how the bytes arrive."""

    def __init__(self, max_size: int = MAX_FRAME) -> None:
        """Start with an empty buffer. `max_size`: maximum length of a frame, in bytes."""
        self._buffer = bytearray()
        self.max_size = max_size

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bodies that `data` completes. Raises FrameError if a length is too large."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self.max_size:
                raise FrameError(f"the stream announces a frame of {length} bytes; the maximum is {self.max_size}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]
