"""gateway/journal/form_records.py: forms survive a journal."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.forms.form import Agent, AgentTool, Binding, ToolRun
from gateway.graph.references import Reference
from gateway.graph.segments import Input
from gateway.journal.form_records import AgentRecord, FormRecord, form_of, form_record

TEXTS = st.text(max_size=8)
NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
RUNS = st.builds(ToolRun, TEXTS, TEXTS, TEXTS, inputs=st.just(()), reports_errors=st.just(True))
INPUTS = st.builds(Input, st.builds(Reference, NAMES, st.lists(NAMES, max_size=2).map(tuple)), TEXTS)
AGENTS = st.builds(
    Agent,
    model=TEXTS,
    body=TEXTS,
    prefix=NAMES,
    tools=st.lists(st.builds(AgentTool, TEXTS, TEXTS, TEXTS), max_size=3),
    max_turns=st.integers(1, 100),
    inputs=st.lists(INPUTS, max_size=3),
    binding=st.builds(Binding, st.dictionaries(NAMES, NAMES, max_size=3), st.dictionaries(NAMES, TEXTS, max_size=3)),
    on_max=st.sampled_from(["fail", "answer"]),
    first=st.lists(RUNS | TEXTS, max_size=3),
    final=st.lists(TEXTS, max_size=3),
    max_calls=st.none() | st.integers(1, 100),
)


@given(AGENTS)
def test_an_agent_is_stored(agent: Agent) -> None:
    stored = msgspec.json.encode(form_record(agent))
    restored = form_of(msgspec.json.decode(stored, type=FormRecord))
    assert isinstance(restored, Agent)
    for name in Agent.__dataclass_fields__:
        before, after = getattr(agent, name), getattr(restored, name)
        assert after == (tuple(before) if isinstance(after, tuple) else before), name


def test_agents_of_an_older_journal_have_no_new_fields() -> None:
    record = ["agent", "m", "{}", "p", [["f", "s", "t"]], 10, [], {}, {}, "fail"]
    restored = form_of(msgspec.json.decode(msgspec.json.encode(record), type=AgentRecord))
    assert isinstance(restored, Agent)
    assert (list(restored.first), list(restored.final), restored.max_calls) == ([], [], None)
