"""Run a PostgreSQL server for tests, on a free port of 127.0.0.1."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.servers import free_port

_SECONDS = 60


def _programs() -> Iterator[Path]:
    """Yield folders that may contain PostgreSQL's programs: of the system, and of a wheel."""
    found = shutil.which("pg_ctl")
    if found is not None:
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    try:
        import pgserver  # its own way to start a server needs a new user
    except ImportError:
        return
    yield Path(pgserver.__file__).parent / "pginstall/bin"


class PostgresServer:
    """A server with its own data folder. PostgreSQL refuses to run as root, so root starts it as the user nobody."""

    def __init__(self, folder: Path) -> None:
        """Raise RuntimeError if PostgreSQL is not installed."""
        self.port = free_port()
        self.url = f"postgresql://tester@127.0.0.1:{self.port}/postgres"
        self._folder = folder / "data"
        self._count = 0
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._programs = next((folder for folder in _programs() if self._works(folder)), None)
        if self._programs is None:
            raise RuntimeError("no PostgreSQL server is installed, nor the wheel pgserver")
        self._run(
            "initdb", "--pgdata", str(self._folder), "--username=tester", "--auth=trust", "--no-sync", "-E", "UTF8"
        )

    def _works(self, programs: Path) -> bool:
        try:
            command = [str(programs / "initdb"), "--version"]
            done = subprocess.run(command, capture_output=True, user=self._user, check=False, cwd="/", timeout=_SECONDS)
            return done.returncode == 0
        except OSError:
            return False

    def _run(self, program: str, *arguments: str) -> None:
        assert self._programs is not None
        log = self._folder.parent / "run.log"
        with log.open("ab") as output:
            done = subprocess.run(
                [str(self._programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self._user,
                cwd="/",
                check=False,
                timeout=2 * _SECONDS,
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {log.read_text()}")

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        log = str(self._folder.parent / "server.log")
        self._run("pg_ctl", "-D", str(self._folder), "-l", log, "-o", options, "-w", "-t", str(_SECONDS), "start")

    def database(self) -> str:
        """Create a database and return its URL."""
        self._count += 1
        name = f"test_{self._count}"
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "tester")
        self._run("createdb", *where, name)
        return self.url.replace("/postgres", f"/{name}")

    def stop(self) -> None:
        """Stop the server and close all connections."""
        self._run("pg_ctl", "-D", str(self._folder), "-m", "immediate", "-w", "-t", str(_SECONDS), "stop")


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Yield a running server. Skip the test if PostgreSQL is not installed."""
    with tempfile.TemporaryDirectory(
        prefix="myna-postgres-"
    ) as folder:  # not pytest's folder, which other users cannot enter
        try:
            server = PostgresServer(Path(folder))
        except RuntimeError as error:
            if "no PostgreSQL" not in str(error):
                raise
            pytest.skip(str(error))
        server.start()
        try:
            yield server
        finally:
            server.stop()
