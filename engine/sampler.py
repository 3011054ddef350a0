"""Sampling parameters of a step's rows, and the tokens sampled for them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.generation import Generation, SampledToken
from engine.kernels import Kernels
from engine.kernels.base import REQUEST, PendingSample, SampledTokens, SamplingRequests
from engine.protocol import TokenLogprob


class BadLogits(Exception):
    """The logits of a row contain NaN, or allow no token: its request cannot continue."""


class Sampler:
    """Samples tokens. It caches the request rows that one step and the next have in common."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._generations: list[Generation] = []
        self._requests = _requests(b"")

    def start(self, logits: torch.Tensor, generations: list[Generation]) -> PendingSample:
        """Start to sample one token for each row, of which there is at least one. `collect` waits for the tokens.

        `logits`: (rows, vocabulary) float32, one row for each of `generations`; they may be changed. A generation has
        one row for each of its next positions (more than one with drafts), and these are adjacent.
        """
        if self._generations != generations:
            self._generations = generations
            self._requests = _requests(b"".join([generation.request for generation in generations]))
        requests = self._requests
        if any(generation.matcher for generation in generations):
            requests = replace(requests, **_masks(generations))
        if any(generation.random for generation in generations):
            requests.rows["uniform"] = _uniforms(generations)
        if any(generation.adjusts_logits for generation in generations):
            requests = replace(requests, **_adjustments(generations))
        return self._kernels.sample(logits, requests)


def collect(pending: PendingSample, generations: list[Generation]) -> list[SampledToken | BadLogits]:
    """Wait for the tokens of a started sample, and return them.

    A row with NaN, or in which no token is allowed, yields BadLogits in its place and affects no other row.
    """
    sampled = pending.result()
    return [
        BadLogits("the model produced NaN logits, or the request allows no token")
        if token < 0
        else SampledToken(token, _logprob(sampled, row, token, generation) if generation.sampling.logprobs else None)
        for row, (token, generation) in enumerate(zip(sampled.tokens.tolist(), generations, strict=True))
    ]


def greedy_requests(rows: int) -> SamplingRequests:
    """Return sampling requests of `rows` rows that sample greedily."""
    return _requests(np.zeros(rows, dtype=REQUEST).tobytes())


def _requests(rows: bytes) -> SamplingRequests:
    """Return sampling requests without masks, penalties or biases. `rows`: bytes of an array of `REQUEST` structs."""
    requests = np.frombuffer(bytearray(rows), dtype=REQUEST)
    starts, none = np.zeros(len(requests) + 1, dtype=np.int32), np.empty(0, dtype=np.float32)
    mask_index = np.full(len(requests), -1, dtype=np.int32)
    return SamplingRequests(requests, starts, none.astype(np.int32), none, none, np.empty((0, 0), np.int32), mask_index)


def _uniforms(generations: list[Generation]) -> list[float]:
    """Return the uniform number of each row; see `Generation.uniform`."""
    numbers, before, ahead = [], None, 0
    for generation in generations:
        ahead = ahead + 1 if generation is before else 0
        numbers.append(generation.uniform(ahead))
        before = generation
    return numbers


def _masks(generations: Sequence[Generation]) -> dict[str, NDArray[Any]]:
    """Return the fields of SamplingRequests that mask tokens."""
    masks = [None if generation.matcher is None else generation.matcher.allowed_mask() for generation in generations]
    has = np.array([mask is not None for mask in masks])
    allowed = np.stack([mask for mask in masks if mask is not None])
    return {"allowed": allowed, "mask_index": np.where(has, np.cumsum(has) - 1, -1).astype(np.int32)}


def _adjustments(generations: Sequence[Generation]) -> dict[str, NDArray[Any]]:
    """Return the fields of SamplingRequests that change logits."""
    starts = np.zeros(len(generations) + 1, dtype=np.int32)
    changes = [_changes(generation) for generation in generations if generation.adjusts_logits]
    starts[1:][[generation.adjusts_logits for generation in generations]] = [len(ids) for ids, _, _ in changes]
    np.cumsum(starts, out=starts)
    ids, factors, biases = (np.concatenate(arrays) for arrays in zip(*changes, strict=True))
    return {"starts": starts, "ids": ids, "factors": factors, "biases": biases}


def _changes(generation: Generation) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the tokens whose logits change through penalties, bias or min_tokens, with their factors and biases."""
    sampling = generation.sampling
    suppresses_stop = generation.stop_tokens if generation.suppresses_stop else frozenset()
    repeated = generation.seen_tokens if sampling.repetition_penalty != 1.0 else set()
    counted = generation.token_counts if sampling.presence_penalty or sampling.frequency_penalty else {}
    ids = list({*sampling.logit_bias, *suppresses_stop, *repeated, *counted})
    count = len(ids)
    factors, biases = np.ones(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    if repeated:  # Keskar et al. 2019 (CTRL)
        selected = np.fromiter((token in repeated for token in ids), dtype=bool, count=count)
        factors[selected] = sampling.repetition_penalty
    if counted:
        counts = np.fromiter((counted.get(token, 0) for token in ids), dtype=np.float32, count=count)
        biases -= sampling.presence_penalty * (counts > 0) + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        bias = sampling.logit_bias
        biases += np.fromiter((bias.get(token, 0.0) for token in ids), dtype=np.float32, count=count)
    if suppresses_stop:
        biases[np.fromiter((token in suppresses_stop for token in ids), dtype=bool, count=count)] = -np.inf
    return np.array(ids, dtype=np.int32), factors, biases


def _logprob(sampled: SampledTokens, row: int, token: int, generation: Generation) -> TokenLogprob:
    top = min(generation.sampling.top_logprobs, sampled.top_ids.shape[1])
    alternatives = zip(sampled.top_ids[row, :top].tolist(), sampled.top_logprobs[row, :top].tolist(), strict=True)
    return TokenLogprob(token, float(sampled.logprobs[row]), list(alternatives))
