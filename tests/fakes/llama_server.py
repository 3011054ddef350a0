"""llama.cpp's HTTP server, from a wheel.

`python -m tests.fakes.llama_server FILE.gguf` runs it until standard input closes.
"""

import sys

from tests.fakes.process_harness import ProcessHarness


class LlamaServer(ProcessHarness):
    """A running llama.cpp server with a model from a GGUF file."""

    def __init__(self, file: str) -> None:
        super().__init__(file, address=r"at (http://\S+)", module="tests.fakes.llama_server")


def main() -> None:
    """Start the server and print its address."""
    import xllamacpp  # absent on some machines

    settings = xllamacpp.CommonParams()
    settings.model.path = sys.argv[1]
    settings.port = 0
    settings.n_parallel, settings.n_ctx, settings.kv_unified = 4, 8192, True
    settings.use_jinja = True
    settings.cpuparams.n_threads = 2
    server = xllamacpp.Server(settings)
    print(f"at {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
