"""Synthetic agent sessions: conversations that grow, fork and start sub-agents, as recorded ones do."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.programs import AnswerFacts, ProgramFacts, ProgramIndex, PromptMessage, prompt_message
from gateway.programs.program import ProgramCall


@dataclass
class Agent:
    """A client that keeps a conversation. Each turn has a text that no other turn has."""

    name: str
    index: ProgramIndex
    tenant: str = "t"
    system: str = "You are a helpful agent."
    messages: list[PromptMessage] = field(default_factory=list)
    turns: int = 0

    def __post_init__(self) -> None:
        if not self.messages:
            self.messages = [prompt_message("system", [self.system])]

    def ask(self, now: float, role: str = "user", text: str | None = None, **options: object) -> ProgramCall:
        """Send a turn and get its answer."""
        self.turns += 1
        self.messages.append(prompt_message(role, [text or f"turn {self.turns} of {self.name}"]))
        return self.send(now, **options)  # type: ignore[arg-type]

    def send(self, now: float, answer: AnswerFacts | None = None, facts: ProgramFacts | None = None) -> ProgramCall:
        """Send the conversation as it is and add the answer to it."""
        facts = facts or ProgramFacts()
        call = self.index.begin(self.tenant, ProgramFacts(list(self.messages), facts.session, facts.ids), now)
        answer = answer or AnswerFacts(f"answer {self.turns} of {self.name}")
        self.index.end(call, answer, now)
        self.messages.append(prompt_message("assistant", [answer.text], answer.tool_calls))
        return call

    def fork(self, turns: int) -> "Agent":
        """Return an agent that goes back by so many turns, and continues from there with other texts."""
        messages = self.messages[: len(self.messages) - 2 * turns]
        return Agent(f"{self.name}/{self.turns}", self.index, self.tenant, self.system, messages)


def run_sessions(index: ProgramIndex, seed: int, sessions: int, turns: int) -> Iterator[tuple[int, ProgramCall, bool]]:
    """Run sessions whose turns alternate. Yield each call with the number of its session, and whether its prompt extends
    an earlier one.

    Some instructions are the same in several sessions. One turn in ten goes back and rewrites the last turns.
    """
    pick = random.Random(seed)
    agents = {
        number: Agent(f"session {seed}.{number}", index, system=f"rules {number % 3}") for number in range(sessions)
    }
    for now in range(sessions * turns):
        number = pick.randrange(sessions)
        agent = agents[number]
        is_first = agent.turns == 0 and len(agent.messages) == 1
        if len(agent.messages) > 5 and pick.random() < 0.1:
            agent = agents[number] = agent.fork(pick.randrange(1, (len(agent.messages) - 1) // 2))
        yield number, agent.ask(float(now), pick.choice(["user", "tool"]) if not is_first else "user"), not is_first
