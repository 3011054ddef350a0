"""gateway/config/settings.py: options, variables and the settings file."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.config.settings import ServeSettings, parse


def settings(*arguments: str) -> ServeSettings:
    return parse(ServeSettings, arguments, "myna serve")


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(f"MYNA_{name.upper()}", raising=False)


def test_options_take_precedence_over_variables_and_variables_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "myna.toml"
    file.write_text('port = 1\nkv_tokens = 11\nmax_calls = 111\napi_key = ["a", "b"]\nprefix_sharing = false\n')
    monkeypatch.setenv("MYNA_PORT", "2")
    monkeypatch.setenv("MYNA_KV_TOKENS", "22")
    parsed = settings("--config", str(file), "--port", "3")
    assert (parsed.port, parsed.kv_tokens, parsed.max_calls) == (3, 22, 111), "option, then variable, then file"
    assert list(parsed.keys()) == ["a", "b"]
    assert parsed.prefix_sharing is False
    monkeypatch.setenv("MYNA_CONFIG", str(file))
    assert settings("--prefix-sharing").prefix_sharing is True
    assert settings().max_calls == 111


def test_a_settings_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        settings("--config", str(tmp_path / "none.toml"))
    with pytest.raises(IsADirectoryError):
        settings("--config", str(tmp_path))


def test_every_setting_has_an_option_and_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        settings("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name, field in ServeSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description


def test_keys_come_from_options_variable_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nthree\n\n four \n  # heavy\nfive 2.5\n")
    keys = settings("--api-key", "one", "--api-key", "two", "--api-key-file", str(file)).keys()
    assert keys == {"one": 1.0, "two": 1.0, "three": 1.0, "four": 1.0, "five": 2.5}
    monkeypatch.setenv("MYNA_API_KEY", "five, six")
    assert settings().keys() == {"five": 1.0, "six": 1.0}
    file.write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no API key"):
        settings("--api-key-file", str(file)).keys()
    for weight in ("0", "-1", "much", "nan", "inf", "1 2"):
        file.write_text(f"secret {weight}\n")
        with pytest.raises(ValueError, match=f"invalid weight '{weight}' of the key secr…"):
            settings("--api-key-file", str(file)).keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "70000"],
        ["--kv-tokens", "-1"],
        ["--api-key", " "],
        ["--step-tokens", "many"],
        ["--step-tokens", "8"],
        ["--device", "gpu"],
    ],
)
def test_invalid_values_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ValidationError):
        settings(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "advertise is missing"),
        (["--uds", "/tmp/x"], "advertise is missing"),
        (["--advertise", "gateway-1:8000"], "is not http\\(s\\)://HOST:PORT"),
        (["--parrot-api"], "cannot be combined with a shared journal"),
        (["--lease", "0.1"], "greater than or equal to 1"),
        (["--journal", "memory", "--advertise", "http://a:1"], "requires a shared journal"),
    ],
)
def test_gateways_on_a_shared_journal_must_be_reachable(arguments: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse(ServeSettings, ["--journal", "postgresql://h/db", *arguments], "myna serve")


def test_a_journal_is_a_file_or_a_database() -> None:
    database = parse(
        ServeSettings, ["--journal", "postgres://h/db", "--host", "::", "--advertise", "http://a:1"], "myna"
    )
    assert (database.journal_url(), database.journal_file()) == ("postgres://h/db", None)
    file = parse(ServeSettings, ["--journal", "postgresql"], "myna")
    assert (file.journal_url(), file.journal_file()) == (None, Path("postgresql"))


def test_texts_in_traces_need_a_collector() -> None:
    with pytest.raises(ValidationError, match="otlp_texts needs otlp_endpoint"):
        settings("--otlp-texts")
    assert settings("--otlp-texts", "--otlp-endpoint", "http://localhost:4318").otlp_texts
    assert not settings("--otlp-endpoint", "http://localhost:4318").otlp_texts, "off by default"


def test_admin_keys_are_long_and_no_api_keys(tmp_path: Path) -> None:
    file = tmp_path / "admin"
    file.write_text("# who\nadmin-key-in-a-file\n\n")
    settings = ServeSettings(admin_key=["admin-key-as-option"], admin_key_file=file)
    assert settings.admin_keys() == ["admin-key-as-option", "admin-key-in-a-file"]
    assert ServeSettings().admin_keys() == []
    with pytest.raises(ValidationError, match="at least 16 characters"):
        ServeSettings(admin_key=["short"])
    with pytest.raises(ValueError, match="must not be an API key as well"):
        ServeSettings(admin_key=["admin-key-as-option"], api_key=["admin-key-as-option"]).admin_keys()
    for text, message in (("short", "at least 16 characters"), ("# none\n", "has no admin key")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            ServeSettings(admin_key_file=file).admin_keys()
    with pytest.raises(OSError, match="No such file"):
        ServeSettings(admin_key_file=tmp_path / "missing").admin_keys()


@pytest.mark.parametrize("seconds", [0, -1, 601, float("nan")])
def test_the_wait_for_a_limit_has_bounds(seconds: float) -> None:
    with pytest.raises(ValidationError):
        ServeSettings(over_limit="wait", over_limit_wait=seconds)
