"""Check how one version of the openai package parses streamed calls. Run it with that version on the path, and with the
name of a model as argument."""

import json
import sys
from typing import Any

from openai import OpenAI

MODEL = sys.argv[1]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"rain": {"type": "boolean"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["rain", "days"],
            "additionalProperties": False,
        },
    },
}


def check(calls: Any) -> None:
    """Fail if these are not complete calls of the tool."""
    assert calls, "no call"
    for call in calls:
        arguments = json.loads(call.function.arguments)
        assert (call.function.name, set(arguments)) == ("weather", {"rain", "days"}), call
        assert call.function.parsed_arguments == arguments, call


def main() -> None:
    client = OpenAI(max_retries=0)
    messages: Any = [{"role": "user", "content": "Will it rain?"}]
    options: Any = {"model": MODEL, "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    for parallel, limit in ((False, 60), (True, 600)):
        request = {**options, "parallel_tool_calls": parallel, "max_tokens": limit}
        whole: Any = client.chat.completions.parse(messages=messages, **request)
        with client.chat.completions.stream(messages=messages, **request) as stream:
            done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            streamed: Any = stream.get_final_completion()
        for completion in (whole, streamed):
            assert completion.choices[0].finish_reason == "tool_calls", completion
            check(completion.choices[0].message.tool_calls)
        message = streamed.choices[0].message
        assert len(done) == len(message.tool_calls), "an event for each call, and for no other"
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "yes"} for call in message.tool_calls]
        client.chat.completions.create(messages=[*messages, message, *results], model=MODEL, max_tokens=1)
    function = {"type": "function", **TOOL["function"]}
    with client.responses.stream(
        model=MODEL, input="Will it rain?", tools=[function], tool_choice="required", temperature=0
    ) as events:
        (item,) = list(events)[-1].response.output
    assert set(json.loads(item.arguments)) == {"rain", "days"}, item


if __name__ == "__main__":
    main()
