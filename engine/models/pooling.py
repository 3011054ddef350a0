"""How a checkpoint for embeddings turns hidden states into one vector, in the format of sentence-transformers.

`modules.json` lists a transformer, a pooling module with its own `config.json`, and perhaps a normalisation. A folder
without this file generates text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.errors import CheckpointError
from engine.json_files import read_object

_KINDS: dict[str, Literal["last", "mean"]] = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}
_SUPPORTED = "a transformer, pooling of the last token or of the mean, and a normalisation"


@dataclass(frozen=True)
class Pooling:
    """Pooling of a checkpoint. `kind`: the vector is the hidden state of the last token, or the mean of all.
    `normalizes`: the vector is divided by its length."""

    kind: Literal["last", "mean"]
    normalizes: bool


def read_pooling(folder: Path) -> Pooling | None:
    """Return the pooling of a checkpoint; None if it is made for text. Raises CheckpointError if it needs modules that
    the engine does not support."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    try:
        modules: Any = msgspec.json.decode(path.read_bytes())
        names = [str(module["type"]).rpartition(".")[2] for module in modules]
        if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
            raise CheckpointError(f"{path} lists {', '.join(names)}; supported: {_SUPPORTED}")
        kind = _read_kind(folder / str(modules[1]["path"]) / "config.json")
    except (msgspec.DecodeError, OSError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is invalid: {error}") from error
    return Pooling(kind, normalizes="Normalize" in names)


def _read_kind(path: Path) -> Literal["last", "mean"]:
    config = read_object(path)
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _KINDS:
        raise CheckpointError(f"{path} selects {', '.join(modes) or 'no pooling'}; supported: {', '.join(_KINDS)}")
    if config.get("include_prompt", True) is not True:
        raise CheckpointError(f"{path} leaves prompts out of the mean (include_prompt), which is not supported")
    return _KINDS[modes[0]]
