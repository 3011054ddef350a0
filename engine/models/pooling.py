"""How a checkpoint made for embeddings turns hidden states into one vector: its settings for sentence-transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import CheckpointError
from engine.json_files import read_object

Method = Literal["last", "mean"]
_MODES: dict[str, Method] = {"lasttoken": "last", "last_token": "last", "last": "last", "mean": "mean"}
_PREFIX = "pooling_mode_"


@dataclass(frozen=True)
class PoolingSpec:
    """Pooling of a text's hidden states. `method`: the last token's, or the mean over all tokens. `normalizes`: whether
    the vector has length 1."""

    method: Method
    normalizes: bool


def read_pooling(folder: Path) -> PoolingSpec | None:
    """Return the pooling that `modules.json` specifies; None for a checkpoint that generates text. Raise
    CheckpointError if it is not supported."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    try:
        modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in _read_list(path)]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is invalid: {error!r}") from None
    kinds = [kind for kind, _ in modules]
    if "Pooling" not in kinds:
        return None
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown or kinds.count("Pooling") > 1:
        raise CheckpointError(f"{path}: modules {', '.join(kinds)}; supported: Transformer, Pooling, Normalize")
    if any(kind == "Transformer" and place for kind, place in modules):
        raise CheckpointError(f"{path}: the model is in a folder of its own; it must be beside modules.json")
    place = next(place for kind, place in modules if kind == "Pooling")
    return PoolingSpec(_method(folder / place / "config.json"), "Normalize" in kinds)


def _read_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise CheckpointError(f"{path} is not a list")
    return content


def _method(path: Path) -> Method:
    """Return the method in the settings of a pooling module."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, so the pooling is unknown")
    config = read_object(path)
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else []
    if not modes:
        switched_on = [key for key, value in config.items() if key.startswith(_PREFIX) and value]
        modes = [key.removeprefix(_PREFIX).removesuffix("_tokens") for key in switched_on]
    if len(modes) != 1 or modes[0] not in _MODES:
        named = ", ".join(modes) or "nothing"
        raise CheckpointError(f"{path}: pooling by {named}; supported: by the last token, by the mean")
    return _MODES[modes[0]]
