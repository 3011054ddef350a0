"""Several roles that work on one text, as one graph: a writer, two reviewers, an editor.

The graph is sent in one request, and checked completely before any call runs. A reviewer fills a form: the model
generates the slots in its assistant message, a regex constrains the verdict, and each slot is a variable.
"""

import os
from typing import Any

from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")


def role(system: str, user: str, output: str, form: str = "", slots: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a call of the graph. `form`: an assistant message with slots."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    if form:
        messages.append({"role": "assistant", "content": form})
    semantic = {"output": output, "slots": slots or {}}
    return {"model": MODEL, "messages": messages, "max_tokens": 60, "temperature": 0, "semantic": semantic}


def reviewer(name: str, concern: str) -> dict[str, Any]:
    """Return a call that reviews the draft with regard to one concern."""
    return role(
        f"You review texts. You care about {concern}.",
        "Review this:\n<<draft>>",
        f"{name}_review",
        f"Verdict: <<{name}_verdict>>\nRemark: <<{name}_remark>>",
        {
            f"{name}_verdict": {"regex": "(accept|revise)"},
            f"{name}_remark": {"max_tokens": 30, "stop": ["\n"], "transform": {"strip": True}},
        },
    )


def main() -> None:
    """Run the graph and print its outputs."""
    client = OpenAI(base_url=URL, api_key=KEY)
    graph = {
        "variables": {"subject": "why the sea is salty"},
        "calls": [
            role("You write short, plain texts.", "Write three sentences on this:\n<<subject>>", "draft"),
            reviewer("facts", "facts"),
            reviewer("style", "style"),
            role(
                "You are an editor.",
                "Draft:\n<<draft>>\nRemarks:\n<<facts_remark>>\n<<style_remark>>\nWrite it better.",
                "final",
            ),
        ],
        "outputs": ["draft", "facts_review", "style_review", "final"],
    }
    answer: Any = client.post("/graphs", body=graph, cast_to=object)
    for name, text in answer["outputs"].items():
        print(f"== {name}\n{text}\n")
    print(f"{answer['usage']['prompt_tokens']} prompt tokens, {answer['usage']['completion_tokens']} generated tokens")


if __name__ == "__main__":
    main()
