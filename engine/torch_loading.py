"""torch, loaded quickly."""

import sys
from types import ModuleType

_META = "torch._meta_registrations"
"""How operations on tensors without data behave, for what compiles and exports programs: two fifths of the time that
torch takes to load."""


def load_torch() -> None:
    """Loads torch without what only its compilers need, if it is not loaded yet. For processes that are an engine's
    alone. Who compiles nevertheless has to import `torch._meta_registrations` first."""
    if "torch" in sys.modules:
        return
    sys.modules[_META] = ModuleType(_META)
    try:
        import torch  # noqa: F401
    finally:
        del sys.modules[_META]
