"""gateway/journal/form_records.py: a form that is written and read again is the same form."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.budget import Limits
from gateway.graph.call import CallSpec, Objective, Rendering
from gateway.graph.forms.form import Agent, AgentTool, Binding, Branch, Condition, Form, Map, Repeat, ToolRun
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Slot
from gateway.journal.form_records import FormRecord, form_of, form_record
from tests.gateway.journal.test_records import samplings

names = st.sampled_from(["a", "b", "results.0", "a@then"])
inputs = st.builds(Input, st.builds(Reference, names, st.lists(st.text()).map(tuple)), st.text(), st.booleans())
templates = st.lists(st.text() | inputs, max_size=3)
segments = st.lists(
    st.builds(Characters, st.text()) | inputs | st.builds(Slot, st.none() | names, samplings), max_size=3
)
operands = st.sampled_from(["x", ["x", "\ud7ff"], 0.5, {"k": [True, None]}]).map(json.dumps)
conditions = st.builds(
    Condition, templates, st.sampled_from(["equals", "in", "matches", "less_than", "json"]), operands
)
bindings = st.builds(Binding, st.dictionaries(names, names), st.dictionaries(names, st.text()))
parts = st.lists(inputs, max_size=2)
tools = st.builds(ToolRun, st.text(), st.text(), st.text(), parts, bindings, st.booleans())
agents = st.builds(
    Agent,
    model=st.text(),
    body=st.text(),
    prefix=st.text(),
    tools=st.lists(st.builds(AgentTool, st.text(), st.text(), st.text()), max_size=2),
    max_turns=st.integers(1, 9),
    inputs=parts,
    binding=bindings,
    on_max=st.sampled_from(["fail", "answer"]),
    limits=st.none() | st.builds(Limits, tokens=st.integers(1, 9), seconds=st.floats(0.1, 9)),
    first=st.lists(
        st.text() | st.builds(ToolRun, st.text(), st.text(), st.text(), st.just([]), reports_errors=st.just(True)),
        max_size=2,
    ).map(tuple),
    final=st.lists(st.text(), max_size=2).map(tuple),
    max_calls=st.none() | st.integers(1, 9),
    forces_each=st.booleans(),
)


def specs(forms: st.SearchStrategy[Form | None]) -> st.SearchStrategy[CallSpec]:
    return st.builds(
        CallSpec,
        model=st.text(),
        segments=segments,
        output=st.none() | names,
        parts=st.none() | templates,
        objective=st.none() | st.sampled_from(Objective),
        share=st.booleans(),
        salt=st.text(),
        defaults=st.dictionaries(names, st.text(), max_size=2),
        where=st.text(),
        fallbacks=st.lists(st.builds(Rendering, st.text(), segments), max_size=1).map(tuple),
        form=forms,
        more_outputs=st.lists(names, max_size=2),
        unresolved=st.none() | st.text(),
    )


def around(forms: st.SearchStrategy[Form | None]) -> st.SearchStrategy[Form]:
    calls = specs(forms)
    bodies = st.lists(calls, max_size=2)
    carried = st.dictionaries(names, templates, max_size=2)
    return (
        st.builds(
            Map,
            inputs | st.text(),
            names,
            calls,
            st.integers(1, 9),
            st.sampled_from(["fail", "skip", "null"]),
            st.booleans(),
        )
        | st.builds(Branch, conditions, bodies, bodies, st.none() | st.text())
        | st.builds(
            Repeat,
            bodies,
            carried,
            carried,
            conditions,
            st.integers(1, 9),
            st.lists(names),
            st.sampled_from(["fail", "last"]),
        )
    )


@given(around(st.recursive(st.none() | tools | agents, around, max_leaves=4)) | tools | agents)
def test_a_record_restores_the_form(form: Form) -> None:
    stored = msgspec.json.encode(form_record(form))
    assert form_of(msgspec.json.decode(stored, type=FormRecord)) == form
