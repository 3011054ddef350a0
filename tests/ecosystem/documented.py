"""Code blocks of docs/clients.md that the tests of this folder run."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language that need another program or package."""
    return re.findall(rf"^```{language} ecosystem\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)


def settings_of_agent(language: str, address: str, model: str) -> str:
    """Return the only code block of a language, for a server at this address and this model."""
    (block,) = blocks(language)
    assert "MODEL" in block
    assert "http://127.0.0.1:8000" in block
    return block.replace("MODEL", model).replace("http://127.0.0.1:8000", address)
