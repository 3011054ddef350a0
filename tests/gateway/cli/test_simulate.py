"""gateway/cli/simulate.py: tables, JSON, and options that are refused."""

import json
from pathlib import Path

import pytest

from gateway.cli.main import main as myna
from gateway.cli.simulate import main

FEW = ("--applications", "5", "--seed", "3")


def test_the_same_seed_prints_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        assert main([*FEW, "--policies", "fifo", "myna", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        printed.append([{key: value for key, value in row.items() if key != "us_per_call"} for row in rows])
    assert printed[0] == printed[1]
    assert [row["policy"] for row in printed[0]] == ["fifo", "myna"]


def test_a_mix_of_several_kinds_has_a_table_for_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FEW, "--applications", "20", "--policies", "myna"]) == 0
    text = capsys.readouterr().out
    assert "mean of" in text
    assert "p99 of" in text
    assert main([*FEW, "--mix", "chain", "--policies", "myna"]) == 0
    assert "mean of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--engines", "0"),
        ("--engines", "1025"),
        ("--applications", "0"),
        ("--utilisation", "0"),
        ("--utilisation", "2"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "utilisation in (0, 2)" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--table", "--trace"])
@pytest.mark.parametrize("content", [None, "no JSON\n", "[]\n", "{}\n"])
def test_unusable_files_are_reported_in_one_line(
    option: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    assert main([*FEW, option, str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("myna simulate: ")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert myna(["simulate", "--applications", "10", "--mix", "chain", "--policies", "prefix", "myna", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == ["prefix", "myna"]
    assert myna(["simulate", "--applications", "10", "--engines", "3", "--table", "h100", "--bursts"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split()[:4] == ["policy", "mean", "median", "p99"]
    assert "map_reduce" in text
    assert myna(["simulate", "--engines", "0"]) == 2
