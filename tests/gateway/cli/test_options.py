"""gateway/cli/options.py: invalid settings are reported in one line each."""

from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.cli.options import read_settings
from gateway.config.settings import ServeSettings


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(f"MYNA_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "70000"], "port: Input should be less than or equal to 65535"),
        (["serve", "--config", "/no/such/file"], "No such file"),
        (["serve", "--api-key-file", "/no/such/file"], "No such file"),
        (["serve", "--price", "gpt-4o"], "'gpt-4o' is not a price, MODEL=PROMPT/COMPLETION"),
        (["serve", "--price", "gpt-4o=1"], "the price '1' is not PROMPT/COMPLETION"),
        (["engine", "--listen", "nowhere"], "is not HOST:PORT"),
    ],
)
def test_an_invalid_command_line_gets_an_error_of_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_settings_file_with_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "myna.toml"
    file.write_text("prot = 1\n")
    assert main(["serve", "--config", str(file)]) == 2
    assert "prot" in capsys.readouterr().err


def test_each_problem_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_settings(ServeSettings, ["--port", "70000", "--max-calls", "none"], "myna serve") is None
    first, second = sorted(capsys.readouterr().err.splitlines())
    assert first.startswith("myna serve: max_calls: Input should be a valid integer")
    assert second.startswith("myna serve: port: Input should be less than")


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "myna.toml").write_text("port = = 1\n")
    assert read_settings(ServeSettings, ["--config", str(tmp_path / "myna.toml")], "myna serve") is None
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_valid_settings_are_returned(capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_settings(ServeSettings, ["--port", "1"], "myna serve")
    assert settings is not None
    assert settings.port == 1
    assert capsys.readouterr().err == ""
