"""Tests of engine/models/rope.py: frequencies as transformers computes them, and errors."""

from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import CheckpointError
from engine.models.rope import Rope, number, read_rope, rotary_table


def test_rotary_table_holds_cosines_and_sines_by_position() -> None:
    table = rotary_table(Rope(4, 100.0, "default", {}), 8)
    angles = np.array([[p * 1.0, p * 0.1] for p in range(8)])
    assert np.allclose(table.numpy(), np.concatenate((np.cos(angles), np.sin(angles)), 1), atol=1e-6)


LONG = {"short_factor": [1.0 + index / 50 for index in range(16)], "long_factor": [2.0 + index for index in range(16)]}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 20, "truncate": False},
        {"rope_type": "longrope", **LONG},
        {"rope_type": "longrope", **LONG, "attention_factor": 1.25},
    ],
    ids=lambda parameters: str(parameters["rope_type"]),
)
def test_frequencies_equal_transformers(parameters: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    window = 256
    parameters = {**parameters, "original_max_position_embeddings": 64, "rope_theta": 5000.0}
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=window,
        original_max_position_embeddings=64,
        rope_parameters=parameters,
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=window)
    table = rotary_table(read_rope({}, parameters, 32), window)
    angles = torch.arange(window, dtype=torch.float32).unsqueeze(1) * frequencies
    assert torch.allclose(table, torch.cat((angles.cos() * factor, angles.sin() * factor), dim=1), atol=2e-4)


def test_early_phi3_name_of_longrope() -> None:
    assert read_rope({}, {"type": "su", **LONG}, 32).kind == "longrope"


def test_parameters_take_precedence_over_the_config() -> None:
    config = {"rope_theta": 7.0, "partial_rotary_factor": 0.5}
    assert read_rope(config, {}, 32) == Rope(16, 7.0, "default", {"original_max_position_embeddings": None})
    assert read_rope(config, {"rope_theta": 9.0, "partial_rotary_factor": 1.0}, 32).theta == 9.0
    assert read_rope(config, {"rope_theta": 9.0}, 32, 11.0).theta == 11.0, "a layer's own base"


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf"), 0, -1.0])
def test_numbers_that_cannot_be_used_are_named(value: Any) -> None:
    with pytest.raises(CheckpointError, match="factor = "):
        number(value, "factor")


def test_lower_bounds_of_numbers() -> None:
    assert number(0, "eps", minimum=0.0) == 0.0
    with pytest.raises(CheckpointError, match="too small"):
        number(1, "base", above=1.0)
