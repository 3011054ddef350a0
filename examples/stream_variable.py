"""Stream a variable while it is generated, long after its call was sent. Two subscribers receive the same text."""

import json
import os
import urllib.request
import uuid
from collections.abc import Iterator

from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")


def pieces(session: str, name: str) -> Iterator[str]:
    """Yield the variable's text from its beginning, in pieces as they are generated."""
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{URL}/sessions/{session}/variables/{name}", headers=headers)
    with urllib.request.urlopen(request) as stream:
        for line in stream:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event.get("error"):
                    raise SystemExit(f"the story failed: {event['error']['message']}")
                yield event.get("text", "")


def main() -> None:
    """Send a deferred call for a story, then read the story twice."""
    session = f"story-{uuid.uuid4().hex[:8]}"
    client = OpenAI(base_url=URL, api_key=KEY, default_headers={"X-Semantic-Session": session})
    client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell a short story about a lighthouse."}],
        max_tokens=120,
        temperature=0,
        extra_body={"semantic": {"output": "story", "defer": True}},
    )
    first = ""
    for piece in pieces(session, "story"):
        print(piece, end="", flush=True)
        first += piece
    print()
    again = "".join(pieces(session, "story"))
    print(f"a second subscriber received {'the same' if again == first else 'something else'}, {len(again)} characters")


if __name__ == "__main__":
    main()
