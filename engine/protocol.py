"""The frames between a gateway and an engine process, and how they are cut.

A frame is a little-endian u32 length followed by one MessagePack value: a `Command` towards the engine, a
`Report` back. Imports no torch.
"""

import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

_LENGTH = struct.Struct("<I")
VERSION = 2
"""Of the frames. Who listens and who calls must have the same."""
MAX_FRAME = 256 * 1024 * 1024
"""Bytes; a longer announcement means that the stream is not ours or has lost its place."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a `generate` chooses tokens and when it ends.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `top_logprobs` counts the
    alternatives reported with each token. Penalties are applied to raw logits: repetition to prompt and
    output, presence and frequency to output. `seed` makes the text a function of prompt and parameters alone.
    `regex`: what the whole text matches, in the syntax of Rust's; `json_schema`: what it is valid for, as JSON;
    `grammar`: what derives it, in llguidance's Lark. At most one of them. `thinks`: thoughts may come before what is
    held to it, up to `</think>`; they begin with `<think>`, or have begun already. `prediction`: what much of the text
    may be, which changes nothing but how fast that comes.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    regex: str | None = None
    json_schema: str | None = None
    grammar: str | None = None
    thinks: Literal["perhaps", "begun"] | None = None
    prediction: str = ""


class Fill(msgspec.Struct, frozen=True, tag="fill"):
    """Append `tokens` to `context`, which comes to be by its first fill, forked from `parent` if given.

    Done when the KV of its full blocks is there; the rest is computed with what is filled or generated behind it.

    Contexts of different `scope` never share KV. `interactive`: somebody reads what it generates as it comes, so that
    prompts leave its steps short.
    """

    context: int
    tokens: list[int]
    parent: int | None = None
    rank: float = 0.0
    scope: str = ""
    interactive: bool = True


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Sample behind the context's last token until stop, length or `Free`."""

    context: int
    sampling: SamplingParams
    rank: float | None = None


class Free(msgspec.Struct, frozen=True, tag="free"):
    """Forget the context; what it was doing ends. Unknown ids are ignored: freeing is idempotent."""

    context: int


class Rerank(msgspec.Struct, frozen=True, tag="rerank"):
    """Give contexts a new rank, lower ones go first, and say whether they are `interactive`; see `Fill`."""

    contexts: list[int]
    rank: float
    interactive: bool = True


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame to an engine that listens: a gateway shows its token. `version`: of these frames."""

    token: str
    version: int


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The engine's answer: commands are taken from here on. `files`: what the tokenizer is read from, by name."""

    info: "EngineInfo"
    files: dict[str, bytes]


class Unwelcome(msgspec.Struct, frozen=True, tag="unwelcome"):
    """The engine's other answer, and why; it hangs up then."""

    message: str


Command = Fill | Generate | Free | Rerank | Shutdown


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded engine is. `folder` holds the checkpoint with its tokenizer; sizes are in tokens."""

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


class Resolved(msgspec.Struct, frozen=True, tag="resolved"):
    """The checkpoint is on disk, in `folder`; loading begins."""

    folder: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine takes commands from here on."""

    info: EngineInfo


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The engine cannot go on, and why, in words for whoever started it."""

    message: str


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probability of a token under the model's own distribution, and the likeliest others."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Update(msgspec.Struct, array_like=True, omit_defaults=True):
    """What one step brought one context.

    `filled`: tokens in the context once a fill is done; `cached`: how many of them were not computed; `missed`: how
    many were, by why they were not in the cache, see `kv_cache.Missing`; `held` and `starved`: seconds for which the
    fill waited for room in a step, and for memory.
    `tokens`: sampled in this step; `text`: what they add, whole characters only, nothing of a stop string.
    `finish`: `stop` or `length`. `error`: (code, message); the context is then already freed. `accepted`, `rejected`:
    tokens of the prediction that were right, and that were checked and wrong.
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


class Step(msgspec.Struct, frozen=True, tag="step"):
    """One step's updates. `running`: contexts with work left; `free_tokens`: KV free or evictable; `commands`: how
    many have been taken in since the start. `row_seconds` and `step_seconds`: what a row of a prompt takes, and a step
    in which one or two contexts decode. `drafted`: tokens since the start, for whomever; `right` of them stood.

    While there is work one comes every second at least, and one when there is none left: silence means a hang.
    """

    updates: list[Update]
    running: int
    free_tokens: int
    commands: int
    row_seconds: float = 0.0
    step_seconds: float = 0.0
    drafted: int = 0
    right: int = 0


Report = Resolved | Ready | Fatal | Step

command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
hello_decoder: msgspec.msgpack.Decoder[Hello] = msgspec.msgpack.Decoder(Hello)
welcome_decoder: msgspec.msgpack.Decoder[Welcome | Unwelcome] = msgspec.msgpack.Decoder(Welcome | Unwelcome)
report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: Command | Report | Hello | Welcome | Unwelcome) -> bytes:
    """One frame, ready to be written."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameError(Exception):
    """The byte stream does not hold frames."""


class FrameBuffer:
    """Cuts a byte stream into frame bodies, however the bytes arrive."""

    def __init__(self, most: int = MAX_FRAME) -> None:
        """`most`: bytes of a frame."""
        self._buffer = bytearray()
        self.most = most

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies completed by `data`. Raises FrameError on an impossible length."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self.most:
                raise FrameError(f"a frame of {length} bytes was announced; at most {self.most} are allowed")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]
