"""Map and reduce: each part is summed up by itself, and one call joins what came of it.

An ordinary program with two headers. All calls are sent at once; the server runs the parts side by side, reads the last
prompt's beginning meanwhile, and the texts between them never travel to the client and back.
"""

import os
import uuid

from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")

PARTS = [
    "The harbour was built in 1820 for ships that carried slate. Sixty men worked there, most from two families.",
    "When the railway came, the slate went by train. By 1900 three ships a year called, and the crane was sold.",
    "Today the harbour belongs to its sailing club. Every August it holds a regatta that fills the town.",
]


def main() -> None:
    """Sends every call, then waits for the last answer only."""
    session = f"harbour-{uuid.uuid4().hex[:8]}"
    deferred = OpenAI(base_url=URL, api_key=KEY, default_headers={"X-Session-Id": session, "X-Semantic-Defer": "true"})
    waiting = OpenAI(base_url=URL, api_key=KEY, default_headers={"X-Session-Id": session})

    def ask(client: OpenAI, prompt: str, max_tokens: int) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0
        )
        return answer.choices[0].message.content or ""

    sums = [ask(deferred, f"Sum this up in one short sentence.\n\n{part}", 40) for part in PARTS]
    print("the parts, for now:", *sums)
    listed = "\n".join(f"- {text}" for text in sums)
    print("the whole:", ask(waiting, f"Write a short history from these notes:\n{listed}", 80))

    usage = waiting.get(f"/sessions/{session}", cast_to=object)["usage"]  # type: ignore[index]
    print(f"{usage['calls_run']} calls, {usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written")


if __name__ == "__main__":
    main()
