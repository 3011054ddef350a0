"""A chain of two calls: the second reads the answer of the first, and both are sent without waiting.

The only difference from any OpenAI program are two headers. Each call returns immediately, with a reference as answer.
In the next prompt, the reference shows the server that the second call depends on the first.
"""

import os
import uuid

from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")


def main() -> None:
    """Send both calls, then wait for the last answer only."""
    session = f"chain-{uuid.uuid4().hex[:8]}"
    deferred = OpenAI(
        base_url=URL, api_key=KEY, default_headers={"X-Semantic-Session": session, "X-Semantic-Defer": "true"}
    )

    def ask(prompt: str) -> str:
        answer = deferred.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=60, temperature=0
        )
        return answer.choices[0].message.content or ""

    outline = ask("Write three short points about why bees matter.")
    print(f"the first answer, for now: {outline}")
    summary = ask(f"Say this in one sentence:\n\n{outline}")
    print(f"the second answer, for now: {summary}")

    # A call that is not deferred waits for the variables that it reads.
    waiting = OpenAI(base_url=URL, api_key=KEY, default_headers={"X-Semantic-Session": session})
    title = waiting.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Give this a title: {summary}"}],
        max_tokens=20,
        temperature=0,
    )
    print(f"title: {title.choices[0].message.content}")

    graph = waiting.get(f"/sessions/{session}/graph", cast_to=object)
    assert isinstance(graph, dict)
    for call in graph["calls"]:
        reads = ", ".join(call["inputs"]) or "nothing"
        print(f"{call['output']}: {call['state']}, reads {reads}, {call['completion_tokens']} tokens")
    for variable in graph["variables"]:
        print(f"\n{variable['name']} =\n{variable['value']}")


if __name__ == "__main__":
    main()
