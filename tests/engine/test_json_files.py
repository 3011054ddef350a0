"""Tests of engine/json_files.py: errors name the file."""

from pathlib import Path

import pytest

from engine.errors import CheckpointError
from engine.json_files import read_object


def test_object_is_returned(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": [1]}')
    assert read_object(tmp_path / "a.json") == {"a": [1]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "must hold a JSON object, and holds a list"),
        (b"null", "must hold a JSON object, and holds a NoneType"),
    ],
)
def test_error_names_the_file(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as raised:
        read_object(path)
    assert str(path) in str(raised.value)
