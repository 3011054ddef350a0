"""compat/openai/responses/items.py: clients can send back the items of a response unchanged."""

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from compat.openai.responses import (
    FunctionToolCall,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseRequest,
)

TEXTS = st.text(max_size=12)
ARGUMENTS = TEXTS | st.just("") | st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=3).map(json.dumps)
STATES = st.sampled_from(["in_progress", "completed", "incomplete"])
ITEMS = (
    st.builds(OutputMessage, id=TEXTS, status=STATES, content=st.lists(st.builds(OutputText, text=TEXTS), max_size=2))
    | st.builds(FunctionToolCall, id=TEXTS, call_id=TEXTS, name=TEXTS, arguments=ARGUMENTS, status=STATES)
    | st.builds(ReasoningItem, id=TEXTS, content=st.lists(st.builds(ReasoningText, text=TEXTS)), status=STATES)
)


@given(st.lists(ITEMS, max_size=4))
def test_output_items_are_accepted(output: list[Any]) -> None:
    input_items = [{"role": "user", "content": "x"}, *msgspec.to_builtins(output), {"role": "user", "content": "y"}]
    messages, _ = ResponseRequest.model_validate({"model": "m", "input": input_items}).messages_with_paths
    assert messages[0].content == "x"
    assert messages[-1].content == "y"
