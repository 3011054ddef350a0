"""Run llama.cpp's HTTP server, from a wheel, until standard input closes: `python -m tests.llama_server FILE.gguf`."""

import sys

import xllamacpp


def main() -> None:
    """Start the server and print its address."""
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
