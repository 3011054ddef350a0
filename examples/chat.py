"""Plain chat: an unmodified OpenAI client with another base URL, given by OPENAI_BASE_URL."""

import os

from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"


def main() -> None:
    """Ask a question, and stream the answer to another one."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=40,
        temperature=0,
    )
    print(answer.choices[0].message.content)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me one thing to see there."}],
        max_tokens=60,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
