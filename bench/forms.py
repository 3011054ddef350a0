"""Forms of a graph against an ordinary client: `python -m bench.forms [--rtt SECONDS]`.

Runs three examples, each as one graph and as a client that sends a request for each call: a map over a list that is
generated, a repeat until a text is accepted, and an agent with tools of an MCP server. Both ways send the same prompts
to one server, in turns. `--rtt` simulates a network: each exchange takes so much longer.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from openai import AsyncOpenAI

from bench.servers import started

_EXAMPLES = Path(__file__).parents[1] / "examples"
_NAMES = ("plan_and_map", "review_until_accepted", "agent_with_tools")
_CHUNK = 64 << 10


def load(name: str) -> ModuleType:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, _EXAMPLES / f"{name}.py")
    assert spec is not None, f"there is no example {name}"
    assert spec.loader is not None, f"{name} cannot be loaded"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def delayed(url: str, rtt: float) -> AsyncIterator[str]:
    """Yield the URL of a proxy that delays what it forwards by half a round trip in each direction."""
    target = urlsplit(url)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            while data := await reader.read(_CHUNK):
                queue.put_nowait((time.monotonic() + rtt / 2, data))
            queue.put_nowait((0.0, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await queue.get()
                if not data:
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                writer.write(data)
                await writer.drain()
        except ConnectionError:  # the other side has closed the connection
            return
        finally:
            reading.cancel()
            writer.close()
            await asyncio.gather(reading, return_exceptions=True)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(connect(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def measure(module: ModuleType, url: str, *, as_graph: bool) -> tuple[float, str, bool]:
    """Run an example once. Return its seconds, its result, and whether the first result came before the end of the
    list, which only the map says."""
    output = io.StringIO()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))
        more = []
        if not as_graph and hasattr(module, "tool_session"):  # both ways find a tool server that has started
            more.append(await stack.enter_async_context(module.tool_session()))
        await client.models.list()  # opens the connection
        began = time.perf_counter()
        with contextlib.redirect_stdout(output):
            result = await (module.run_graph(client) if as_graph else module.run_client(client, *more))
        return time.perf_counter() - began, json.dumps(result), "before the end" in output.getvalue()


async def run(arguments: argparse.Namespace) -> int:
    """Measure all examples, and print a table."""
    tools = {"servers": {"time": {"command": [sys.executable, "-m", "mcp_server_time"], "tools": ["*"]}}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tools.json"
        path.write_text(json.dumps(tools))
        command = [sys.executable, "-m", "gateway", "serve", "--tool-servers", str(path)]
        with started(command, port_option="--port") as server:
            async with delayed(server, arguments.rtt) as url:
                rows = [await _compare(name, url, arguments.rounds) for name in _NAMES]
    print(f"round trip {arguments.rtt:g} s, medians of {arguments.rounds}")
    for row in rows:
        print(row)
    return 0


async def _compare(name: str, url: str, rounds: int) -> str:
    module = load(name)
    times: dict[bool, list[float]] = {True: [], False: []}
    results = set()
    early = 0
    for way in (True, False):  # a first run of each is not counted
        await measure(module, url, as_graph=way)
    for number in range(rounds):
        for way in (True, False) if number % 2 else (False, True):
            seconds, result, is_early = await measure(module, url, as_graph=way)
            times[way].append(seconds)
            results.add(result)
            early += is_early
    graph, client = statistics.median(times[True]), statistics.median(times[False])
    same = "same results" if len(results) == 1 else f"{len(results)} different results"
    note = f", first result before the end of the list in {early} of {rounds}" if name == "plan_and_map" else ""
    return f"{name:24} graph {graph:6.2f} s   client {client:6.2f} s   ratio {client / graph:.2f}   {same}{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="bench.forms", description=__doc__)
    parser.add_argument(
        "--rtt", type=float, default=0.25, help="simulated round trip in seconds (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each way (default: %(default)s)")
    return asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
