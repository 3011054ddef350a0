"""What each generation wants of its logits, and what it gets."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.generation import Generation, Sampled
from engine.kernels import Kernels
from engine.kernels.base import REQUEST, ChoiceRequests, Choices
from engine.link import TokenLogprob


class BadLogits(Exception):
    """A row holds NaN, or allows no token: the request that owns it cannot go on."""


def sample(logits: torch.Tensor, generations: Sequence[Generation], kernels: Kernels) -> list[Sampled | BadLogits]:
    """One token a row.

    logits: (rows, vocabulary) float32, one row for each of `generations`; may be changed. A bad row gives BadLogits
    in its place and harms no other.
    """
    if not generations:
        return []
    choices = kernels.choose(logits, _requests(logits, generations))
    return [
        BadLogits("the model produced NaN logits, or its request allows no token")
        if token < 0
        else Sampled(token, _logprob(choices, row, token, generation) if generation.sampling.logprobs else None)
        for row, (token, generation) in enumerate(zip(choices.tokens.tolist(), generations, strict=True))
    ]


def _requests(logits: torch.Tensor, generations: Sequence[Generation]) -> ChoiceRequests:
    rows = np.frombuffer(bytearray(b"".join([generation.request for generation in generations])), dtype=REQUEST)
    rows["uniform"] = [generation.uniform() for generation in generations]
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
    return ChoiceRequests(
        rows,
        starts,
        np.concatenate(ids) if ids else np.empty(0, dtype=np.int32),
        np.concatenate(values) if values else np.empty(0, dtype=np.float32),
    )


def _adjusted(row: NDArray[np.float32], generation: Generation) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The tokens whose logits penalties, bias and min_tokens change, and what they become."""
    sampling = generation.sampling
    muted = generation.stop_tokens if generation.count < sampling.min_tokens else frozenset()
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
