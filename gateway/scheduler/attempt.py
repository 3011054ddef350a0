"""One attempt at a call: it fills and generates the segments of the prompt in order, on one engine context."""

import asyncio
import dataclasses
import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence

from gateway.engines.protocol import ContextEvent, Engine, EngineContext, PrefillResult, TextRun, TokenDelta
from gateway.graph.call import Call, CallState, Rendering
from gateway.graph.errors import Failure, GraphError
from gateway.graph.references import Reference
from gateway.graph.segments import (
    Characters,
    Digest,
    Input,
    Messages,
    PromptContent,
    Slot,
    Text,
    Trim,
    Trimmer,
    content_size,
    escape_json,
    update_digest,
)
from gateway.graph.text import size_of
from gateway.graph.variable import Piece, Variable, reasoning_of
from gateway.scheduler.input_reader import CallFailed, InputReader
from gateway.scheduler.reasoning_parser import ReasoningParser
from gateway.scheduler.transforms import TransformFailed

log = logging.getLogger("myna.scheduler")

_STREAM_CHARACTERS = 96
"""Number of characters of a growing value that are added to the prompt at a time."""
_PUSHES = 200
"""Number of texts and values that are added to the prompt before other tasks of the event loop get a turn."""
_TOKEN_BYTES = 4
"""Memory of a token in the gateway, in bytes."""
_DIGEST_CHARACTERS = 1_000_000
"""Number of characters after the first slot up to which a call may be shared. It takes about a millisecond to compare
them."""


class CallAttempt:
    """Owner of the prompt content that one attempt has filled so far.

    Known texts, values and generated texts next to each other are one run of text, which the engine tokenises as a
    whole. So the prompt has the tokens that it would have if the client had written the values into it.

    No error of an attempt is final. After `ProducerRestarted` and `EngineLost` the call may get another attempt. After
    `CallFailed` and other engine failures it cannot succeed.
    """

    def __init__(
        self,
        call: Call,
        rendering: Rendering,
        engine: Engine,
        context: EngineContext,
        inputs: InputReader,
        *,
        on_prefilled: Callable[[Call], None] = lambda call: None,
    ) -> None:
        """`rendering`: the prompt as rendered for the engine's model. `on_prefilled`: called when the engine has
        prefilled all before the first slot."""
        self._call = call
        self._rendering = rendering
        self._engine = engine
        self._context = context
        self._inputs = inputs
        self._on_prefilled = on_prefilled
        self._filled: list[PromptContent] = []
        """Content before the first slot."""
        self._pushes = 0
        """Number of texts and values so far."""
        self._text_size = 0
        """Number of characters of the texts and values so far."""
        self._filled_size = 0
        """Number of tokens or characters that were filled."""
        self._run: TextRun | None = None
        """The current run of text; None after a control token or a message."""
        self._position = 0
        """Position in the context at which the run's pending text begins."""
        self._is_rewriting = False
        """Whether the context has other content at this position: pending text, and text generated after it."""
        self._length = self._counted_length = 0
        """Length of the context, and up to where it counts as prompt or was generated."""
        self._trimmer: Trimmer | None = None
        self._is_slot_prepared = False
        """Whether all text before the next slot is filled."""
        self._next_segment = 0
        """Index of the next segment."""
        self._parts = deque(call.spec.parts or ())
        """Remaining parts of the output."""
        self._output_size = 0
        """Size of the output so far, in bytes."""
        self._text_digests: dict[str, str] = {}
        """Digests of the values of variables, or of their defaults while they have no value."""
        self._slot_numbers = {name: number for number, name in enumerate(call.slots)}

    async def prepare(self) -> bytes | None:
        """Fill all segments before the first slot, and wait for their values.

        Return a digest of the prompt and of the rest of the call: calls with equal digests are identical. Return None
        if the call cannot be shared.
        """
        for segment in self._rendering.segments:
            if isinstance(segment, Slot):
                await self._fill_rest()
                break
            self._next_segment += 1
            await self._fill_segment(segment)
        identity = self._identity()
        self._filled.clear()
        return identity

    def _identity(self) -> bytes | None:
        spec = self._call.spec
        if not self._call.session.id or not spec.is_deterministic:  # a session without an id belongs to one request
            return None
        digest = hashlib.blake2b(digest_size=20)
        for filled in self._filled:
            update_digest(digest, filled)
        if not self._digest_rest(digest):
            return None
        _mark(digest, f"m{self._rendering.model}\0{spec.salt}")
        return digest.digest()

    def _digest_rest(self, digest: Digest) -> bool:
        """Add the slots, all after them, and the parts of the output. A text is the same in one piece and in several,
        known or as the value of a reference. Return False if there is too much text."""
        text_left = _DIGEST_CHARACTERS
        trimmer: Trimmer | None = None
        segments = self._rendering.segments[self._next_segment :]
        for segment in (*segments, None, *(self._call.spec.parts or ())):
            match segment:
                case None:
                    trimmer = None
                    _mark(digest, "p")
                    continue
                case Trim():
                    trimmer = Trimmer(segment)
                    continue
                case Slot():
                    trimmer = None
                    _mark(digest, f"s{segment.sampling!r}\0{segment.transform!r}\0{segment.heals}")
                    continue
                case Text(tokens):
                    trimmer = None
                    _mark(digest, f"t{len(tokens)}")
                    update_digest(digest, tokens)
                    continue
                case Messages():
                    update_digest(digest, segment)
                    continue
                case Characters(text):
                    pass
                case str():
                    text = segment
                case Input(reference):
                    value = self._known_value(reference)
                    if value is None:
                        state = None if trimmer is None else trimmer.state
                        _mark(digest, f"v{state!r}{segment.in_json}{self._origin(reference)}")
                        trimmer = None  # its effect depends on the value
                        continue
                    text = value
            text_left -= len(text)
            if text_left < 0:
                return False
            if trimmer is not None:
                text = trimmer.push(text)
            update_digest(digest, escape_json(text) if isinstance(segment, Input) and segment.in_json else text)
        return True

    def _known_value(self, reference: Reference) -> str | None:
        """Return what a reference stands for; None if it is not known yet, or must be parsed."""
        source = self._call.inputs.get(reference.name)
        if source is not None and (default := self._call.default_of(source)) is not None:
            return default
        if source is None or not source.has_value or reference.path:
            return None
        return source.value or ""

    def _origin(self, reference: Reference) -> str:
        """Return an identity of what a reference stands for, if that is not known: the number of the call's own slot,
        the value and the path, or the number and the default of a variable that has no value yet."""
        name, path, call = reference.name, reference.path, self._call
        if name in call.slots:
            return f"s{self._slot_numbers[name]}{path!r}"
        source = call.inputs[name]
        text = source.value if source.has_value else call.spec.defaults.get(name)
        if name not in self._text_digests:  # computed once: a prompt may refer to a large text many times
            encoded = (text or "").encode(errors="surrogatepass")
            self._text_digests[name] = hashlib.blake2b(encoded, digest_size=20).hexdigest()
        if not source.has_value:  # a name may be used again after its variable was deleted
            return f"n{source.number}{path!r}{text is None}{self._text_digests[name]}"
        return f"v{self._text_digests[name]}{path!r}"

    async def generate(self) -> None:
        """Generate the slots, and fill the segments between them. Then the output is complete, but not final."""
        for segment in self._rendering.segments[self._next_segment :]:
            if isinstance(segment, Slot):
                await self._generate(segment)
            else:
                await self._fill_segment(segment)
        await self._append_parts(None)

    # prompt

    async def _fill_segment(self, segment: Text | Characters | Messages | Input | Trim) -> None:
        match segment:
            case Text(tokens):
                await self._end_run()
                self._fill_final(tokens)
            case Messages():
                await self._end_run()
                self._fill_final(segment)
            case Characters(text, adds_space):
                if self._run is None:
                    self._run = self._engine.open_text(adds_space=adds_space)
                await self._push(text)
            case Input():
                await self._fill_value(segment)
            case Trim():
                self._trimmer = Trimmer(segment) if segment.left or segment.right else None

    async def _push(self, text: str, *, in_json: bool = False) -> None:
        """Add known text to the run, and fill what no later text can change. `in_json`: escape it."""
        self._text_size += len(text)
        self._check_size(self._text_size)
        self._pushes += 1
        if self._pushes % _PUSHES == 0:
            await asyncio.sleep(0)
        if self._trimmer is not None:
            text = self._trimmer.push(text)
        if in_json:
            text = escape_json(text)
        if self._run is None:
            self._run = self._engine.open_text(adds_space=False)
        self._fill_final(await self._run.push(text))

    async def _end_run(self) -> None:
        """Fill the rest of the run. What follows is no text."""
        if self._run is not None:
            self._fill_final(await self._run.finish())
            self._run = None
        self._is_rewriting = False

    async def _fill_rest(self) -> None:
        """Fill all text before a slot. It may be filled again together with the text after the slot, as other
        tokens."""
        self._is_slot_prepared = True
        if self._trimmer is not None:
            held, self._trimmer = self._trimmer.release(), None
            await self._push(held)
        if self._run is not None:
            self._fill(await self._run.rest())
            self._is_rewriting = self._run.is_rewritten

    async def _resume_run(self, text: str) -> None:
        """Add the generated text of a slot to the run. It does not count as prompt."""
        if self._run is None:
            self._run = self._engine.open_text(adds_space=False)
        self._run.resume(text)
        self._is_rewriting = self._run.is_rewritten
        if self._is_rewriting:  # the text may have other tokens than were generated
            self._length = self._position + content_size(await self._run.rest())
        else:
            self._length += len(text)
        self._counted_length = self._length

    def _fill_final(self, content: PromptContent) -> None:
        """Fill content that stays as it is."""
        self._fill(content)
        if content_size(content):
            self._is_rewriting = False
        self._position += content_size(content)

    def _fill(self, content: PromptContent) -> None:
        """Fill content at the position at which the pending text begins."""
        size = content_size(content)
        if not size:
            return
        self._filled_size += size
        self._check_size(self._filled_size)
        if self._is_rewriting:
            self._context.fill(content, start=self._position)
            self._length = self._position + size
        else:
            self._context.fill(content)
            self._length += size
        added, self._counted_length = self._length - self._counted_length, max(self._length, self._counted_length)
        self._call.usage.prompt += math.ceil(max(0, added) * self._engine.tokens_per_unit)
        self._filled.append(content)

    def _check_size(self, size: int) -> None:
        """Raise CallFailed if the prompt is too large for its session: not all engines check the length themselves."""
        maximum = self._call.session.resources.limits.bytes // _TOKEN_BYTES
        if size > maximum:
            message = f"the prompt has more than {maximum} tokens or characters, the maximum of a session"
            raise CallFailed(Failure("too_large", message, self._call.id))

    async def _fill_value(self, segment: Input) -> None:
        """Fill the value of a reference, and wait for it."""
        source = self._source(segment)
        if source.state.is_final or segment.reference.path:
            await self._push(await self._value(segment), in_json=segment.in_json)
        else:
            await self._fill_growing_value(segment, source)

    def _source(self, segment: Input) -> Variable:
        """Return the variable that a reference reads. Raises CallFailed for a slot that is still to be generated."""
        name = segment.reference.name
        slot = self._call.slots.get(name)
        if slot is None:
            return self._call.inputs[name]
        if not slot.state.is_final:  # only this coroutine generates the slot, so it would wait for ever
            message = f"slot {name!r} is read before it is generated"
            log.error("call %s fails: %s", self._call.id, message)
            raise CallFailed(Failure("internal_error", message, self._call.id))
        return slot

    async def _value(self, segment: Input) -> str:
        """Wait for the text that the reference stands for, and return it. Raises CallFailed if the variable fails or
        the path leads nowhere."""
        source = self._source(segment)
        if not source.state.is_final:
            self._mark_waiting()
            await self._inputs.until_readable(source, segment.reference)
        return await self._inputs.read(source, segment.reference)

    def _mark_waiting(self) -> None:
        if self._call.state is not CallState.WAITING:
            self._call.set_state(CallState.WAITING)

    async def _fill_growing_value(self, segment: Input, source: Variable) -> None:
        """Fill a value while it grows, as far as its tokens are stable."""
        self._mark_waiting()
        pending: list[str] = []
        length = filled_length = 0
        with source.read() as reader:
            while pieces := await self._call.next_pieces(reader, source):
                if self._call.default_of(source) is not None:
                    break  # the pieces are the default of the branch, which this call does not read
                for piece in pieces:
                    pending.append(piece.text)
                    length += len(piece.text)
                if length >= _STREAM_CHARACTERS:
                    await self._push("".join(pending), in_json=segment.in_json)
                    filled_length += length
                    pending, length = [], 0
        await self._push((await self._value(segment))[filled_length:], in_json=segment.in_json)

    # slots

    async def _generate(self, slot: Slot) -> None:
        call = self._call
        in_output = self._is_next_in_output(slot)
        if in_output:
            await self._append_parts(slot)
        if slot.name is not None and slot.name in call.slot_texts:  # generated by an earlier attempt
            text = call.slot_texts[slot.name]
            if not self._is_slot_prepared:
                await self._fill_rest()
            self._is_slot_prepared = False
            await self._push(text)
            if in_output:
                call.output.append(Piece(text))
            return
        variable = call.output if slot.name is None else call.slots[slot.name]
        targets = [] if slot.transform is not None else [variable]
        if in_output:
            targets.append(call.output)
        if not self._is_slot_prepared:
            await self._fill_rest()
        self._is_slot_prepared = False
        pieces = await self._generate_pieces(slot, targets)
        text = "".join([piece.text for piece in pieces])
        if slot is not self._rendering.segments[-1]:
            await self._resume_run(text)
        if slot.transform is not None:
            try:
                value = await self._inputs.apply(slot.transform, text)
            except TransformFailed as error:
                raise CallFailed(Failure("transform_failed", str(error), call.id)) from error
            logprobs = tuple(entry for piece in pieces for entry in piece.logprobs)
            tokens = sum(piece.tokens for piece in pieces)
            variable.append(Piece(value, tokens, logprobs, reasoning_of(pieces)))
        if slot.name is not None:
            self._output_size += size_of(text) if in_output else 0
            call.session.record_slot_text(call, slot.name, text)
            call.session.record_value(variable, variable.text)
            await call.session.event_log.flush()
            variable.complete()

    async def _generate_pieces(self, slot: Slot, targets: Sequence[Variable]) -> Sequence[Piece]:
        """Generate a slot, and return its pieces.

        `targets`: variables to which each piece is appended as it arrives.
        """
        call, usage, times, budgets = self._call, self._call.usage, self._call.times, self._call.budgets
        for budget in budgets:
            budget.admit(call)
        times.queued = times.queued or call.session.clock()
        call.set_state(CallState.PREFILL)
        pieces: list[Piece] = []
        sampling, reasoning_mode = slot.sampling, slot.thinks
        if reasoning_mode is not None and sampling.is_constrained:
            if self._engine.constrains_after_reasoning:
                sampling = dataclasses.replace(sampling, thinks=reasoning_mode)
            else:  # the constraint leaves no room for the end of the reasoning
                reasoning_mode = "perhaps"
        parser = None if reasoning_mode is None else ReasoningParser(starts_inside=reasoning_mode == "begun")

        is_finished = False

        def receive(event: ContextEvent) -> None:
            nonlocal is_finished
            if call.state.is_final:  # the call has just been cancelled
                return
            if isinstance(event, TokenDelta):
                piece, finish, accepted, rejected, stop_string = event
                is_finished = finish is not None
                if parser is not None:
                    before = parser.reasoning_tokens
                    reasoning, answer = parser.push(piece.text, tokens=piece.tokens, last=finish is not None)
                    usage.reasoning += parser.reasoning_tokens - before
                    piece = Piece(answer, piece.tokens, piece.logprobs, reasoning)
                if call.state is CallState.PREFILL:
                    times.first_token = times.first_token or call.session.clock()
                    call.set_state(CallState.DECODE)
                usage.completion += piece.tokens
                usage.accepted += accepted
                usage.rejected += rejected
                call.finish_reason, call.stop_string = finish or call.finish_reason, stop_string
                pieces.append(piece)
                for target in targets:
                    target.append(piece)
            elif isinstance(event, PrefillResult):
                usage.cached, usage.missed = event.cached, dict(event.missed)
                times.held, times.starved = event.held, event.starved
                if times.started is None:
                    times.started = call.session.clock()
                    self._on_prefilled(call)
            else:
                usage.prompt, usage.cached, usage.completion = event.prompt, event.cached, event.completion
                usage.reasoning = event.reasoning
            for budget in budgets:
                budget.charge(call)
            for budget in budgets:
                if budget.is_exhausted and not is_finished:
                    raise budget.error()

        await self._context.generate(sampling, receive, heals=slot.heals)
        return pieces

    def _is_next_in_output(self, slot: Slot) -> bool:
        """Return whether the slot is the next one in the output. It may be in an earlier message of the prompt."""
        for part in self._parts:
            if isinstance(part, Input):
                if part.reference.name == slot.name:
                    return True
                other_slot = self._call.slots.get(part.reference.name)
                if other_slot is not None and not other_slot.state.is_final:
                    return False
        return False

    async def _append_parts(self, slot: Slot | None) -> None:
        """Append the parts before `slot` to the output; if `slot` is None, append all remaining parts.

        Raises CallFailed if the value of a part fails or the output becomes too large.
        """
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


def _mark(digest: Digest, text: str) -> None:
    """Add something that is no text of the prompt to a digest. No text in UTF-8 contains the byte 255."""
    digest.update(b"\xff" + text.encode(errors="surrogatepass") + b"\xff")
