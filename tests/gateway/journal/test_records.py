"""gateway/journal/records.py: a fact that is written and read again is the same fact."""

import base64
from array import array

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.graph.call import Call, CallSpec, Input, Objective, Rendering, Slot, Times
from gateway.graph.events import CallAddition
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Text, Trim
from gateway.graph.session import Session
from gateway.graph.transform import Transform
from gateway.journal.records import (
    CallRecord,
    Record,
    entries_of,
    facts_of,
    record_of,
    session_record,
    spec_of,
)


def read_again(record: Record) -> Record:
    ((key, first, entry),) = entries_of([(1, 5, record)])
    assert first == 5
    again_key, facts = msgspec.json.decode(entry, type=tuple[int, msgspec.Raw])
    assert key == again_key == 1
    ((number, restored),) = facts_of(facts)
    assert number == 5
    return restored


samplings = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 99),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-100, 100)),
    stop=st.lists(st.text()).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 9)).map(tuple),
    logprobs=st.booleans(),
)
inputs = st.builds(Input, st.builds(Reference, st.just("x"), st.lists(st.text()).map(tuple)), st.text(), st.booleans())
slots = st.builds(
    Slot,
    st.none() | st.sampled_from(["p", "q"]),
    samplings,
    st.none() | st.builds(Transform, strip=st.booleans(), line=st.none() | st.integers(), json=st.none() | st.text()),
    st.text(),
    st.sampled_from([None, "perhaps", "begun"]),
    st.booleans(),
)
tokens = st.lists(st.integers(0, 2**20)).map(lambda numbers: array("i", numbers))
texts = st.builds(Text, tokens, st.none() | st.integers(0, 9))
characters = st.builds(Characters, st.text(), st.booleans(), st.none() | st.integers(0, 9))
segments = texts | characters | inputs | slots | st.builds(Trim, st.booleans(), st.booleans(), st.booleans())


@given(
    spec=st.builds(
        CallSpec,
        model=st.text(),
        segments=st.lists(segments),
        parts=st.none() | st.lists(st.text() | inputs),
        output=st.just("out"),
        deferred=st.booleans(),
        objective=st.none() | st.sampled_from(Objective),
        share=st.booleans(),
        fallbacks=st.lists(st.builds(Rendering, st.text(), st.lists(segments)), max_size=2).map(tuple),
    )
)
def test_a_call_record_restores_the_call(spec: CallSpec) -> None:
    session = Session(id="s", tenant="t", created=0.0, ttl=1.0)
    made = dict.fromkeys(slot.name for slot in spec.slots if slot.name)
    variables = {name: session.create_variable(name, at) for at, name in enumerate([*made, "out"], 1)}
    call = Call(
        id="call_1",
        spec=spec,
        inputs={},
        slots={name: variables[name] for name in made},
        output=variables["out"],
        times=Times(1.0),
        session=session,
        arrival=0,
    )
    record = read_again(record_of(CallAddition(call)))
    assert isinstance(record, CallRecord)
    assert spec_of(record) == spec


def test_a_session_record_restores_the_session() -> None:
    session = Session(id="s", tenant="t", created=1.5, ttl=1.0, metadata={"ä": "\0"})
    assert read_again(session_record(session)) == session_record(session)


def test_a_call_of_schema_2_is_read() -> None:
    """Read a prompt of tokens beside references, as they were stored before texts were."""
    numbers = base64.b64encode(array("i", [1, 2]).tobytes()).decode()
    slot = ["slot", None, {"max_tokens": 3}, None, "semantic.output", None]
    segments = [["text", numbers, None], ["input", "x", [], "messages.0.content"], slot]
    row = ["call", "call_1", 1.0, 1, "m", segments, None, {"x": 1}, {"out": 2}, False, None, True, "", []]
    ((_, record),) = facts_of(msgspec.json.encode([[1, row]]))
    assert isinstance(record, CallRecord)
    answer = Slot(None, SamplingParams(max_tokens=3))
    assert spec_of(record).segments == [Text(array("i", [1, 2])), Input(Reference("x"), "messages.0.content"), answer]
