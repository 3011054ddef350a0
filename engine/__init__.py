"""An LLM engine usable alone: paged KV cache, prefix tree, continuous batching.

`Engine` is imported lazily: `engine.link` and `engine.tokenizer` are used by processes that must stay small
and never load torch.
"""

from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.link import EngineInfo, Sampling

if TYPE_CHECKING:
    from engine.loop import Engine

__all__ = ["Engine", "EngineConfig", "EngineInfo", "Sampling"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from engine.loop import Engine

        return Engine
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
