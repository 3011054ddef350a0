"""Logits to tokens. numpy on float32 rows: on CPU several times faster than torch, and never a full sort."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.generation import Generation, Sampled
from engine.link import TokenLogprob

Row = NDArray[np.float32]
_SHORT_LIST = 128
"""Candidates looked at first for top_p; widened eightfold until they hold the asked probability."""


class BadLogits(Exception):
    """A row holds NaN: the request that owns it cannot go on."""


def sample(logits: Row, generations: Sequence[Generation]) -> list[Sampled | BadLogits]:
    """One token a row.

    logits: (rows, vocabulary) float32, one row for each of `generations`; not written to. A row with NaN gives
    BadLogits in its place and harms no other.
    """
    likeliest = np.argmax(logits, axis=1)
    return [
        BadLogits("the model produced NaN logits")
        if np.isnan(row[best])  # argmax finds a NaN if there is one
        else _sample_row(row, generation, int(best))
        for row, generation, best in zip(logits, generations, likeliest, strict=True)
    ]


def _sample_row(row: Row, generation: Generation, likeliest: int) -> Sampled:
    sampling = generation.sampling
    adjusted = _adjust(row, generation)
    if sampling.temperature == 0.0:
        token = likeliest if adjusted is row else int(np.argmax(adjusted))
    else:
        token = _draw(adjusted, generation)
    return Sampled(token, _logprob(row, token, sampling.top_logprobs) if sampling.logprobs else None)


def _adjust(row: Row, generation: Generation) -> Row:
    """Penalties, bias and min_tokens on a copy, or the row itself where there are none."""
    sampling = generation.sampling
    penalised = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
    muted = generation.count < sampling.min_tokens and bool(generation.stop_tokens)
    if not (penalised or muted or sampling.logit_bias or sampling.repetition_penalty != 1.0):
        return row
    row = row.copy()
    if sampling.repetition_penalty != 1.0 and generation.seen:  # Keskar et al. 2019 (CTRL)
        ids = np.fromiter(generation.seen, dtype=np.int64)
        values = row[ids]
        row[ids] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if penalised and generation.counts:
        ids = np.fromiter(generation.counts.keys(), dtype=np.int64)
        counts = np.fromiter(generation.counts.values(), dtype=np.float32)
        row[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        ids = np.fromiter(sampling.logit_bias.keys(), dtype=np.int64)
        row[ids] += np.fromiter(sampling.logit_bias.values(), dtype=np.float32)
    if muted:
        row[np.fromiter(generation.stop_tokens, dtype=np.int64)] = -np.inf
    return row


def _draw(row: Row, generation: Generation) -> int:
    """Inverse transform over the kept candidates, one uniform number a token."""
    sampling = generation.sampling
    scaled = (row - row.max()) / np.float32(sampling.temperature)
    weights = np.exp(scaled)
    candidates: NDArray[np.int64] | None = None
    if sampling.min_p > 0.0:
        candidates = np.flatnonzero(weights >= sampling.min_p)  # the likeliest has weight 1
    if 0 < sampling.top_k < len(row if candidates is None else candidates):
        candidates = _largest(weights, sampling.top_k, candidates)
    if sampling.top_p < 1.0:
        candidates = _nucleus(weights, sampling.top_p, candidates)
    if candidates is not None:
        candidates.sort()  # vocabulary order: the choice does not depend on how the short list was made
        weights = weights[candidates]
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(cumulative, generation.random.random() * cumulative[-1], side="right"))
    index = min(index, len(cumulative) - 1)
    return index if candidates is None else int(candidates[index])


def _largest(weights: Row, count: int, among: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Ids of the `count` largest weights, in no order; ties at the border go to the smaller id."""
    pool = weights if among is None else weights[among]
    border = np.partition(pool, len(pool) - count)[len(pool) - count]
    above = np.flatnonzero(pool > border)
    ids = np.concatenate([above, np.flatnonzero(pool == border)[: count - len(above)]])
    return ids if among is None else among[ids]


def _nucleus(weights: Row, top_p: float, among: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The fewest likeliest candidates that together hold `top_p` (Holtzman et al. 2020)."""
    total = float(weights.sum(dtype=np.float64) if among is None else weights[among].sum(dtype=np.float64))
    size = len(weights) if among is None else len(among)
    length = _SHORT_LIST
    while True:
        short = (np.arange(size) if among is None else among) if length >= size else _largest(weights, length, among)
        order = short[np.lexsort((short, -weights[short]))]
        cumulative = np.cumsum(weights[order], dtype=np.float64)
        if cumulative[-1] >= top_p * total or length >= size:
            return order[: int(np.searchsorted(cumulative, top_p * total)) + 1]
        length *= 8


def _logprob(row: Row, token: int, top: int) -> TokenLogprob:
    shifted = row - row.max()
    normaliser = np.log(np.exp(shifted).sum(dtype=np.float64))
    alternatives: list[tuple[int, float]] = []
    if top:
        ids = _largest(row, min(top, len(row)))
        ids = ids[np.lexsort((ids, -row[ids]))]
        alternatives = [(int(id), float(shifted[id] - normaliser)) for id in ids]
    return TokenLogprob(token, float(shifted[token] - normaliser), alternatives)
