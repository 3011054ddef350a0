"""What each generation wants of its logits, and what it gets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.generation import Generation, Sampled
from engine.kernels import Kernels
from engine.kernels.base import REQUEST, ChoiceRequests, Choices
from engine.link import TokenLogprob


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

        logits: (rows, vocabulary) float32, one row for each of `generations`; may be changed. A bad row gives
        BadLogits in its place and harms no other.
        """
        if not generations:
            return []
        if self._of != generations:
            self._of = generations
            self._requests = _requests(b"".join([generation.request for generation in generations]))
        requests = self._requests
        for row, generation in enumerate(generations):
            if generation.matcher is not None:
                generation.matcher.forbid(logits[row].numpy())
        if any(generation.random for generation in generations):
            requests.rows["uniform"] = [generation.uniform() for generation in generations]
        if any(generation.adjusts for generation in generations):
            requests = replace(requests, **_adjustments(logits, generations))
        choices = self._kernels.choose(logits, requests)
        return [
            BadLogits("the model produced NaN logits, or its request allows no token")
            if token < 0
            else Sampled(token, _logprob(choices, row, token, generation) if generation.sampling.logprobs else None)
            for row, (token, generation) in enumerate(zip(choices.tokens.tolist(), generations, strict=True))
        ]


def _requests(rows: bytes) -> ChoiceRequests:
    """Rows of REQUEST that change no logits."""
    requests = np.frombuffer(bytearray(rows), dtype=REQUEST)
    starts = np.zeros(len(requests) + 1, dtype=np.int32)
    return ChoiceRequests(requests, starts, np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


def _adjustments(logits: torch.Tensor, generations: Sequence[Generation]) -> dict[str, NDArray[Any]]:
    """The fields of ChoiceRequests that say which logits change."""
    starts = np.zeros(len(generations) + 1, dtype=np.int32)
    ids: list[NDArray[np.int32]] = []
    values: list[NDArray[np.float32]] = []
    for row, generation in enumerate(generations):
        if generation.adjusts:
            changed, became = _adjusted(logits[row].numpy(), generation)
            ids.append(changed)
            values.append(became)
            starts[row + 1] = len(changed)
    np.cumsum(starts, out=starts)
    return {"starts": starts, "ids": np.concatenate(ids), "values": np.concatenate(values)}


def _adjusted(row: NDArray[np.float32], generation: Generation) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The tokens whose logits penalties, bias and min_tokens change, and what they become."""
    sampling = generation.sampling
    muted = generation.stop_tokens if generation.muted else frozenset()
    repeated = generation.seen if sampling.repetition_penalty != 1.0 else set()
    counted = generation.counts if sampling.presence_penalty or sampling.frequency_penalty else {}
    ids = np.fromiter({*sampling.logit_bias, *muted, *repeated, *counted}, dtype=np.int32)
    values = row[ids]
    if repeated:  # Keskar et al. 2019 (CTRL)
        which = np.fromiter((token in repeated for token in ids.tolist()), dtype=bool, count=len(ids))
        penalised = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
        values = np.where(which, penalised, values).astype(np.float32)
    if counted:
        times = np.fromiter((counted.get(token, 0) for token in ids.tolist()), dtype=np.float32, count=len(ids))
        values -= sampling.presence_penalty * (times > 0) + sampling.frequency_penalty * times
    if sampling.logit_bias:
        bias = sampling.logit_bias
        values += np.fromiter((bias.get(token, 0.0) for token in ids.tolist()), dtype=np.float32, count=len(ids))
    if muted:
        values[np.isin(ids, np.fromiter(muted, dtype=np.int32))] = -np.inf
    return ids, values


def _logprob(choices: Choices, row: int, token: int, generation: Generation) -> TokenLogprob:
    top = min(generation.sampling.top_logprobs, choices.top_ids.shape[1])
    alternatives = zip(choices.top_ids[row, :top].tolist(), choices.top_logprobs[row, :top].tolist(), strict=True)
    return TokenLogprob(token, float(choices.logprobs[row]), list(alternatives))
