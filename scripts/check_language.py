"""Reject retired identifiers, docstrings that do not begin as CONTRIBUTING.md asks for, and dead pointers.

Run it without arguments in the root of the repository, or with paths to check these only. The exit status is 1 if a
file breaks a rule.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
_OPENINGS = (
    *("Of", "By", "That", "With", "Whose", "Who", "Whom", "Whoever", "Whatever", "What", "Those", "These", "Such"),
    *("Nothing", "Nobody", "Somebody", "Anybody", "Everybody", "To", "From", "Where", "When"),
)
"""Words that begin no docstring: genitives, relative clauses, and agents without a name."""
_NO_VERBS = (
    *("The", "A", "An", "All", "Its", "Their", "How", "Whether", "Every", "Each", "No", "None", "One", "Two", "Names"),
    *("As", "In", "At", "On", "For", "Into", "Behind", "If", "It", "Is", "This", "They", "Some", "Not"),
)
"""Words that begin no docstring of a function, which begins with a verb."""
_VERBS = frozenset(
    {"Need", "Feed", "Embed", "Exceed", "Proceed", "Speed", "Seed", "Bring", "Shed", "Ping", "Fling", "Ring"}
)
"""Verbs that look like participles."""


def retired() -> dict[str, str]:
    """Return the retired identifiers of the glossary, each with the term that replaces it."""
    found = {}
    for line in GLOSSARY.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[3]), cells[0])
    return found


def identifiers(text: str) -> Iterator[tuple[int, str]]:
    """Yield the names in a program, each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield line and text of each docstring, and whether it is a function's."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for index, child in enumerate(body):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                continue
            if not isinstance(child.value.value, str):
                continue
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and index == 0
            is_property = function and any("property" in ast.unparse(one) for one in node.decorator_list)
            yield child.lineno, child.value.value, function and not is_property


def problem_of(text: str, *, is_function: bool) -> str | None:
    """Return what is wrong with the beginning of a docstring, or None."""
    match = re.match(r"\s*([A-Za-z]+)", text)
    if match is None:
        return None
    word = match[1]
    if word in _OPENINGS:
        return f"begins with {word!r}"
    if is_function and word in _NO_VERBS:
        return f"begins with {word!r}: a function's docstring begins with a verb"
    if is_function and re.fullmatch(r"[A-Z][a-z]+(ed|ing)", word) and word not in _VERBS:
        return f"begins with the participle {word!r}"
    return None


def problems(path: Path, names: dict[str, str]) -> Iterator[str]:
    """Yield a line for each rule that a file breaks."""
    text = path.read_text()
    shown = path.relative_to(ROOT)
    for line, name in identifiers(text):
        if name in names:
            yield f"{shown}:{line}: {name!r} is retired; the glossary says {names[name]!r}"
    for line, docstring, is_function in docstrings(ast.parse(text)):
        if (problem := problem_of(docstring, is_function=is_function)) is not None:
            yield f"{shown}:{line}: the docstring {problem}: {docstring.strip().splitlines()[0][:60]!r}"


def dead_pointers(path: Path, files: set[str]) -> Iterator[str]:
    """Yield a line for each file of the project that a document names and that does not exist."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for name in re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)\b", line):
            if not any(file == name or file.endswith(f"/{name}") for file in files):
                yield f"{path.relative_to(ROOT)}:{number}: there is no file {name}"


def main(arguments: list[str]) -> int:
    """Print the problems of the files, all tracked ones if none are given. Return the exit status."""
    tracked = subprocess.check_output(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, text=True).split()
    names, files = retired(), set(tracked)
    found: list[str] = []
    for path in arguments or tracked:
        if path.endswith(".md"):
            found += dead_pointers(ROOT / path, files)
        else:
            found += problems(ROOT / path, names)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(found)} problems of language" if found else "The language is in order.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
