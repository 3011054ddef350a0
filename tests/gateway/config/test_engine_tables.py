"""gateway/config/engine_tables.py: engines of `--engine` and of tables in TOML."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.engine_tables import EngineTable, host_and_port, parse_engine, parse_pair, with_unique_names
from gateway.engines.openai import KINDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gpu-1:5000", ("gpu-1", 5000)), ("[::1]:7", ("::1", 7)), ("127.0.0.1:65535", ("127.0.0.1", 65535))],
)
def test_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert host_and_port(text) == expected


@pytest.mark.parametrize(
    "text", ["", "host", ":5", "host:", "host:x", "host:65536", "host:5/path", "me@host:5", "h:1?a"]
)
def test_texts_without_host_and_port_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        host_and_port(text)


@pytest.mark.parametrize(
    ("value", "kind", "url", "is_engine"),
    [
        ("embedded", "embedded", "", False),
        ("ray=auto", "ray", "auto", False),
        ("ray=head:6379", "ray", "head:6379", False),
        ("myna=tcp://gpu-1:5000", "myna", "tcp://gpu-1:5000", True),
        ("myna=tls://[::1]:5000", "myna", "tls://[::1]:5000", True),
        ("myna=http://other:8000", "myna", "http://other:8000", False),
        ("vllm=https://host/v1", "vllm", "https://host/v1", False),
        ({"kind": "openai", "url": "http://h:1"}, "openai", "http://h:1", False),
    ],
)
def test_valid_engines(value: Any, kind: str, url: str, is_engine: bool) -> None:
    table = parse_engine(value)
    assert (table.kind, table.url, table.is_myna_engine) == (kind, url, is_engine)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is not a valid engine"),
        ("vllm", "is not a valid engine"),
        ("tgi=http://h:1", "is not a valid engine"),
        ("embedded=http://h:1", "is not a valid engine"),
        ("vllm=tcp://h:1", "is not a valid engine"),
        ("vllm=http://", "is not a valid engine"),
        ("myna=tcp://host", "is not HOST:PORT"),
        ("ray=head", "is not HOST:PORT"),
        ({"kind": "tgi", "url": "http://h"}, "is not a kind of engine"),
        ({"kind": "embedded", "url": "http://h"}, "an embedded engine has no url"),
        ({"kind": "vllm", "url": "http://h", "name": "a b"}, "is not a valid name"),
        ({"kind": "vllm", "url": "http://h", "key": "a", "key_env": "B"}, "cannot both be set"),
        ({"kind": "vllm", "url": "http://h", "key_env": "MYNA_TEST_UNSET"}, "no variable MYNA_TEST_UNSET"),
        ({"kind": "openai", "url": "http://h", "tokenizer": "/x"}, "does not accept tokens"),
        ({"kind": "vllm", "url": "http://h", "widow": 5}, "widow"),
        ({"kind": "vllm", "url": "http://h", "timeout": 0}, "timeout"),
    ],
)
def test_invalid_engines_are_refused(value: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MYNA_TEST_UNSET", raising=False)
    with pytest.raises(ValueError, match=message):
        parse_engine(value)


def test_the_api_key_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", "from-variable")
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai")
    keys = {"named": "from-option"}

    def key(**fields: Any) -> str | None:
        return EngineTable(**{"kind": "openai", "url": "http://h", **fields}).api_key(keys)

    assert key(key_env="OWN_KEY") == "from-variable"
    assert key(key="written") == "written"
    assert key(name="named") == "from-option"
    assert key() is None, "OPENAI_API_KEY is sent only to api.openai.com"
    monkeypatch.setenv("ANTHROPIC_API_KEY", "of-anthropic")
    assert parse_engine("anthropic=https://api.anthropic.com").api_key({}) == "of-anthropic"
    assert parse_engine("anthropic=https://elsewhere").api_key({}) is None
    assert key(url="https://api.openai.com") == "of-openai"
    assert key(url="https://api.openai.com.evil.example") is None
    assert key(url="https://api.openai.com", name="named") == "from-option"


_TABLES = st.lists(
    st.builds(
        lambda kind, name: EngineTable(kind=kind, url="http://h", name=name),
        st.sampled_from(sorted(KINDS)),
        st.sampled_from(["", "", "", "vllm", "vllm-2", "openai", "a"]),
    ),
    max_size=8,
)


@given(_TABLES)
def test_names_are_unique_and_given_names_stay(tables: list[EngineTable]) -> None:
    given_names = [table.name for table in tables if table.name]
    if len(set(given_names)) < len(given_names):
        with pytest.raises(ValueError, match="the same name"):
            with_unique_names(tables)
        return
    renamed = with_unique_names(tables)
    assert len({table.name for table in renamed}) == len(tables)
    for before, after in zip(tables, renamed, strict=True):
        assert after == before.model_copy(update={"name": after.name})
        assert after.name == before.name or (not before.name and after.name.startswith(before.kind))


def test_pairs() -> None:
    pair = parse_pair(" gpt = big=er ", "NAME=MODEL")
    assert (pair.name, pair.value) == ("gpt", "big=er")
    for text in ("", "name", "=value", "name=", " = "):
        with pytest.raises(ValueError, match="is not NAME=MODEL"):
            parse_pair(text, "NAME=MODEL")
