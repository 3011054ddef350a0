"""Read code blocks of the documentation."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(name: str) -> dict[str, str]:
    """Return the code blocks of a document by language. Blocks of one language are joined to one program."""
    found: dict[str, list[str]] = {}
    for language, code in re.findall(r"^```([^\n]*)\n(.*?)^```$", (DOCS / name).read_text(), re.DOTALL | re.MULTILINE):
        found.setdefault(language, []).append(code)
    return {language: "\n".join(codes) for language, codes in found.items()}
