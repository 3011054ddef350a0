"""An LLM engine with a paged KV cache, a prefix tree and continuous batching. It also works without the gateway.

The names in `__all__` are imported on first use. The gateway imports `engine.protocol`, `engine.sampling_params` and
`engine.tokenizer`, and must never load torch. Benchmarks import only the kernels.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# The threads of a step meet at barriers. By default the OpenMP runtime spins at a barrier for up to 17 ms. If another
# process needs the core, the spinning thread keeps it from the thread that it waits for. On two cores, next to one busy
# process, a step took 130 times as long; with this setting it takes three times as long. The runtime reads the variable
# when torch loads it.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.protocol import EngineInfo
    from engine.sampling_params import SamplingParams

__all__ = ["Engine", "EngineConfig", "EngineInfo", "SamplingParams"]

_HOMES = {"Engine": "engine", "EngineConfig": "config", "EngineInfo": "protocol", "SamplingParams": "sampling_params"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
