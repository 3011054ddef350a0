"""Rotary positions with every scaling that the supported families use, as transformers computes them."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import CheckpointError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a layer. `rotary_size`: number of leading elements of a head that are rotated.

    `scaling`: the checkpoint's own parameters. `kind` is one of KINDS.
    """

    rotary_size: int
    theta: float
    kind: str
    scaling: dict[str, Any]


def read_rope(config: dict[str, Any], parameters: dict[str, Any], head_size: int, theta: float | None = None) -> Rope:
    """Return the rotary positions in a config's `rope_parameters` or `rope_scaling`. Raise CheckpointError if they are
    not supported."""
    if not isinstance(parameters, dict):
        raise CheckpointError(f"rope_scaling = {parameters!r} is not an object")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "su":  # the name in early Phi-3 configs
        kind = "longrope"
    if kind not in KINDS:
        raise CheckpointError(f"rope_type = {kind!r} is not supported; supported: {', '.join(KINDS)}")
    share = number(_first("partial_rotary_factor", parameters, config, default=1.0), "partial_rotary_factor")
    base = theta if theta is not None else _first("rope_theta", parameters, config, default=10000.0)
    original = _first("original_max_position_embeddings", parameters, config, default=None)
    scaling = {**parameters, "original_max_position_embeddings": original}
    rotated = int(head_size * share)
    if share > 1 or rotated < 2 or rotated % 2:
        raise CheckpointError(f"{rotated} of {head_size} elements of a head would be rotated")
    _check(kind, scaling, rotated)
    return Rope(rotated, number(base, "rope_theta", above=1.0), kind, scaling)


def number(value: Any, name: str, *, minimum: float | None = None, above: float = 0.0) -> float:
    """Return a number from a config. Raise CheckpointError if it is not a finite number, or too small: below `minimum`,
    or, without `minimum`, not above `above`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{name} = {value!r} is not a finite number")
    if value < minimum if minimum is not None else value <= above:
        raise CheckpointError(f"{name} = {value!r} is too small")
    return float(value)


def _first(name: str, *configs: dict[str, Any], default: Any) -> Any:
    """Return the first value that is not None, or the default. Zero counts as a value."""
    return next((config[name] for config in configs if config.get(name) is not None), default)


_REQUIRED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("long_factor", "short_factor"),
}
_NUMBERS = (
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
)


def _check(kind: str, scaling: dict[str, Any], rotated: int) -> None:
    """Raise CheckpointError if a scaling lacks a parameter or has an invalid one."""
    for name in _REQUIRED.get(kind, ()):
        if scaling.get(name) is None:
            raise CheckpointError(f"rope_type = {kind!r} lacks {name}")
    for name in _NUMBERS:
        if scaling.get(name) is not None:
            number(scaling[name], name)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise CheckpointError("high_freq_factor is not above low_freq_factor")
    for name in ("long_factor", "short_factor") if kind == "longrope" else ():
        if not isinstance(scaling[name], list) or len(scaling[name]) != rotated // 2:
            raise CheckpointError(f"{name} does not have {rotated // 2} entries, one for each rotated pair")
        for factor in scaling[name]:
            number(factor, name)


def rotary_table(rope: Rope, window: int) -> torch.Tensor:
    """Return a table (window, rotated) float32: by position, cosines of the head's first half, then sines."""
    frequencies, factor = _frequencies(rope, window)
    angles = torch.arange(window, dtype=torch.float32).unsqueeze(1) * frequencies
    return torch.cat((angles.cos() * factor, angles.sin() * factor), dim=1)


def _frequencies(rope: Rope, window: int) -> tuple[torch.Tensor, float]:
    """Return frequencies (rotated / 2,) float32, and the factor of cosines and sines."""
    plain = 1.0 / rope.theta ** (torch.arange(0, rope.rotary_size, 2, dtype=torch.float32) / rope.rotary_size)
    match rope.kind:
        case "linear":
            return plain / rope.scaling["factor"], 1.0
        case "llama3":
            return _llama3(plain, rope.scaling), 1.0
        case "yarn":
            return _yarn(plain, rope, window)
        case "longrope":
            return _longrope(plain, rope, window)
        case _:  # dynamic scaling changes nothing within the checkpoint's window
            return plain, 1.0


def _llama3(plain: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    """Return frequencies scaled as `apply_scaling` does in meta-llama/llama-models."""
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low_factor, high_factor = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = 2 * math.pi / plain
    smooth = (original / wavelengths - low_factor) / (high_factor - low_factor)
    blended = (1 - smooth) * plain / factor + smooth * plain
    return torch.where(
        wavelengths > original / low_factor,
        plain / factor,
        torch.where(wavelengths < original / high_factor, plain, blended),
    )


def _yarn(plain: torch.Tensor, rope: Rope, window: int) -> tuple[torch.Tensor, float]:
    """Return frequencies and factor as in Peng et al. 2023."""
    scaling, size = rope.scaling, rope.rotary_size
    original = scaling["original_max_position_embeddings"] or window
    factor = scaling.get("factor") or window / original

    def dimension(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    attention = scaling.get("attention_factor")
    if attention is None:
        mscale, all_dimensions = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = temperature(mscale) / temperature(all_dimensions) if mscale and all_dimensions else temperature(1.0)
    return plain / factor * ramp + plain * (1 - ramp), attention


def _longrope(plain: torch.Tensor, rope: Rope, window: int) -> tuple[torch.Tensor, float]:
    """Return frequencies and factor as in Ding et al. 2024.

    The long factors apply whenever the window is longer than the original one. Switching while a text grows would leave
    cached keys rotated by other angles.
    """
    scaling = rope.scaling
    original = scaling["original_max_position_embeddings"] or window
    factors = scaling["long_factor" if window > original else "short_factor"]
    stretch = scaling.get("factor") or window / original
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return plain / torch.tensor(factors, dtype=torch.float32), attention
