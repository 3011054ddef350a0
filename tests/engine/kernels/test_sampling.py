"""Tests of engine/kernels/sampling.py: the candidates and draws of the numpy sampler, against full sorts."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.base import SampledTokens, SamplingRequests
from engine.kernels.sampling import _largest, _nucleus, _pick_from_all, apply_masks, fill_placeholders
from engine.sampler import greedy_requests

VOCABULARY = 6000


def logits(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 255, 256, 257, 512, 6000]),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_chunked_pick_equals_plain_pick(seed: int, size: int, uniform: float) -> None:
    weights = np.exp(logits(seed)[:size])
    cumulative = np.cumsum(weights, dtype=np.float64)
    got = _pick_from_all(weights, uniform)
    before, after = (cumulative[got - 1] if got else 0.0), cumulative[got]
    hair = 1e-9 * cumulative[-1]
    assert before - hair <= uniform * cumulative[-1] <= after + hair


@given(seed=st.integers(0, 1000), count=st.integers(1, 6000), top_p=st.floats(0.01, 0.999))
def test_candidates_equal_a_full_sort(seed: int, count: int, top_p: float) -> None:
    scaled = np.round(logits(seed), 1)  # many ties
    scaled -= scaled.max()
    order = sorted(range(VOCABULARY), key=lambda token: (-scaled[token], token))
    assert set(_largest(scaled, count).tolist()) == set(order[:count])
    weights = np.exp(scaled)
    mass = np.cumsum(weights[order], dtype=np.float64)
    wanted = int(np.searchsorted(mass, top_p * mass[-1])) + 1
    got = _nucleus(scaled, weights, top_p, None)
    assert set(got.tolist()) == set(order[: len(got)]), "the most likely token is always among them"
    assert abs(len(got) - wanted) <= 1, "sums in another order may differ slightly at the border"


def test_placeholders_become_the_tokens_sampled_last() -> None:
    sampled = SampledTokens.empty(greedy_requests(3))
    sampled.tokens[:] = [70, 80, -1]
    tokens = torch.tensor([5, -1, -2, -3, -1])
    assert fill_placeholders(tokens, sampled).tolist() == [5, 70, 80, 0, 70]
    assert tokens.tolist() == [5, -1, -2, -3, -1], "the input belongs to the caller"
    assert fill_placeholders(tokens, None) is tokens


def test_masks_apply_to_their_rows_only() -> None:
    requests: SamplingRequests = greedy_requests(3)
    requests.mask_index[:] = [-1, 1, 0]
    allowed = np.zeros((2, 2), dtype=np.int32)
    allowed[0, 0], allowed[1, 1] = 0b101, 0b1  # tokens 0 and 2; token 32
    masked = SamplingRequests(
        requests.rows, requests.starts, requests.ids, requests.factors, requests.biases, allowed, requests.mask_index
    )
    values = np.zeros((3, 40), dtype=np.float32)
    apply_masks(values, masked)
    assert [np.flatnonzero(row == 0.0).tolist() for row in values] == [list(range(40)), [32], [0, 2]]
