"""A background response: start it, disconnect, stream it from another connection, and continue it by its id.

It also survives a restart of the server, unless that runs with `--journal memory`.
"""

import os

from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")


def begin() -> str:
    """Start a background response without waiting for it. Return its id."""
    with OpenAI(base_url=URL, api_key=KEY) as client:
        work = client.responses.create(
            model=MODEL,
            input="Tell a short story about a lighthouse.",
            max_output_tokens=120,
            temperature=0,
            background=True,
        )
    print(f"{work.id} is {work.status}")
    return work.id


def watch(id: str, pieces: int, after: int = -1) -> int:
    """Print at most `pieces` of the answer after an event, or all if negative. Return the number of the last event."""
    with OpenAI(base_url=URL, api_key=KEY) as client:
        position = {} if after < 0 else {"starting_after": after}
        with client.responses.retrieve(id, stream=True, **position) as events:
            for event in events:
                after = event.sequence_number
                if event.type == "response.output_text.delta":
                    print(event.delta, end="", flush=True)
                    pieces -= 1
                    if pieces == 0:
                        break
    return after


def main() -> None:
    """Start a story, read a part of it, disconnect, read the rest, and request a title for it."""
    id = begin()
    last = watch(id, 10)
    print(" … ", end="")
    watch(id, -1, last)
    print()
    with OpenAI(base_url=URL, api_key=KEY) as client:
        story = client.responses.retrieve(id)
        more = client.responses.create(
            model=MODEL, input="Give it a title.", previous_response_id=id, max_output_tokens=20, temperature=0
        )
    assert story.usage is not None
    print(f"{story.usage.output_tokens} tokens, {story.status}; a title: {more.output_text!r}")


if __name__ == "__main__":
    main()
