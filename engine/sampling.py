"""Logits to tokens. numpy on float32 rows: on CPU several times faster than torch, and never a full sort."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.generation import Generation, Sampled
from engine.link import TokenLogprob

Row = NDArray[np.float32]
Ids = NDArray[np.int64]
_BUCKETS = 1024
_BUCKETS_PER_NAT = 16.0
"""Candidates are sorted into buckets by how far they are below the likeliest; only one bucket is ever sorted."""
_SMALL = 2048
"""So few candidates are quicker sorted than counted into buckets."""
_CHUNK = 256
"""Weights summed at a time when one is drawn from all: first the chunk is found, then the token in it."""


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
    """Inverse transform over the kept candidates in vocabulary order, one uniform number a token."""
    sampling = generation.sampling
    scaled = (row - row.max()) / np.float32(sampling.temperature)
    weights = np.exp(scaled)
    candidates: Ids | None = None
    if sampling.min_p > 0.0:
        candidates = np.flatnonzero(weights >= sampling.min_p)  # the likeliest has weight 1
    if 0 < sampling.top_k < len(row if candidates is None else candidates):
        candidates = _largest(scaled, sampling.top_k, candidates)
    if sampling.top_p < 1.0:
        candidates = _nucleus(scaled, weights, sampling.top_p, candidates)
    uniform = generation.random.random()
    if candidates is None:
        return _pick_from_all(weights, uniform)
    candidates.sort()  # the choice does not depend on how the candidates were found
    return int(candidates[_pick(weights[candidates], uniform)])


def _pick(weights: Row, uniform: float) -> int:
    cumulative = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(weights) - 1)


def _pick_from_all(weights: Row, uniform: float) -> int:
    """What `_pick` does, without running through the whole vocabulary one by one."""
    whole = len(weights) // _CHUNK * _CHUNK
    sums = weights[:whole].reshape(-1, _CHUNK).sum(axis=1, dtype=np.float64)
    cumulative = np.cumsum(np.append(sums, weights[whole:].sum(dtype=np.float64)))
    target = uniform * cumulative[-1]
    chunk = min(int(np.searchsorted(cumulative, target, side="right")), len(cumulative) - 1)
    start = chunk * _CHUNK
    if start == len(weights):  # rounding led past the end, and the last chunk is empty
        chunk, start = chunk - 1, start - _CHUNK
    inside = np.cumsum(weights[start : start + _CHUNK], dtype=np.float64)
    before = cumulative[chunk - 1] if chunk else 0.0
    return start + min(int(np.searchsorted(inside, target - before, side="right")), len(inside) - 1)


def _buckets(scaled: Row) -> NDArray[np.intp]:
    """Bucket of each value, 0 for the likeliest. scaled: at most 0."""
    buckets: NDArray[np.intp] = np.minimum(scaled * np.float32(-_BUCKETS_PER_NAT), np.float32(_BUCKETS - 1)).astype(
        np.intp
    )
    return buckets


def _sorted(scaled: Row, ids: Ids) -> Ids:
    """Likeliest first; ties go to the smaller id."""
    return ids[np.lexsort((ids, -scaled[ids]))]


def _largest(scaled: Row, count: int, among: Ids | None = None) -> Ids:
    """Ids of the `count` likeliest, the border's ties going to the smaller id. At least so many are there."""
    pool = np.arange(len(scaled)) if among is None else among
    if len(pool) <= _SMALL:
        return _sorted(scaled, pool)[:count]
    buckets = _buckets(scaled if among is None else scaled[among])
    reached = np.cumsum(np.bincount(buckets, minlength=_BUCKETS))
    border = int(np.searchsorted(reached, count))
    above = pool[buckets < border]
    return np.concatenate([above, _sorted(scaled, pool[buckets == border])[: count - len(above)]])


def _nucleus(scaled: Row, weights: Row, top_p: float, among: Ids | None) -> Ids:
    """The fewest likeliest candidates that together hold `top_p` (Holtzman et al. 2020)."""
    pool = np.arange(len(scaled)) if among is None else among
    own = weights if among is None else weights[among]
    if len(pool) <= _SMALL:
        above, inside, held, target = pool[:0], pool, 0.0, top_p * float(own.sum(dtype=np.float64))
    else:
        buckets = _buckets(scaled if among is None else scaled[among])
        reached = np.cumsum(np.bincount(buckets, weights=own, minlength=_BUCKETS))
        target = top_p * float(reached[-1])
        border = int(np.searchsorted(reached, target))
        above, inside = pool[buckets < border], pool[buckets == border]
        held = float(reached[border - 1]) if border else 0.0
    order = _sorted(scaled, inside)
    running = held + np.cumsum(weights[order], dtype=np.float64)
    return np.concatenate([above, order[: int(np.searchsorted(running, target)) + 1]])


def _logprob(row: Row, token: int, top: int) -> TokenLogprob:
    shifted = row - row.max()
    normaliser = np.log(np.exp(shifted).sum(dtype=np.float64))
    alternatives: list[tuple[int, float]] = []
    if top:
        ids = _sorted(shifted, _largest(shifted, min(top, len(row))))
        alternatives = [(int(id), float(shifted[id] - normaliser)) for id in ids]
    return TokenLogprob(token, float(shifted[token] - normaliser), alternatives)
