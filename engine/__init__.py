"""An LLM engine usable alone: paged KV cache, prefix tree, continuous batching.

What is named here is imported lazily: `engine.link` and `engine.tokenizer` are used by processes that must stay small
and never load torch, and the kernels by programs that measure them and have little else.
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
    from engine.link import EngineInfo, Sampling
    from engine.loop import Engine

__all__ = ["Engine", "EngineConfig", "EngineInfo", "Sampling"]

_HOMES = {"Engine": "loop", "EngineConfig": "config", "EngineInfo": "link", "Sampling": "link"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
