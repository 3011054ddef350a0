"""gateway/api/responses/items.py: the items of a response, and their events."""

from itertools import count

from compat.openai import TokenLogprob
from compat.openai.responses import FunctionToolCall, OutputMessage
from gateway.api.responses.items import Items
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallArguments, ToolCallStart


def test_text_around_a_call_is_two_messages_each_with_its_own_log_probabilities() -> None:
    items = Items(count())
    first, second = (TokenLogprob(text, -1.0, [], []) for text in "ab")
    events = items.add(AnswerText("a"), [first])
    for found in (ToolCallStart(0, "look"), ToolCallArguments(0, "{"), ToolCallArguments(0, "}")):
        events += items.add(found)
    events += [*items.add(AnswerText("b"), [second]), *items.end("incomplete")]
    before, call, fallbacks_of = items.done
    assert isinstance(before, OutputMessage)
    assert isinstance(call, FunctionToolCall)
    assert isinstance(fallbacks_of, OutputMessage)
    assert (before.content[0].text, before.content[0].logprobs, before.status) == ("a", [first], "completed")
    assert (call.name, call.arguments, call.status) == ("look", "{}", "completed")
    assert (fallbacks_of.content[0].text, fallbacks_of.content[0].logprobs, fallbacks_of.status) == (
        "b",
        [second],
        "incomplete",
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.output_index for event in events] == sorted(event.output_index for event in events)
    assert len({item.id for item in items.done}) == 3
