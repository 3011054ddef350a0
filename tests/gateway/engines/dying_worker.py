"""Engine process that dies in the middle of a frame: once, at the first frame that carries tokens.

Run it in place of `engine.server.worker`, with the same arguments. It creates the file named by MYNA_TEST_DIED then.
"""

import os
import sys
from pathlib import Path

from engine.protocol import Report, StepReport, encode_frame
from engine.server import worker


class DyingWorker(worker.Worker):
    def send(self, report: Report) -> None:
        died = Path(os.environ["MYNA_TEST_DIED"])
        if isinstance(report, StepReport) and any(update.tokens for update in report.updates) and not died.exists():
            died.touch()
            frame = encode_frame(report)
            self._connection.sendall(frame[: len(frame) // 2])
            os._exit(9)
        super().send(report)


if __name__ == "__main__":
    worker.Worker = DyingWorker  # type: ignore[misc]
    sys.exit(worker.main())
