"""Tests of engine/config.py."""

from pathlib import Path

import msgspec
import pytest

from engine.config import EngineConfig, default_cache


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"MYNA_CACHE": "/somewhere", "XDG_CACHE_HOME": "/elsewhere"}, "/somewhere"),
        ({"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/myna"),
        ({"XDG_CACHE_HOME": ""}, str(Path.home() / ".cache" / "myna")),
        ({}, str(Path.home() / ".cache" / "myna")),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str) -> None:
    for name in ("MYNA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == folder
    assert EngineConfig().cache == folder


def test_config_survives_the_command_line_of_a_worker() -> None:
    config = EngineConfig(model="x", kv_tokens=7, kv_dtype="fp8", overlap="off")
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config


def test_unknown_choices_are_rejected() -> None:
    with pytest.raises(msgspec.ValidationError, match="overlap"):
        msgspec.json.decode(b'{"overlap": "maybe"}', type=EngineConfig)
