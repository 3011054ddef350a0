"""The live programs of all tenants."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from gateway.graph.call import Call
from gateway.graph.ids import new_id
from gateway.graph.limits import SharedLimit
from gateway.programs.conversation_index import Conversation, ConversationIndex
from gateway.programs.facts import SYSTEM_ROLES, AnswerFacts, ProgramFacts, answer_keys
from gateway.programs.program import CallRecord, Edge, Evidence, LostPrefix, Program, ProgramCall
from gateway.programs.prompt_memory import HeldPrompt, PromptMemory
from gateway.programs.text_links import MIN_CHARACTERS, MIN_WHOLE_CHARACTERS, TextLink, TextLinks

_PROGRAM_BYTES, _CALL_BYTES, _NAME_BYTES, _EDGE_BYTES, _TOOL_NAME_BYTES = 900, 2_000, 400, 200, 120
"""Approximate memory of a program, of one of its calls, of a name of either's client, of an edge, and of a tool's name,
in bytes. Texts of answers count in `TextLinks`, and prompts in `PromptMemory`."""
_LOST_PREFIX_BYTES = 1_600
"""Approximate memory of a `LostPrefix` with its excerpts, in bytes."""
_MAX_COMPARED_CALLS = 32
"""Maximum number of calls of a program, the newest, among which the call with a short answer is searched."""
_MAX_NAMES = 64
"""Maximum number of the client's ids, and of former ids, that are remembered for one program."""
_MAX_EDGES = 128
"""Maximum number of edges to one call."""
_MAX_TOOL_NAMES = 16
"""Maximum number of tool names that are remembered for one answer."""
_TOOL_NAME_CHARACTERS = 64
"""Number of characters of a tool's name that are remembered."""
_MAX_ABSORBED_CALLS = 16
"""Maximum number of calls of a program that is merged into another one."""
_MAX_SYSTEMS = 256
"""Number of instructions of one tenant that are remembered, because their texts were searched before."""
_PROMPT_CHARACTERS = 65_536
"""Maximum length of the prompt's texts that are held while a call runs, in characters."""
_MAX_ARGUMENT = 1_024
"""Number of characters at the start of a tool's argument in which text of a later prompt must begin: the prompt of a
sub-agent is a whole argument, and other arguments are as long as files."""
_MAX_WORK = 64
"""Maximum work of forgetting in one method, beyond the last call: one for each call, and for each `_WORK_WINDOWS`."""
_WORK_WINDOWS = 256
"""Number of windows of `TextLinks` that are forgotten in about the time of one call without texts."""
_JOINING_SHARE = 0.5
"""Share of an answer that a new conversation must contain to join its program."""


@dataclass(frozen=True)
class ProgramLimits:
    """Limits of what is remembered.

    `programs`, `bytes`: of all tenants together. `program_calls`: calls of one program. `text_bytes`, `prompt_bytes`:
    memory for texts of answers and for the latest prompts, of all tenants together. `idle_seconds`: time after its last
    request at which a program without running calls is forgotten.
    """

    programs: int = 50_000
    bytes: int = 128 << 20
    program_calls: int = 512
    text_bytes: int = 64 << 20
    prompt_bytes: int = 64 << 20
    idle_seconds: float = 7_200.0


@dataclass(eq=False, slots=True)
class _Tenant:
    """The programs of one tenant, the one that was used longest ago first, and the ways to them."""

    programs: "OrderedDict[str, Program]" = field(default_factory=OrderedDict)
    names: dict[str, Program] = field(default_factory=dict)
    former: dict[str, Program] = field(default_factory=dict)
    conversations: ConversationIndex = field(default_factory=ConversationIndex)
    systems: "OrderedDict[int, None]" = field(default_factory=OrderedDict)


class _TextSource(NamedTuple):
    """A text of a call: its answer, or an argument of a tool that the answer calls."""

    call: ProgramCall
    is_argument: bool


class ProgramIndex:
    """Owner of the live programs of all tenants. It finds the program of each request, in this order:

    1. A session of the gateway that the request names is one program.
    2. A session id that the agent sends is one program; with the id of a parent, it is the parent's program. A new id
       without a parent belongs to a program if a tool call of that program contains the prompt. Such a program may have
       many conversations, as Claude Code sends one id for all its agents.
    3. A request that extends a known conversation belongs to its program. See `ConversationIndex.find`.
    4. A new conversation belongs to a program if it contains at least half of an answer of that program, or if a tool
       call of the program contains its prompt. At least one of these texts must come from one call only. If the
       conversation contains answers of several programs, as the last call of a map-reduce does, the index chooses one:
       a program with an id, else the one with most calls. The small programs without an id are merged into it.
    5. Any other request begins a program.

    `prompt_cache_key` and `metadata.user_id` are weak ids: applications set one for all their requests. A weak id never
    makes two conversations one program. It only decides between programs whose conversations are equal.

    A client that sends another client's id or text changes only how requests of its own API key are grouped. All memory
    is bounded; see `ProgramLimits`. If the memory is full, the index forgets the longest idle program of the tenant
    with the most memory. If a tenant exceeds its own share, the index forgets that tenant's longest idle programs. Each
    method forgets a bounded number of calls, and a large program in parts. So the limits can be exceeded for some
    requests. A method never fails because of what a client sent.
    """

    def __init__(self, limits: ProgramLimits | None = None, *, several_tenants: bool = True) -> None:
        """`several_tenants`: whether there can be more than one tenant; if so, no tenant alone can use all memory."""
        self.limits = limits or ProgramLimits()
        self.on_forgotten: Callable[[str], object] = lambda program: None
        """Called with the id of each program that is forgotten, or has become part of another one."""
        self._tenants: dict[str, _Tenant] = {}
        self._idle: OrderedDict[str, Program] = OrderedDict()
        """All programs, the one that was used longest ago first."""
        self._uses = 0
        self._counts = SharedLimit(self.limits.programs, several=several_tenants)
        self._bytes = SharedLimit(self.limits.bytes, several=several_tenants)
        self._links: TextLinks[_TextSource] = TextLinks(
            self.limits.text_bytes, several_tenants=several_tenants, owner_of=lambda source: source.call
        )
        self._prompts: PromptMemory[ProgramCall] = PromptMemory(
            self.limits.prompt_bytes, several_tenants=several_tenants
        )

    def __len__(self) -> int:
        return len(self._idle)

    @property
    def bytes(self) -> int:
        """Approximate memory of all programs without the texts of answers, in bytes."""
        return sum(map(self._bytes.amount, self._tenants))

    @property
    def text_bytes(self) -> int:
        """Approximate memory of the texts of answers, in bytes."""
        return self._links.bytes

    @property
    def prompt_bytes(self) -> int:
        """Approximate memory of the latest prompts, in bytes."""
        return self._prompts.bytes

    # requests

    def begin(
        self,
        tenant: str,
        facts: ProgramFacts,
        now: float,
        *,
        call_id: str | None = None,
        searches: bool = True,
        unix_time: float = 0.0,
    ) -> ProgramCall:
        """Return the place of a new call in its program. Pair it with `end`.

        `now`: seconds of any clock that does not go back, the same for all methods. `call_id`: unique id of the call.
        `searches`: whether texts of answers are looked for in the prompt. `unix_time`: Unix time of the request, in
        seconds, which is only shown.
        """
        self.expire(now)
        held = self._tenants.get(tenant)
        if held is None:
            held = self._tenants[tenant] = _Tenant()
        conversation = Conversation(facts.messages)
        match, depth = held.conversations.find(conversation, facts)
        continued: ProgramCall | None
        if match is not None and depth == len(facts.messages):  # a repetition is a branch beside the first try
            parent, depth = match.parent, match.parent.depth if match.parent is not None else 0
            continued = parent
        else:
            parent = match
            continued = None if match is None else held.conversations.find_continued(conversation, match, depth)
        texts = self._new_texts(held, conversation, depth)
        links = self._links.find(tenant, texts) if texts and searches else []
        program, evidence, spawner = self._program_of(held, tenant, facts, match, links, now)
        call = ProgramCall(
            id=call_id or f"call_{new_id(16)}",
            program=program,
            begun=now,
            chain=conversation.key,
            depth=len(facts.messages),
            system=conversation.system,
            has_answers=conversation.has_answers,
            weak=facts.ids.weak,
            parent=parent,
            evidence=evidence,
            edges=_edges(parent, spawner, links),
            prompt=_held_texts(texts),
            continued=continued or _find_by_place(program, conversation),
        )
        if parent is not None:
            parent.is_extended = True
            self._touch(parent)
        self._add_call(held, program, call)
        program.last_used_at = max(program.last_used_at, unix_time)
        if program.call_count == 1:
            program.created_at = unix_time
        else:
            program.last_used = now
            self._use(program)
        self._make_room(program)
        return call

    def begin_beside(self, first: ProgramCall, now: float, *, call_id: str | None = None) -> ProgramCall:
        """Return the place of another call of the same request, with the same prompt. Pair it with `end`."""
        call = ProgramCall(
            id=call_id or f"call_{new_id(16)}",
            program=first.program,
            begun=now,
            chain=first.chain,
            depth=first.depth,
            system=first.system,
            has_answers=first.has_answers,
            weak=first.weak,
            parent=first.parent,
            evidence=first.evidence,
            edges=first.edges,
            prompt=first.prompt,
        )
        held = self._tenants.get(first.program.tenant)
        if first.is_forgotten or held is None:
            call.is_forgotten = True
            first.program.running += 1
        else:
            self._add_call(held, first.program, call)
        return call

    def _new_texts(self, held: _Tenant, conversation: Conversation, depth: int) -> list[str]:
        """Return the texts of a prompt that were not in the prompt which it extends, without the answer to that."""
        texts: list[str] = []
        is_known = conversation.system in held.systems
        if conversation.system and not is_known:
            held.systems[conversation.system] = None
            if len(held.systems) > _MAX_SYSTEMS:
                held.systems.popitem(last=False)
        for message in conversation.messages[depth:] if depth else conversation.messages:
            if message.role != "assistant" and not (is_known and message.role in SYSTEM_ROLES):
                texts += message.texts
        return texts

    def _program_of(
        self,
        held: _Tenant,
        tenant: str,
        facts: ProgramFacts,
        match: ProgramCall | None,
        links: Sequence[TextLink[_TextSource]],
        now: float,
    ) -> tuple[Program, Evidence, ProgramCall | None]:
        """Return the program of a request, what connects it, and the call that started its session, if one did."""
        if facts.session is not None:
            name = f"session\0{facts.session}"
            program = held.names.get(name) or self._new_program(held, tenant, now, name)
            program.session = facts.session
            return program, "session", None
        ids = facts.ids
        spawner: ProgramCall | None = None
        if ids.session is not None:
            known = held.names.get(ids.session)
            if known is not None:
                return known, "id", None
            if ids.parent is None or ids.parent == ids.session:
                for link in links:
                    if link.source.is_argument and _joins(link):
                        spawner = link.source.call
                        self._add_name(held, spawner.program, ids.session)
                        return spawner.program, "text", spawner
                program = self._new_program(held, tenant, now, ids.session)
                program.is_named = True
                return program, "id", None
            parent = held.names.get(ids.parent)
            if parent is None:
                parent = self._new_program(held, tenant, now, ids.parent)
                parent.is_named = True
            elif parent.calls:
                spawner = next(reversed(parent.calls.values()))
            self._add_name(held, parent, ids.session)
            return parent, "id", spawner
        if match is not None:
            return match.program, "content", None
        if not links:
            return self._new_program(held, tenant, now), "none", None
        linked = [link for link in links if _joins(link)]
        if all(link.is_common for link in linked):
            return self._new_program(held, tenant, now), "none", None
        joined = [link.source.call.program for link in linked]
        program = max(joined, key=lambda candidate: (candidate.is_named, candidate.call_count))
        for other in {id(other): other for other in joined}.values():
            self._absorb(held, program, other)
        return program, "text", None

    def end(self, call: ProgramCall, answer: AnswerFacts, now: float, record: CallRecord | None = None) -> None:
        """Record the end of a call and its answer. Do nothing if it has ended already."""
        if call.ended is not None:
            return
        program, prompt = call.program, call.prompt
        call.ended, call.prompt, call.call, call.parser_factory, call.record = now, (), None, None, record
        call.continued = call.source = None
        program.running -= 1
        if record is not None:
            program.prompt_tokens += record.usage.prompt
            program.cached_tokens += record.usage.cached
            program.completion_tokens += record.usage.completion
            program.cost += record.cost or 0.0
        call.is_done = answer.state == "done"
        if answer.text or answer.tool_calls:
            call.answer = answer_keys(answer.text, answer.tool_calls)
            if answer.tool_calls:
                names = [name[:_TOOL_NAME_CHARACTERS] for name, _ in answer.tool_calls[:_MAX_TOOL_NAMES]]
                call.tool_names = tuple(names)
        if call.is_forgotten:
            return
        self._touch(call)
        if call.tool_names:
            self._count_bytes(call, _TOOL_NAME_BYTES * len(call.tool_names))
        held = self._tenants[program.tenant]
        held.conversations.add_answer(call)
        program.last_used = max(program.last_used, now)
        if record is not None and record.times.finished is not None:
            program.last_used_at = max(program.last_used_at, record.times.finished)
        self._use(program)
        if call.is_done:
            if len(answer.text) >= MIN_WHOLE_CHARACTERS:
                self._links.add(program.tenant, _TextSource(call, False), [answer.text], prompt)
            if answer.tool_calls and (arguments := answer.argument_texts):
                self._links.add(program.tenant, _TextSource(call, True), arguments, prompt, most=_MAX_ARGUMENT)

    def attach(self, member: ProgramCall, call: Call) -> None:
        """Let a place in a program show the state of its call while that runs."""
        if member.ended is None:
            member.call = call

    def prompt_of(self, call: ProgramCall) -> HeldPrompt | None:
        """Return the prompt of a call and mark it as most recently used; None if it is not remembered."""
        return self._prompts.get(call.program.tenant, call)

    def remember_prompt(self, call: ProgramCall, prompt: HeldPrompt | None, instead: ProgramCall | None = None) -> None:
        """Remember the prompt of a call, in place of that of the call which it continues. None: it is too large."""
        if instead is not None:
            self._prompts.remove(instead.program.tenant, instead)
        if prompt is not None and not call.is_forgotten:
            self._prompts.add(call.program.tenant, call, prompt)

    def report(self, call: ProgramCall, lost: LostPrefix) -> None:
        """Record why a call does not extend the prompt of the call which it continues."""
        if call.lost_prefix is None and not call.is_forgotten:
            call.lost_prefix = lost
            self._count_bytes(call, _LOST_PREFIX_BYTES)

    # queries

    def of_tenant(self, tenant: str) -> Iterator[Program]:
        """Iterate over the tenant's programs, the one that was used last first."""
        held = self._tenants.get(tenant)
        return iter(()) if held is None else reversed(held.programs.values())

    def all_of(self, tenant: str) -> list[Program]:
        """Return the tenant's programs in no order: `of_tenant` takes twenty times as long for many programs."""
        held = self._tenants.get(tenant)
        return [] if held is None else list(dict.values(held.programs))

    def find(self, tenant: str, id: str) -> Program | None:
        """Return the tenant's program of this id, or the one that it became part of; None if there is none."""
        held = self._tenants.get(tenant)
        return None if held is None else held.programs.get(id) or held.former.get(id)

    # memory

    def expire(self, now: float) -> None:
        """Forget calls of programs that were idle for too long, and these programs once they have no calls. Each call
        of this method does a bounded part of that."""
        work = _MAX_WORK
        while work > 0 and self._idle:
            oldest = next(iter(self._idle.values()))
            if now - oldest.last_used <= self.limits.idle_seconds:
                return
            if oldest.running:
                oldest.last_used = now  # look again later
                self._use(oldest)
                work -= 1
            else:
                work = self._forget(oldest, work)

    def forget_some(self, tenant: str) -> bool:
        """Forget a bounded number of calls of a tenant, and programs without calls. Return False once there are
        none."""
        work = _MAX_WORK
        while work > 0 and (held := self._tenants.get(tenant)) is not None:
            work = self._forget(next(iter(held.programs.values())), work)
        return tenant in self._tenants

    def _new_program(self, held: _Tenant, tenant: str, now: float, name: str | None = None) -> Program:
        program = Program(f"prog_{new_id(24)}", tenant, created_at=0.0, last_used=now)
        held.programs[program.id] = self._idle[program.id] = program
        self._use(program)
        self._counts.add(tenant)
        self._bytes.add(tenant, _PROGRAM_BYTES)
        if name is not None:
            self._add_name(held, program, name)
        return program

    def _use(self, program: Program) -> None:
        """Mark a program as the one that was used last."""
        self._uses += 1
        program.order = self._uses
        self._tenants[program.tenant].programs.move_to_end(program.id)
        self._idle.move_to_end(program.id)

    def _add_name(self, held: _Tenant, program: Program, name: str) -> None:
        held.names[name] = program
        program.names.append(name)
        self._bytes.add(program.tenant, _NAME_BYTES)
        if len(program.names) > _MAX_NAMES:
            del held.names[program.names.pop(1)]  # the first one is its own
            self._bytes.remove(program.tenant, _NAME_BYTES)

    def _add_call(self, held: _Tenant, program: Program, call: ProgramCall) -> None:
        program.calls[call.id] = call
        program.call_count += 1
        program.running += 1
        self._count_bytes(call, _CALL_BYTES + _EDGE_BYTES * len(call.edges))
        held.conversations.add(call)
        if len(program.calls) > self.limits.program_calls:
            self._forget_call(held, next(iter(program.calls.values())))

    def _count_bytes(self, call: ProgramCall, size: int) -> None:
        call.size += size
        self._bytes.add(call.program.tenant, size)

    def _touch(self, call: ProgramCall) -> None:
        """Mark the call as the most recently used one of its program."""
        if not call.is_forgotten:
            call.program.calls.move_to_end(call.id)

    def _forget_call(self, held: _Tenant, call: ProgramCall) -> int:
        """Forget a call. Return the work that this took; see `_MAX_WORK`."""
        call.is_forgotten = True
        call.parent = call.continued = None
        call.prompt = ()
        self._prompts.remove(call.program.tenant, call)
        del call.program.calls[call.id]
        held.conversations.remove(call)
        self._bytes.remove(call.program.tenant, call.size)
        sources = [_TextSource(call, is_argument) for is_argument in (False, True)]
        return 1 + sum([self._links.remove(call.program.tenant, source) for source in sources]) // _WORK_WINDOWS

    def _forget(self, program: Program, work: int) -> int:
        """Forget calls of a program, and the program once it has none. Return how much is left of `work`."""
        tenant = program.tenant
        held = self._tenants[tenant]
        while program.calls:
            if work <= 0:
                return work
            work -= self._forget_call(held, next(iter(program.calls.values())))
        for name in program.names:
            del held.names[name]
        for former in program.former_ids:
            del held.former[former]
        self._bytes.remove(tenant, _PROGRAM_BYTES + _NAME_BYTES * (len(program.names) + len(program.former_ids)))
        self._counts.remove(tenant)
        del held.programs[program.id], self._idle[program.id]
        if not held.programs:
            del self._tenants[tenant]
        self.on_forgotten(program.id)
        return work

    def _absorb(self, held: _Tenant, program: Program, other: Program) -> None:
        """Merge another program into this one, if it is small and no id names it."""
        if other is program or other.names or len(program.former_ids) + len(other.former_ids) >= _MAX_NAMES:
            return
        if other.call_count > _MAX_ABSORBED_CALLS or len(program.calls) + len(other.calls) > self.limits.program_calls:
            return
        for call in other.calls.values():
            call.program = program
        program.calls.update(other.calls)
        for former in (other.id, *other.former_ids):
            held.former[former] = program
            program.former_ids.append(former)
        for name in ("call_count", "running", "prompt_tokens", "cached_tokens", "completion_tokens", "cost"):
            setattr(program, name, getattr(program, name) + getattr(other, name))
        program.created_at = min(program.created_at, other.created_at)
        del held.programs[other.id], self._idle[other.id]
        self._counts.remove(program.tenant)
        self._bytes.remove(program.tenant, _PROGRAM_BYTES - _NAME_BYTES)
        self.on_forgotten(other.id)

    def _make_room(self, newest: Program) -> None:
        """Forget programs until the limits hold, but not the newest: first those of its tenant, if that exceeds its
        share, then those of the tenant with the most."""
        tenant, work = newest.tenant, _MAX_WORK
        for limit in (self._counts, self._bytes):
            while work > 0 and not limit.has_room(tenant, 0):
                work = self._forget_oldest_of(tenant, newest, work)
            for largest in limit.excess_holders():
                if work <= 0:
                    break
                work = self._forget_oldest_of(largest, newest, work)

    def _forget_oldest_of(self, tenant: str, newest: Program, work: int) -> int:
        """Forget the tenant's program that was used longest ago. Return how much is left of `work`: nothing if that
        program is the newest, which stays."""
        oldest = next(iter(self._tenants[tenant].programs.values()))
        return 0 if oldest is newest else self._forget(oldest, work)


def _find_by_place(program: Program, conversation: Conversation) -> ProgramCall | None:
    """Return the call of the program that gave the last answer in the conversation at the same place, however short the
    answer is. It connects turns of an agent with an id whose early messages change from turn to turn."""
    if not program.calls or len(conversation.depths) < 2:
        return None
    answer, depth = conversation.answer(len(conversation.depths) - 2), conversation.depths[-2]
    for call in islice(reversed(program.calls.values()), _MAX_COMPARED_CALLS):
        if call.depth == depth and call.answer is not None and answer is not None and call.answer.whole == answer.whole:
            return call
    return None


def _joins(link: TextLink[_TextSource]) -> bool:
    """Return whether a text in common makes a new conversation part of the program."""
    if link.source.is_argument:
        return link.is_prompt
    return link.length >= MIN_CHARACTERS and link.share >= _JOINING_SHARE


def _edges(
    parent: ProgramCall | None, spawner: ProgramCall | None, links: Sequence[TextLink[_TextSource]]
) -> tuple[Edge, ...]:
    if parent is None and spawner is None and not links:
        return ()
    edges: list[Edge] = []
    if parent is not None:
        edges.append(Edge(parent.id, parent.program.id, "extends"))
    if spawner is not None:
        edges.append(Edge(spawner.id, spawner.program.id, "spawns"))
    for link in links[:_MAX_EDGES]:
        source = link.source.call
        if source is parent or source is spawner:
            continue
        spawns = link.source.is_argument and link.is_prompt and parent is None
        edges.append(Edge(source.id, source.program.id, "spawns" if spawns else "answer", link.length))
    return tuple(edges)


def _held_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that are held while the call runs."""
    if len(texts) == 1:
        return (texts[0][:_PROMPT_CHARACTERS],)
    held, left = [], _PROMPT_CHARACTERS
    for text in texts:
        if left <= 0:
            break
        held.append(text[:left])
        left -= len(text)
    return tuple(held)
