"""Run a command with a new server, whose address is in OPENAI_BASE_URL: with_server.py COMMAND ..."""

import os
import re
import subprocess
import sys

_STOP_SECONDS = 40


def main() -> int:
    """Start a server, run the command, and return its exit status."""
    server = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        print(line, end="", flush=True)
        address = re.search(r"at (http\S+/v1)", line)
        if address is None:
            return server.wait() or 1
        return subprocess.call(
            sys.argv[1:], env={**os.environ, "OPENAI_BASE_URL": address[1], "OPENAI_API_KEY": "none"}
        )
    finally:
        server.terminate()
        server.wait(_STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
