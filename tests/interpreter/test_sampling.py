"""Tokens sampled by the Triton kernels against those of numpy, on the interpreter."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.kernels import LayerShape
from engine.kernels.base import REQUEST, SampledTokens, SamplingRequests
from engine.kernels.sampling import sample
from engine.kernels.triton.kernels import TritonKernels
from tests.interpreter.device import DEVICE

VOCABULARY = 5000
SHAPE = LayerShape(2, 1, 64, 64, 64, 64, "silu", 1.0, 0.0, 1e-5)
KERNELS = TritonKernels(SHAPE, torch.float32, 16, DEVICE, rows=16, sequences=16, width=2)


def requests(rows: list[dict[str, Any]], **other: Any) -> SamplingRequests:
    whole = np.zeros(len(rows), dtype=REQUEST)
    whole["top_p"], whole["top_logprobs"] = 1.0, -1
    for index, row in enumerate(rows):
        for name, value in row.items():
            whole[index][name] = value
    empty: dict[str, Any] = {
        "starts": np.zeros(len(rows) + 1, dtype=np.int32),
        "ids": np.empty(0, dtype=np.int32),
        "factors": np.empty(0, dtype=np.float32),
        "biases": np.empty(0, dtype=np.float32),
        "allowed": np.empty((0, 0), dtype=np.int32),
        "mask_index": np.full(len(rows), -1, dtype=np.int32),
    }
    return SamplingRequests(rows=whole, **{**empty, **other})


def sample_both_ways(logits: NDArray[np.float32], requested: SamplingRequests) -> tuple[SampledTokens, SampledTokens]:
    actual = KERNELS.sample(torch.from_numpy(logits.copy()).to(DEVICE), requested).result()
    return actual, sample(logits.copy(), requested)


def some_logits(seed: int, rows: int, ties: bool = False) -> NDArray[np.float32]:
    logits = (np.random.default_rng(seed).standard_normal((rows, VOCABULARY)) * 3).astype(np.float32)
    return np.round(logits) if ties else logits


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_sampled_tokens_equal_numpy(seed: int, ties: bool) -> None:
    """Rows with penalties, masks, candidates, draws and log probabilities."""
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
    requested = requests(
        rows,
        starts=starts,
        ids=np.concatenate(ids).astype(np.int32),
        factors=pick.choice([1.0, 1.3], starts[-1]).astype(np.float32),
        biases=pick.choice([0.0, -2.0, 5.0, -np.inf], starts[-1]).astype(np.float32),
        allowed=pick.integers(-(2**31), 2**31, (3, 140), dtype=np.int32),  # 4,480 bits: the rest are not allowed
        mask_index=pick.choice([-1, -1, 0, 1, 2], len(rows)).astype(np.int32),
    )
    actual, expected = sample_both_ways(some_logits(seed, len(rows), ties), requested)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    reported = requested.rows["top_logprobs"] >= 0
    np.testing.assert_allclose(actual.logprobs[reported], expected.logprobs[reported], atol=2e-5)
    for row, request in enumerate(requested.rows):
        if (top := int(request["top_logprobs"])) > 0:
            assert actual.top_ids[row, :top].tolist() == expected.top_ids[row, :top].tolist()
            np.testing.assert_allclose(actual.top_logprobs[row, :top], expected.top_logprobs[row, :top], atol=2e-5)


@pytest.mark.filterwarnings("ignore:divide by zero")  # from numpy, which the interpreter uses
def test_rows_without_a_token() -> None:
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
    actual, expected = sample_both_ways(
        logits, requests(rows, allowed=allowed, mask_index=np.array([-1, -1, -1, 0], dtype=np.int32))
    )
    assert expected.tokens.tolist()[:2] == [-1, -1]
    assert actual.tokens.tolist() == expected.tokens.tolist()
    assert actual.tokens[3] == -1


def test_draws_reach_both_ends_of_the_vocabulary() -> None:
    logits = np.full((2, VOCABULARY), -np.inf, dtype=np.float32)
    logits[:, [3, 4999]] = 0.0
    rows = [{"temperature": 1.0, "uniform": 0.0}, {"temperature": 1.0, "uniform": 1.0 - 2**-53}]
    assert sample_both_ways(logits, requests(rows))[0].tokens.tolist() == [3, 4999]


def test_tokens_have_the_right_frequency() -> None:
    """Uniform numbers spread evenly over [0, 1) draw each token in proportion."""
    row = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    weights = np.array([1, 2, 3, 10])
    row[[10, 600, 2500, 4000]] = np.log(weights)
    drawn = []
    for start in range(0, 48, 16):
        rows = [{"temperature": 1.0, "uniform": (start + index + 0.5) / 48} for index in range(16)]
        drawn += (
            KERNELS.sample(torch.from_numpy(np.tile(row, (16, 1))).to(DEVICE), requests(rows)).result().tokens.tolist()
        )
    assert [drawn.count(token) for token in (10, 600, 2500, 4000)] == [3, 6, 9, 30]
