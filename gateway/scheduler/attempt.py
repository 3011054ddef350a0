"""One attempt at a call: its prompt walked from segment to segment, on one context."""

import dataclasses
import hashlib
import logging
import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from gateway.engines.protocol import ContextEvent, Engine, EngineContext, PrefillResult, TokenDelta
from gateway.graph.call import Call, CallState, Input, Rendering, Slot, Text
from gateway.graph.errors import Failure, GraphError
from gateway.graph.text import size_of
from gateway.graph.variable import Piece, Reader, Variable, VariableState, reasoning_of
from gateway.scheduler.inputs import CallFailed, InputReader
from gateway.scheduler.reasoning_parser import ReasoningParser
from gateway.scheduler.transforms import TransformFailed, apply

log = logging.getLogger("myna.scheduler")

_STREAM_CHARACTERS = 96
"""Of a value that is being made, looked at together for tokens that are settled."""


_TOKEN_BYTES = 4
"""Memory of a token in the gateway, in bytes."""


class UnsettledTokens(Exception):
    """Tokens that were filled of a value in the making are not those of the whole value."""


class CallAttempt:
    """Owner of what one attempt has filled so far.

    Nothing that goes wrong here is final: `ProducerRestarted`, `UnsettledTokens` and `EngineLost` mean that the walk
    may be begun again, `CallFailed` and other failures of the engine that the call cannot be done.
    """

    def __init__(
        self,
        call: Call,
        rendering: Rendering,
        engine: Engine,
        context: EngineContext,
        inputs: InputReader,
        *,
        patient: bool,
        prompt_read: Callable[[Call], None] = lambda call: None,
    ) -> None:
        """`rendering`: the prompt as the engine's model is given it. `patient`: waits for values to be whole, and takes
        nothing of them before. `prompt_read` is told when all before the first slot has been read."""
        self._call = call
        self._rendering = rendering
        self._engine = engine
        self._context = context
        self._inputs = inputs
        self._patient = patient
        self._prompt_read = prompt_read
        self._filled: list[Sequence[int]] = []
        self._filled_tokens = 0
        self._at = 0
        """The segment that comes next."""
        self._parts = deque(call.spec.parts or ())
        """Remaining parts of the output."""
        self._output_size = 0
        """Size of the output so far, in bytes."""
        self._value_digests: dict[str, str] = {}
        self._slot_numbers = {name: number for number, name in enumerate(call.slots)}

    async def prepare(self) -> bytes | None:
        """Fills all that stands before the first slot, as its values come.

        Returns what the rest of the call does, as a digest: calls with the same one do the same. None if that is not
        settled by what is filled.
        """
        for segment in self._rendering.segments:
            if isinstance(segment, Slot):
                break
            self._at += 1
            if isinstance(segment, Text):
                self._fill(segment.tokens)
            else:
                await self._take(segment)
        return self._identity()

    def _identity(self) -> bytes | None:
        spec = self._call.spec
        if not spec.deterministic or not self._call.session.id:  # what is nobody else's session is shared with nobody
            return None
        digest = hashlib.blake2b(digest_size=20)
        for filled in self._filled:
            digest.update(array("i", filled).tobytes())
        begun = False
        for segment in self._rendering.segments:
            match segment:
                case Slot():
                    begun = True
                    digest.update(f"\0{segment.sampling!r}\0{segment.transform!r}".encode())
                case Text(tokens) if begun:
                    digest.update(b"\0t" + array("i", tokens).tobytes())
                case Input(reference) if begun:
                    digest.update(f"\0{self._origin(reference.name)}{reference.path!r}".encode())
        for part in spec.parts or ():
            text = part if isinstance(part, str) else f"{self._origin(part.reference.name)}{part.reference.path!r}"
            digest.update(f"\0p{text}".encode())
        digest.update(f"{self._rendering.model}\0{spec.salt}".encode())
        return digest.digest()

    def _origin(self, name: str) -> str:
        """A variable by what it is: a value, the n-th of the call's own slots, or what another call will make."""
        call = self._call
        if name in call.slots:
            return f"s{self._slot_numbers[name]}"
        source = call.inputs[name]
        if source.state is not VariableState.READY:
            return f"n{name}"
        if name not in self._value_digests:  # once: a prompt may name a large value many times
            self._value_digests[name] = hashlib.blake2b((source.value or "").encode(), digest_size=20).hexdigest()
        return f"v{self._value_digests[name]}"

    async def generate(self) -> None:
        """Generates slot after slot, and fills what stands between them. The output is there then, but not final."""
        for segment in self._rendering.segments[self._at :]:
            if isinstance(segment, Slot):
                await self._generate(segment)
            elif isinstance(segment, Text):
                self._fill(segment.tokens)
            else:
                await self._take(segment)
        await self._put_together(None)

    # prompt

    def _fill(self, tokens: Sequence[int]) -> None:
        if tokens:
            self._filled_tokens += len(tokens)
            most = self._call.session.bounds.bytes // _TOKEN_BYTES
            if self._filled_tokens > most:  # for engines that do not check the length themselves
                message = f"the prompt has more than {most} tokens or characters, the maximum of a session"
                raise CallFailed(Failure("too_large", message, self._call.id))
            self._context.fill(tokens)
            self._filled.append(tokens)
            self._call.usage.prompt += math.ceil(len(tokens) * self._engine.tokens_per_unit)

    async def _take(self, segment: Input) -> None:
        """Fills a value, waited for."""
        source = self._source(segment)
        if source.state.final or segment.reference.path or self._patient:
            self._fill(await self._engine.encode(await self._value(segment)))
        else:
            await self._take_growing(segment, source)

    def _source(self, segment: Input) -> Variable:
        """Return the variable that a reference reads. Raises CallFailed for a slot that is still to be generated."""
        name = segment.reference.name
        own = self._call.slots.get(name)
        if own is None:
            return self._call.inputs[name]
        if not own.state.final:  # only this coroutine generates the slot, so it would wait for ever
            message = f"slot {name!r} is read before it is generated"
            log.error("call %s fails: %s", self._call.id, message)
            raise CallFailed(Failure("internal_error", message, self._call.id))
        return own

    async def _value(self, segment: Input) -> str:
        """What the reference stands for, waited for. Raises CallFailed."""
        source = self._source(segment)
        if not source.state.final:
            self._waits()
            await self._call.until_final(source)
        return await self._inputs.read(source, segment.reference)

    def _waits(self) -> None:
        if self._call.state is not CallState.WAITING:
            self._call.move(CallState.WAITING)

    async def _take_growing(self, segment: Input, source: Variable) -> None:
        """Fills a value while it is being made, as far as its tokens are settled."""
        self._waits()
        rest = ""
        filled: list[int] = []
        with source.read() as reader:
            while pieces := await self._more(reader, source):
                rest += "".join([piece.text for piece in pieces])
                if len(rest) < _STREAM_CHARACTERS:
                    continue
                tokens, length = self._engine.encode_stable(rest)
                self._fill(tokens)
                filled += tokens
                rest = rest[length:]
        whole = await self._engine.encode(await self._value(segment))
        if list(whole[: len(filled)]) != filled:
            raise UnsettledTokens
        self._fill(whole[len(filled) :])

    async def _more(self, reader: Reader, source: Variable) -> Sequence[Piece]:
        """Return the next pieces of a value in the making."""
        self._call.awaits = source
        try:
            return await reader.more()
        finally:
            self._call.awaits = None

    # slots

    async def _generate(self, slot: Slot) -> None:
        call = self._call
        composed = self._is_next_in_output(slot)
        if composed:
            await self._put_together(slot)
        if slot.name is not None and slot.name in call.made:  # by an attempt before this one
            text = call.made[slot.name]
            self._fill(await self._engine.encode(text))
            if composed:
                call.output.append(Piece(text))
            return
        variable = call.output if slot.name is None else call.slots[slot.name]
        targets = [] if slot.transform is not None else [variable]
        if composed:
            targets.append(call.output)
        pieces = await self._pieces(slot, targets)
        text = "".join([piece.text for piece in pieces])
        if slot.transform is not None:
            try:
                value = await apply(slot.transform, text)
            except TransformFailed as error:
                raise CallFailed(Failure("transform_failed", str(error), call.id)) from error
            logprobs = tuple(entry for piece in pieces for entry in piece.logprobs)
            tokens = sum(piece.tokens for piece in pieces)
            variable.append(Piece(value, tokens, logprobs, reasoning_of(pieces)))
        if slot.name is not None:
            self._output_size += size_of(text) if composed else 0
            call.session.making(call, slot.name, text)
            call.session.assigning(variable, variable.text)
            await call.session.flushed()
            variable.complete()

    async def _pieces(self, slot: Slot, targets: Sequence[Variable]) -> Sequence[Piece]:
        """The slot's pieces; as they come, they are also appended to the targets."""
        call, usage, times = self._call, self._call.usage, self._call.times
        times.queued = times.queued or call.session.clock()
        call.move(CallState.PREFILL)
        pieces: list[Piece] = []
        sampling, thinks = slot.sampling, slot.thinks
        if thinks is not None and sampling.held:
            if self._engine.constrains_after_reasoning:
                sampling = dataclasses.replace(sampling, thinks=thinks)
            else:  # there is no place for an end of thoughts in what comes
                thinks = "perhaps"
        thoughts = None if thinks is None else ReasoningParser(begun=thinks == "begun")

        def tell(event: ContextEvent) -> None:
            if call.state.final:  # it has just been ended
                return
            if isinstance(event, TokenDelta):
                piece, finish, accepted, rejected = event
                if thoughts is not None:
                    usage.reasoning += 0 if thoughts.answering else piece.tokens
                    thought, answer = thoughts.push(piece.text, last=finish is not None)
                    piece = Piece(answer, piece.tokens, piece.logprobs, thought)
                if call.state is CallState.PREFILL:
                    times.first_token = times.first_token or call.session.clock()
                    call.move(CallState.DECODE)
                usage.completion += piece.tokens
                usage.accepted += accepted
                usage.rejected += rejected
                call.finish_reason = finish or call.finish_reason
                pieces.append(piece)
                for target in targets:
                    target.append(piece)
            elif isinstance(event, PrefillResult):
                usage.cached, usage.missed = event.cached, dict(event.missed)
                times.held, times.starved = event.held, event.starved
                if times.started is None:
                    times.started = call.session.clock()
                    self._prompt_read(call)
            else:
                usage.prompt, usage.cached, usage.completion = event.prompt, event.cached, event.completion
                usage.reasoning = event.reasoning

        await self._context.generate(sampling, tell)
        return pieces

    def _is_next_in_output(self, slot: Slot) -> bool:
        """Return whether the slot is the next one in the output. It may be in an earlier message of the prompt."""
        for part in self._parts:
            if isinstance(part, Input):
                if part.reference.name == slot.name:
                    return True
                own = self._call.slots.get(part.reference.name)
                if own is not None and not own.state.final:
                    return False
        return False

    async def _put_together(self, slot: Slot | None) -> None:
        """Append the parts before the slot to the output, or all remaining ones without a slot. Raises CallFailed."""
        while self._parts:
            part = self._parts.popleft()
            if isinstance(part, str):
                text = part
            elif slot is not None and part.reference.name == slot.name:
                return
            else:
                text = await self._value(part)
            self._output_size += size_of(text)
            try:
                self._call.session.check_room(self._call.output.name, self._output_size)
            except GraphError as error:
                raise CallFailed(Failure(error.code, str(error), self._call.id)) from error
            self._call.output.append(Piece(text))
