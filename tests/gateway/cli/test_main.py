"""gateway/cli/main.py: the first argument names a command."""

import pytest

from gateway.cli.main import main


def test_an_unknown_command_is_refused_with_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    printed = capsys.readouterr()
    assert "unknown command 'fly'" in printed.err
    assert "serve " in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("arguments", [[], ["-h"], ["help"]])
def test_without_a_command_the_help_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: myna COMMAND")


@pytest.mark.parametrize("command", ["serve", "engine", "sessions", "graph", "keys", "simulate", "doctor"])
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: myna {command}")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "serve" in capsys.readouterr().out
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("myna 0.")
