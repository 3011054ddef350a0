"""gateway/journal/segment_records.py: segments and templates that are written and read again are the same."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.segments import Input, Segment
from gateway.journal.segment_records import (
    InputPart,
    Part,
    segment_record,
    segments_of,
    template_of,
    template_record,
)
from tests.gateway.journal.test_records import inputs, segments


@given(st.lists(segments))
def test_records_restore_the_segments_of_a_prompt(prompt: list[Segment]) -> None:
    stored = msgspec.json.encode([segment_record(segment) for segment in prompt])
    assert segments_of(msgspec.json.decode(stored, type=list[Part])) == prompt


@given(st.lists(st.text() | inputs))
def test_records_restore_a_template(template: list[str | Input]) -> None:
    stored = msgspec.json.encode(template_record(template))
    assert template_of(msgspec.json.decode(stored, type=list[str | InputPart])) == template
