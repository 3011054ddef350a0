"""llama.cpp's own HTTP server, out of a wheel: `python -m tests.llama_server FILE.gguf` serves until its input closes."""

import sys

import xllamacpp


def main() -> None:
    """Prints the address once it is there."""
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
