"""gateway/cli/simulate_agents.py: tables, JSON, and options that are refused."""

import json
from pathlib import Path

import pytest

from gateway.cli.simulate import main
from tests.gateway.simulator.agents.synthetic import random_lines, write

FEW = ("--sessions", "5", "--tables", "h100", "--oversubscriptions", "2", "--policies", "myna", "--jobs", "1")


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(write(tmp_path / "sessions", random_lines(6, 8)))


def test_json_has_settings_and_ratios(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--agents", file, *FEW, "--utilisations", "0.8", "together", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [setting["utilisation"] for setting in shown["settings"]] == [0.8, 0.0]
    assert set(shown["mean_ratio_to_vllm"]) == {"vllm", "myna"}


def test_the_table_has_a_line_for_each_policy(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--agents={file}", *FEW, "--utilisations", "together", "--without", "pausing"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("5 of 8 sessions, ")
    assert "h100, all at once, oversubscription 2" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == ["policy", *["vllm", "myna"] * 2]


def test_sessions_of_several_keys_take_other_times(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--tables", "cpu", "--oversubscriptions", "4", "--utilisations", "0.9", "--policies", "server", "--json")
    outcomes = []
    for keys in ((), ("--keys", "1"), ("--keys", "3")):
        assert main(["--agents", file, "--sessions", "8", "--jobs", "1", *options, *keys]) == 0
        (setting,) = json.loads(capsys.readouterr().out)["settings"]
        outcomes.append(setting["policies"])
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["vllm"] == outcomes[2]["vllm"], "the keys only matter to the server"
    assert outcomes[0]["server"] != outcomes[2]["server"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sessions", "0"), "must be >= 1"),
        (("--jobs", "0"), "must be >= 1"),
        (("--keys", "0"), "must be >= 1"),
        (("--oversubscriptions", "0"), "must be >= 1"),
        (("--utilisations", "0"), "neither `together` nor a number"),
        (("--utilisations", "nan"), "neither `together` nor a number"),
        (("--utilisations", "often"), "neither `together` nor a number"),
        (("--policies", "unknown"), "invalid choice"),
        (("--without", "unknown"), "invalid choice"),
        (("--half", "2"), "invalid choice"),
    ],
)
def test_bad_options_are_refused(
    arguments: tuple[str, ...], message: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["--agents", file, *arguments])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "no JSON\n", "[]\n", "{}\n"])
def test_unusable_files_are_reported_in_one_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    assert main(["--agents", str(file), *FEW]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("myna simulate: ")
