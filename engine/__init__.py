"""An LLM engine usable alone: paged KV cache, prefix tree, continuous batching.

The names of `__all__` are imported when they are first used. The gateway imports `engine.protocol` and
`engine.tokenizer`, and must never load torch; benchmarks import the kernels alone.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads of a step meet at barriers. The OpenMP runtime would let those that came first spin for up to 17 ms there, and
# so keep a core from the one they wait for, if another process wants it: a step took 130 times as long beside one busy
# process on two cores, and takes three times as long with this. It is read when torch loads the runtime.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.protocol import EngineInfo, SamplingParams

__all__ = ["Engine", "EngineConfig", "EngineInfo", "SamplingParams"]

_HOMES = {"Engine": "engine", "EngineConfig": "config", "EngineInfo": "protocol", "SamplingParams": "protocol"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
