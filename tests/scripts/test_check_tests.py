"""scripts/check_tests.py: files that break the mirror of modules and tests are found, others are not."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "check_tests.py"
MODULES = {"gateway/x/y.py", "gateway/z.py"}
TESTS = {"tests/gateway/x/test_y.py", "tests/gateway/test_z.py"}


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_tests", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_mirror_has_no_problems(check: ModuleType) -> None:
    assert list(check.problems(MODULES, TESTS, {}, {})) == []


@pytest.mark.parametrize(
    ("modules", "tests", "untested", "cross_module", "problem"),
    [
        (MODULES, {"tests/gateway/test_z.py"}, {}, {}, "gateway/x/y.py: there is no tests/gateway/x/test_y.py"),
        (MODULES, {*TESTS, "tests/gateway/test_a.py"}, {}, {}, "tests/gateway/test_a.py: tests no module"),
        (MODULES, TESTS, {"gateway/gone.py": "types"}, {}, "gateway/gone.py: listed in UNTESTED, but there is no such"),
        (
            MODULES,
            TESTS,
            {"gateway/z.py": "types"},
            {},
            "gateway/z.py: listed in UNTESTED, but tests/gateway/test_z.py",
        ),
        (
            MODULES,
            TESTS,
            {},
            {"tests/gateway/test_b.py": "all"},
            "tests/gateway/test_b.py: listed in CROSS_MODULE, but",
        ),
        (MODULES, TESTS, {}, {"tests/gateway/test_z.py": "all"}, "it is the test file of gateway/z.py"),
        (MODULES, {"tests/gateway/test_z.py"}, {"gateway/x/y.py": " "}, {}, "listed in UNTESTED without a reason"),
        (MODULES, {*TESTS, "tests/gateway/test_a.py"}, {}, {"tests/gateway/test_a.py": ""}, "without a reason"),
    ],
)
def test_each_break_of_the_mirror_is_one_problem(
    check: ModuleType,
    modules: set[str],
    tests: set[str],
    untested: dict[str, str],
    cross_module: dict[str, str],
    problem: str,
) -> None:
    (found,) = check.problems(modules, tests, untested, cross_module)
    assert problem in found


def test_exceptions_with_a_reason_are_no_problems(check: ModuleType) -> None:
    tests = {"tests/gateway/test_z.py", "tests/gateway/test_all.py"}
    untested, cross_module = {"gateway/x/y.py": "only types"}, {"tests/gateway/test_all.py": "the whole"}
    assert list(check.problems(MODULES, tests, untested, cross_module)) == []


@pytest.mark.parametrize(
    ("module", "text", "needs"),
    [
        ("gateway/x/y.py", "", True),
        ("gateway/x/__init__.py", "", False),
        ("gateway/x/__init__.py", '"""Text."""\n\nfrom gateway.x.y import z\n\n__all__ = ["z"]\n', False),
        ("gateway/x/__init__.py", "def run():\n    pass\n", True),
        ("gateway/x/__init__.py", "class Engine:\n    pass\n", True),
        ("gateway/x/__init__.py", "def __getattr__(name):\n    pass\n", False),
    ],
)
def test_a_package_that_only_imports_needs_no_tests(check: ModuleType, module: str, text: str, needs: bool) -> None:
    assert check.needs_tests(module, text) == needs


def test_this_repository_has_no_problems(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main() == 0, capsys.readouterr().out
