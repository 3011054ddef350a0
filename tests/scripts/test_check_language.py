"""scripts/check_language.py: retired names and docstrings without a verb are found, others are not."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "check_language.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_language", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "is_function", "wrong"),
    [
        ("Return the length.", True, False),
        ("Feed the parser.", True, False),
        ("The length.", True, True),
        ("Whether it is long.", True, True),
        ("Whether it is long.", False, False),
        ("Of tokens, the number.", False, True),
        ("What is told.", False, True),
        ("Called when it ends.", True, True),
        ("`name` is kept.", True, False),
        ("Interval of the watchdog, in seconds.", False, False),
    ],
)
def test_docstrings_begin_with_a_verb_or_a_noun(check: ModuleType, text: str, is_function: bool, wrong: bool) -> None:
    assert (check.problem_of(text, is_function=is_function) is not None) == wrong


def test_retired_names_come_from_the_glossary(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = check.retired()
    assert names["reader_came"] == "subscribe, subscriber"
    file = tmp_path / "module.py"
    file.write_text('"""A module."""\n\n\ndef reader_came() -> None:\n    """Of a client, the arrival."""\n')
    monkeypatch.setattr(check, "ROOT", tmp_path)
    found = list(check.problems(file, names))
    assert [line.split(":")[1] for line in found] == ["4", "5"]


def test_a_document_may_name_only_files_that_exist(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "ROOT", tmp_path)
    document = tmp_path / "a.md"
    document.write_text("See `graph/call.py` and `gone.py`.\n")
    (problem,) = check.dead_pointers(document, {"gateway/graph/call.py"})
    assert "gone.py" in problem
