"""Count function calls, so that a test can bound work independently of the speed of the machine."""

import gc
import sys
from types import FrameType
from typing import Any


class CallCounter:
    """Count the calls of functions, and the resumptions of generators and coroutines, in this thread. Use it as a context
    manager.

    A function in C counts as one call, whatever it does. Work in other threads does not count. The cycle collector does
    not run meanwhile: it would call finalizers and `gc.callbacks` at any time.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "CallCounter":
        self._earlier = sys.getprofile()
        self._collected = gc.isenabled()
        gc.disable()
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._earlier)
        if self._collected:
            gc.enable()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        self.count += event in ("call", "c_call")
