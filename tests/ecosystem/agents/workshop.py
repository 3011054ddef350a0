"""Common parts of the tests of agents: a folder to work in, the agent's process, and a gateway in front of a model."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.capable_model import CapableModel
from tests.fakes.checkpoints import write_tiny_default
from tests.fakes.gateway_harness import GatewayHarness

_AGENT_SECONDS = 150
_DROPPED = ("ANTHROPIC", "CLAUDE", "CODEX", "OPENAI", "OPENCODE", "XDG")
"""Beginnings of environment variables that would configure an agent."""
MODEL = "capable"
TEXT = "a draft\nclass <<interface>> Shape\nkernel<<<n>>>(x);\n"
"""Content of the file `notes.txt`. `<<interface>>` would be a reference in a session."""


@dataclass
class Workshop:
    """A folder with `notes.txt` for the agent to work in, and a home folder for its settings."""

    root: Path
    node_modules: Path

    def __post_init__(self) -> None:
        self.folder = self.root / "work"
        self.home = self.root / "home"
        self.folder.mkdir()
        self.home.mkdir()
        self.notes.write_text(TEXT)

    @property
    def notes(self) -> Path:
        """The file that the agent edits."""
        return self.folder / "notes.txt"

    def install(self, program: Path) -> Path:
        """Copy a program in JavaScript to the packages: it finds them from its own folder."""
        return shutil.copy(program, self.node_modules.parent / program.name)

    async def run(self, program: str, *arguments: str, env: Mapping[str, str]) -> str:
        """Run an agent until it ends, and return what it printed. Raises AssertionError if it fails or hangs."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            cwd=self.folder,
            env={**kept, "HOME": str(self.home), "PWD": str(self.folder), **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            printed, errors = await asyncio.wait_for(process.communicate(), _AGENT_SECONDS)
        except TimeoutError as error:
            raise AssertionError(f"{program} did not end within {_AGENT_SECONDS} s") from error
        finally:
            with suppress(ProcessLookupError):  # the agent, or processes that it left behind
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        assert process.returncode == 0, f"{printed.decode()}\n{errors.decode()}"
        return printed.decode()

    async def run_package(self, name: str, *arguments: str, env: Mapping[str, str]) -> str:
        """Run the program of an npm package; see `run`."""
        return await self.run(str(self.node_modules / ".bin" / name), *arguments, env=env)


@asynccontextmanager
async def gateway_of(model: CapableModel) -> AsyncIterator[GatewayHarness]:
    """Start a gateway in front of a scripted model."""
    async with model.server(MODEL) as upstream:
        arguments = ("--engine", f"openai={upstream.url}/v1", "--model", MODEL)
        gateway = await asyncio.to_thread(GatewayHarness, *arguments)
        try:
            yield gateway
        finally:
            await asyncio.to_thread(gateway.stop)


@asynccontextmanager
async def gateway_with_long_window(folder: Path) -> AsyncIterator[GatewayHarness]:
    """Start a gateway with an engine of its own: a random model with the tokenizer of the default one, and a window of
    128,000 tokens."""
    write_tiny_default(folder, window=131_072)
    gateway = await asyncio.to_thread(GatewayHarness, "--model", str(folder), "--kv-tokens", "160000")
    try:
        yield gateway
    finally:
        await asyncio.to_thread(gateway.stop)
