"""Find the call whose conversation a prompt extends."""

from collections.abc import Sequence

from gateway.programs.facts import SYSTEM_ROLES, AnswerKeys, ProgramFacts, PromptMessage
from gateway.programs.program import ProgramCall

_MAX_EQUAL = 8
"""Maximum number of calls that are remembered for one prompt or answer: the newest."""
_MAX_ANSWERS = 64
"""Maximum number of answers in a prompt, the last ones, by which its conversation is searched."""


class Conversation:
    """The conversation of a prompt as a chain of hashes: one for each place where an answer of a model can follow.

    Messages of the system do not count, because applications change them between turns (the date, a reminder); they
    have a hash of their own.
    """

    __slots__ = ("chain", "depths", "has_answers", "messages", "system")

    def __init__(self, messages: Sequence[PromptMessage]) -> None:
        self.messages = messages
        self.chain: list[int] = []
        """Hash of the conversation up to each place where an answer of a model can follow: before each message of the
        assistant that is not the first of several, and at the end."""
        self.depths: list[int] = []
        """Number of messages up to each of these places."""
        self.has_answers = False
        key = system = 0
        follows_answer = True  # an assistant's message at the start answers no prompt
        for index, message in enumerate(messages):
            role = message.role
            if role in SYSTEM_ROLES:
                system = hash((system, message.key))
                continue
            is_answer = role == "assistant"
            if is_answer:
                self.has_answers = True
                if not follows_answer:
                    self.chain.append(key)
                    self.depths.append(index)
            key = hash((key, message.key))
            follows_answer = is_answer
        self.system = system
        self.chain.append(key)
        self.depths.append(len(messages))

    @property
    def key(self) -> int:
        """Hash of the whole conversation."""
        return self.chain[-1]

    def answer(self, place: int) -> AnswerKeys | None:
        """Return the keys of the message that follows at a place, an index in `chain`; None at the end."""
        depth = self.depths[place]
        return self.messages[depth].answer if depth < len(self.messages) else None


class _CallsByKey:
    """Owner of the calls under a hash, the newest ones for each."""

    def __init__(self) -> None:
        self._calls: dict[int, ProgramCall | tuple[ProgramCall, ...]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, key: int, call: ProgramCall) -> None:
        before = self._calls.get(key)
        if before is None:
            self._calls[key] = call
        elif isinstance(before, tuple):
            self._calls[key] = (*before[1 - _MAX_EQUAL :], call)
        else:
            self._calls[key] = (before, call)

    def remove(self, key: int, call: ProgramCall) -> None:
        """Remove a call. Do nothing if it is not there."""
        found = self._calls.get(key)
        if found is call:
            del self._calls[key]
        elif isinstance(found, tuple) and call in found:
            left = tuple([other for other in found if other is not call])
            self._calls[key] = left[0] if len(left) == 1 else left

    def get(self, key: int) -> tuple[ProgramCall, ...]:
        """Return the calls under a key, the newest last."""
        found = self._calls.get(key)
        return () if found is None else found if isinstance(found, tuple) else (found,)


class ConversationIndex:
    """Owner of the places where the known conversations of one tenant can continue.

    Only ends of prompts and long answers are indexed. So prompts that merely begin alike, with the same instructions or
    examples, are not one conversation.
    """

    def __init__(self) -> None:
        self._prompts = _CallsByKey()
        self._answers = _CallsByKey()

    def __len__(self) -> int:
        return len(self._prompts) + len(self._answers)

    def add(self, call: ProgramCall) -> None:
        """Add the end of a call's prompt."""
        self._prompts.add(call.chain, call)

    def add_answer(self, call: ProgramCall) -> None:
        """Add the answer of a call, unless it is short."""
        if call.answer is not None and call.answer.is_long:
            self._answers.add(call.answer.whole, call)

    def remove(self, call: ProgramCall) -> None:
        """Remove a call. Do nothing if it is not in the index."""
        self._prompts.remove(call.chain, call)
        if call.answer is not None:
            self._answers.remove(call.answer.whole, call)

    def find(self, conversation: Conversation, facts: ProgramFacts) -> tuple[ProgramCall | None, int]:
        """Return the call that the conversation extends, or that it repeats after a failure, and the number of messages
        that both have; (None, 0) if there is none.

        The longest known beginning decides. Among calls with this same prompt, an equal answer decides, then equal
        instructions, then the client's weak id, then the newest that no call extends. A rewritten answer is accepted if
        something supports it: earlier answers in the conversation, the same first words, or the same tools.

        If no beginning is known, because the client has rewritten an early message, the last long answer in the
        conversation that only one program gave decides.
        """
        match, depth = self._find_by_prompt(conversation, facts)
        if match is not None or not conversation.has_answers:
            return match, depth
        return self._find_by_answer(conversation)

    def find_continued(self, conversation: Conversation, match: ProgramCall, depth: int) -> ProgramCall:
        """Return the call whose prompt the conversation should extend. `match`, `depth`: what `find` returned.

        It is the call of the same program that gave the last long answer in the conversation: a client that sends the
        answer back has the prompt before it as well. If no known answer stands behind the match, it is the match. So a
        branch, whose last messages are new, continues the call at which it begins. If a client rewrites a message and
        keeps the answers behind it, the conversation continues the call of the last answer, whose prompt it does not
        extend any more. Conversations without an answer in common continue nothing of each other, whatever their ids.
        """
        for place in range(len(conversation.depths) - 1, max(-1, len(conversation.depths) - 1 - _MAX_ANSWERS), -1):
            position = conversation.depths[place]
            if position <= depth:
                break
            answer = conversation.answer(place)
            if answer is None or not answer.is_long:
                continue
            found = [call for call in self._answers.get(answer.whole) if call.program is match.program]
            if found:
                return next((call for call in reversed(found) if call.depth == position), found[-1])
        return match

    def _find_by_answer(self, conversation: Conversation) -> tuple[ProgramCall | None, int]:
        for place in range(len(conversation.depths) - 1, max(-1, len(conversation.depths) - 1 - _MAX_ANSWERS), -1):
            answer = conversation.answer(place)
            if answer is not None and answer.is_long:
                found = self._answers.get(answer.whole)
                if found and all(call.program is found[0].program for call in found):
                    return found[-1], conversation.depths[place]
        return None, 0

    def _find_by_prompt(self, conversation: Conversation, facts: ProgramFacts) -> tuple[ProgramCall | None, int]:
        weak, system = facts.ids.weak, conversation.system
        for place in range(len(conversation.chain) - 1, -1, -1):
            calls = self._prompts.get(conversation.chain[place])
            if not calls:
                continue
            answer = conversation.answer(place)
            best, best_rank = None, (False, False, False, False)
            for call in reversed(calls):
                if not _continues(call, answer, system, conversation):
                    continue
                is_equal = answer is not None and call.answer is not None and call.answer.whole == answer.whole
                rank = (is_equal, call.system == system, weak is not None and call.weak == weak, not call.is_extended)
                if best is None or rank > best_rank:
                    best, best_rank = call, rank
            if best is not None:
                return best, conversation.depths[place]
        return None, 0


def _continues(call: ProgramCall, answer: AnswerKeys | None, system: int, conversation: Conversation) -> bool:
    """Return whether the conversation, which has the prompt of the call, can be of the same program.

    `answer`: the message that follows the prompt; None if the prompt is the whole conversation.
    """
    if answer is None:
        # the same opening twice: two clients that begin alike, unless the first call had no answer to offer
        return conversation.has_answers or (call.ended is not None and not call.is_done and call.system == system)
    if call.answer is None:  # cut off or still running: the client has at most a part of the answer
        return call.has_answers or call.system == system
    if call.answer.whole == answer.whole:
        return True
    if call.has_answers:
        return True
    is_similar = answer.tools != 0 or (answer.head != 0 and answer.head == call.answer.head)
    return call.system == system and call.answer.tools == answer.tools and is_similar
