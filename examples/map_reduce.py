"""Map and reduce: a call summarises each part, and one call joins the summaries.

An ordinary program with two headers. All calls are sent without waiting. The server runs the parts concurrently,
prefills the beginning of the last prompt meanwhile, and does not send the intermediate texts to the client and back.
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
    """Send all calls, then wait for the last answer only."""
    session = f"harbour-{uuid.uuid4().hex[:8]}"
    deferred = OpenAI(
        base_url=URL, api_key=KEY, default_headers={"X-Semantic-Session": session, "X-Semantic-Defer": "true"}
    )
    waiting = OpenAI(base_url=URL, api_key=KEY, default_headers={"X-Semantic-Session": session})

    def ask(client: OpenAI, prompt: str, max_tokens: int) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0
        )
        return answer.choices[0].message.content or ""

    summaries = [ask(deferred, f"Sum this up in one short sentence.\n\n{part}", 40) for part in PARTS]
    print("the parts, for now:", *summaries)
    listed = "\n".join(f"- {text}" for text in summaries)
    print("the whole:", ask(waiting, f"Write a short history from these notes:\n{listed}", 80))

    usage = waiting.get(f"/sessions/{session}", cast_to=object)["usage"]  # type: ignore[index]
    prompt, generated = usage["prompt_tokens"], usage["completion_tokens"]
    print(f"{usage['calls_run']} calls, {prompt} prompt tokens, {generated} generated tokens")


if __name__ == "__main__":
    main()
