"""Start and stop `myna engine` as a process."""

from tests.fakes.process_harness import ProcessHarness


class EngineHarness(ProcessHarness):
    """A running `myna engine`, on a free port by default."""

    TOKEN = "a token of tests"

    def __init__(self, *arguments: str, port: int = 0) -> None:
        super().__init__(
            *("engine", "--listen", f"127.0.0.1:{port}", *arguments),
            address=r"at ((?:tcp|tls)://\S+:\d+) ",
            env={"MYNA_ENGINE_TOKEN": self.TOKEN},
        )
        self.port = int(self.address.rsplit(":", 1)[1])
