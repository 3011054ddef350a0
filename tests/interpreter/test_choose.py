"""Tokens chosen by the kernels against those that numpy chooses, on the interpreter."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.kernels import LayerShape
from engine.kernels.base import REQUEST, ChoiceRequests, Choices
from engine.kernels.sampling import choose
from engine.kernels.triton.kernels import TritonKernels
from tests.interpreter.device import DEVICE

VOCABULARY = 5000
SHAPE = LayerShape(2, 1, 64, 64, 64, 64, "silu", 1.0, 0.0, 1e-5)
KERNELS = TritonKernels(SHAPE, torch.float32, 16, DEVICE, rows=16, sequences=16, width=2)


def requests(rows: list[dict[str, Any]], **other: Any) -> ChoiceRequests:
    whole = np.zeros(len(rows), dtype=REQUEST)
    whole["top_p"], whole["top_logprobs"] = 1.0, -1
    for at, row in enumerate(rows):
        for name, value in row.items():
            whole[at][name] = value
    empty: dict[str, Any] = {
        "starts": np.zeros(len(rows) + 1, dtype=np.int32),
        "ids": np.empty(0, dtype=np.int32),
        "factors": np.empty(0, dtype=np.float32),
        "biases": np.empty(0, dtype=np.float32),
        "allowed": np.empty((0, 0), dtype=np.int32),
        "masked": np.full(len(rows), -1, dtype=np.int32),
    }
    return ChoiceRequests(rows=whole, **{**empty, **other})


def both(logits: NDArray[np.float32], asked: ChoiceRequests) -> tuple[Choices, Choices]:
    ours = KERNELS.choose(torch.from_numpy(logits.copy()).to(DEVICE), asked).result()
    return ours, choose(logits.copy(), asked)


def some_logits(seed: int, rows: int, ties: bool = False) -> NDArray[np.float32]:
    logits = (np.random.default_rng(seed).standard_normal((rows, VOCABULARY)) * 3).astype(np.float32)
    return np.round(logits) if ties else logits


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_choices(seed: int, ties: bool) -> None:
    """Penalties, masks, candidates, draws and log probabilities, in rows of all kinds."""
    pick = np.random.default_rng(seed)
    rows = [
        {
            "temperature": pick.choice([0.0, 0.7, 1.0, 1.5]),
            "top_p": pick.choice([1.0, 1.0, 0.9, 0.3]),
            "min_p": pick.choice([0.0, 0.0, 0.05]),
            "top_k": pick.choice([0, 0, 1, 40, 3000]),
            "top_logprobs": pick.choice([-1, 0, 1, 5]),
            "uniform": pick.random(),
        }
        for _ in range(12)
    ]
    starts = np.concatenate(([0], np.cumsum(pick.choice([0, 1, 300], len(rows))))).astype(np.int32)
    ids = [pick.choice(VOCABULARY, end - start, replace=False) for start, end in pairwise(starts)]
    asked = requests(
        rows,
        starts=starts,
        ids=np.concatenate(ids).astype(np.int32),
        factors=pick.choice([1.0, 1.3], starts[-1]).astype(np.float32),
        biases=pick.choice([0.0, -2.0, 5.0, -np.inf], starts[-1]).astype(np.float32),
        allowed=pick.integers(-(2**31), 2**31, (3, 140), dtype=np.int32),  # 4,480 bits: the rest are not allowed
        masked=pick.choice([-1, -1, 0, 1, 2], len(rows)).astype(np.int32),
    )
    ours, wanted = both(some_logits(seed, len(rows), ties), asked)
    assert ours.tokens.tolist() == wanted.tokens.tolist()
    told = asked.rows["top_logprobs"] >= 0
    np.testing.assert_allclose(ours.logprobs[told], wanted.logprobs[told], atol=2e-5)
    for row, request in enumerate(asked.rows):
        if (top := int(request["top_logprobs"])) > 0:
            assert ours.top_ids[row, :top].tolist() == wanted.top_ids[row, :top].tolist()
            np.testing.assert_allclose(ours.top_logprobs[row, :top], wanted.top_logprobs[row, :top], atol=2e-5)


@pytest.mark.filterwarnings("ignore:divide by zero")  # numpy's, which the interpreter computes with
def test_nothing_to_choose_from() -> None:
    logits = some_logits(1, 4)
    logits[0, 77] = np.nan
    logits[1] = -np.inf
    logits[2, 5:] = -np.inf
    allowed = np.zeros((1, 157), dtype=np.int32)
    rows: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "uniform": 0.999999},
        {"temperature": 1.0},
    ]
    ours, wanted = both(logits, requests(rows, allowed=allowed, masked=np.array([-1, -1, -1, 0], dtype=np.int32)))
    assert wanted.tokens.tolist()[:2] == [-1, -1]
    assert ours.tokens.tolist() == wanted.tokens.tolist()
    assert ours.tokens[3] == -1


def test_draws_reach_both_ends() -> None:
    logits = np.full((2, VOCABULARY), -np.inf, dtype=np.float32)
    logits[:, [3, 4999]] = 0.0
    rows = [{"temperature": 1.0, "uniform": 0.0}, {"temperature": 1.0, "uniform": 1.0 - 2**-53}]
    assert both(logits, requests(rows))[0].tokens.tolist() == [3, 4999]


def test_tokens_come_as_often_as_they_should() -> None:
    """Uniform numbers spread evenly over [0, 1) draw each token in proportion."""
    row = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    weights = np.array([1, 2, 3, 10])
    row[[10, 600, 2500, 4000]] = np.log(weights)
    drawn = []
    for start in range(0, 48, 16):
        rows = [{"temperature": 1.0, "uniform": (start + at + 0.5) / 48} for at in range(16)]
        drawn += (
            KERNELS.choose(torch.from_numpy(np.tile(row, (16, 1))).to(DEVICE), requests(rows)).result().tokens.tolist()
        )
    assert [drawn.count(token) for token in (10, 600, 2500, 4000)] == [3, 6, 9, 30]
