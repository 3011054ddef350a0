"""What each generation wants of its logits, and what it gets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.generation import Generation, Sampled
from engine.kernels import Kernels
from engine.kernels.base import REQUEST, ChoiceRequests, Choices, PendingChoices
from engine.protocol import TokenLogprob


class BadLogits(Exception):
    """A row holds NaN, or allows no token: the request that owns it cannot go on."""


class Sampler:
    """Chooses tokens, and keeps what the requests of one step and the next have in common."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._of: list[Generation] = []
        self._requests = _requests(b"")

    def sample(self, logits: torch.Tensor, generations: list[Generation]) -> list[Sampled | BadLogits]:
        """One token a row.

        logits: (rows, vocabulary) float32, one row for each of `generations`; may be changed. Rows of one generation
        stand together, and are for its next tokens. A bad row gives BadLogits in its place and harms no other.
        """
        return sampled(self.ask(logits, generations), generations) if generations else []

    def ask(self, logits: torch.Tensor, generations: list[Generation]) -> PendingChoices:
        """What `sample` does, as far as that goes without waiting for the device; at least one row."""
        if self._of != generations:
            self._of = generations
            self._requests = _requests(b"".join([generation.request for generation in generations]))
        requests = self._requests
        if any(generation.matcher for generation in generations):
            requests = replace(requests, **_masks(generations))
        if any(generation.random for generation in generations):
            requests.rows["uniform"] = _uniforms(generations)
        if any(generation.adjusts for generation in generations):
            requests = replace(requests, **_adjustments(generations))
        return self._kernels.choose(logits, requests)


def sampled(pending: PendingChoices, generations: list[Generation]) -> list[Sampled | BadLogits]:
    """What was asked for, once it is there."""
    choices = pending.result()
    return [
        BadLogits("the model produced NaN logits, or its request allows no token")
        if token < 0
        else Sampled(token, _logprob(choices, row, token, generation) if generation.sampling.logprobs else None)
        for row, (token, generation) in enumerate(zip(choices.tokens.tolist(), generations, strict=True))
    ]


def any_token(rows: int) -> ChoiceRequests:
    """Requests of rows that take the likeliest token."""
    return _requests(np.zeros(rows, dtype=REQUEST).tobytes())


def _requests(rows: bytes) -> ChoiceRequests:
    """Rows of REQUEST that change no logits."""
    requests = np.frombuffer(bytearray(rows), dtype=REQUEST)
    starts, none = np.zeros(len(requests) + 1, dtype=np.int32), np.empty(0, dtype=np.float32)
    masked = np.full(len(requests), -1, dtype=np.int32)
    return ChoiceRequests(requests, starts, none.astype(np.int32), none, none, np.empty((0, 0), np.int32), masked)


def _uniforms(generations: list[Generation]) -> list[float]:
    """The numbers that choose; see `Generation.uniform`."""
    numbers, before, ahead = [], None, 0
    for generation in generations:
        ahead = ahead + 1 if generation is before else 0
        numbers.append(generation.uniform(ahead))
        before = generation
    return numbers


def _masks(generations: Sequence[Generation]) -> dict[str, NDArray[Any]]:
    """The fields of ChoiceRequests that say which tokens may come."""
    masks = [None if one.matcher is None else one.matcher.allowed() for one in generations]
    has = np.array([mask is not None for mask in masks])
    allowed = np.stack([mask for mask in masks if mask is not None])
    return {"allowed": allowed, "masked": np.where(has, np.cumsum(has) - 1, -1).astype(np.int32)}


def _adjustments(generations: Sequence[Generation]) -> dict[str, NDArray[Any]]:
    """The fields of ChoiceRequests that say which logits change."""
    starts = np.zeros(len(generations) + 1, dtype=np.int32)
    found = [_changes(one) for one in generations if one.adjusts]
    starts[1:][[one.adjusts for one in generations]] = [len(ids) for ids, _, _ in found]
    np.cumsum(starts, out=starts)
    ids, factors, biases = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return {"starts": starts, "ids": ids, "factors": factors, "biases": biases}


def _changes(generation: Generation) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """The tokens whose logits penalties, bias and min_tokens change, and by what factor and bias."""
    sampling = generation.sampling
    muted = generation.stop_tokens if generation.muted else frozenset()
    repeated = generation.seen if sampling.repetition_penalty != 1.0 else set()
    counted = generation.counts if sampling.presence_penalty or sampling.frequency_penalty else {}
    ids = list({*sampling.logit_bias, *muted, *repeated, *counted})
    count = len(ids)
    factors, biases = np.ones(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    if repeated:  # Keskar et al. 2019 (CTRL)
        which = np.fromiter((token in repeated for token in ids), dtype=bool, count=count)
        factors[which] = sampling.repetition_penalty
    if counted:
        times = np.fromiter((counted.get(token, 0) for token in ids), dtype=np.float32, count=count)
        biases -= sampling.presence_penalty * (times > 0) + sampling.frequency_penalty * times
    if sampling.logit_bias:
        bias = sampling.logit_bias
        biases += np.fromiter((bias.get(token, 0.0) for token in ids), dtype=np.float32, count=count)
    if muted:
        biases[np.fromiter((token in muted for token in ids), dtype=bool, count=count)] = -np.inf
    return np.array(ids, dtype=np.int32), factors, biases


def _logprob(choices: Choices, row: int, token: int, generation: Generation) -> TokenLogprob:
    top = min(generation.sampling.top_logprobs, choices.top_ids.shape[1])
    alternatives = zip(choices.top_ids[row, :top].tolist(), choices.top_logprobs[row, :top].tolist(), strict=True)
    return TokenLogprob(token, float(choices.logprobs[row]), list(alternatives))
