"""Work that outlives its client: begun and left, watched from another connection, gone on with by its id.

It outlives the server as well (`myna serve --journal FILE`): stop it in between, start it again, and the answer comes.
"""

import os

from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")


def begin() -> str:
    """Asks, and does not wait; what to come back for."""
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


def watch(id: str, most: int, after: int = -1) -> int:
    """Tells at most so many pieces of the answer behind an event. Returns the number of the last event."""
    with OpenAI(base_url=URL, api_key=KEY) as client:
        behind = {} if after < 0 else {"starting_after": after}
        with client.responses.retrieve(id, stream=True, **behind) as events:
            for event in events:
                after = event.sequence_number
                if event.type == "response.output_text.delta":
                    print(event.delta, end="", flush=True)
                    most -= 1
                    if most == 0:
                        break
    return after


def main() -> None:
    """Begins a story, reads some of it, loses the connection, reads the rest, and asks for its end."""
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
