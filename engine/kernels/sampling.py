"""Sampling in numpy, the reference: on a CPU several times faster than torch, and never with a full sort."""

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.base import SampledTokens, SamplingRequests

Row = NDArray[np.float32]
Ids = NDArray[np.int64]
_BUCKETS = 1024
_BUCKETS_PER_NAT = 16.0
"""Candidates are sorted into buckets by their distance from the largest logit; only one bucket is ever sorted."""
_SMALL = 2048
"""Number of candidates up to which sorting is faster than counting into buckets."""
_CHUNK = 256
"""Number of weights summed at a time when a token is drawn from all: first the chunk is found, then the token in it."""


def sample(logits: NDArray[np.float32], requests: SamplingRequests) -> SampledTokens:
    """See `Kernels.sample`."""
    sampled = SampledTokens.empty(requests)
    apply_masks(logits, requests)
    values = adjusted_logits(logits, requests)
    for index, (row, request) in enumerate(zip(logits, requests.rows, strict=True)):
        likeliest = int(np.argmax(row))
        if np.isnan(row[likeliest]):  # argmax finds a NaN if there is one
            continue
        changed = slice(requests.starts[index], requests.starts[index + 1])
        weighed = row
        if changed.start < changed.stop:
            weighed = row.copy()
            weighed[requests.ids[changed]] = values[changed]
            likeliest = int(np.argmax(weighed))
        if not weighed[likeliest] > -np.inf:  # NaN, or no token is allowed
            continue
        token = likeliest
        if request["temperature"] > 0.0:
            token = _draw(weighed, request)
        sampled.tokens[index] = token
        if request["top_logprobs"] >= 0:
            _add_logprobs(row, token, int(request["top_logprobs"]), sampled, index)
    return sampled


def fill_placeholders(tokens: torch.Tensor, sampled: SampledTokens | None) -> torch.Tensor:
    """Replace each unknown token, stored as -1 - r, by the token sampled last for row r; see `Kernels.stage`."""
    array = tokens.numpy()
    placeholders = array < 0
    if sampled is None or not placeholders.any():
        return tokens
    resolved = array.copy()
    resolved[placeholders] = np.maximum(0, sampled.tokens[-1 - array[placeholders]])
    return torch.from_numpy(resolved)


def apply_masks(logits: NDArray[np.float32], requests: SamplingRequests) -> None:
    """Set the logits that the rows' masks do not allow to minus infinity, in place."""
    for row in np.flatnonzero(requests.mask_index >= 0):
        words = requests.allowed[requests.mask_index[row]]
        bits = np.unpackbits(words.view(np.uint8), count=logits.shape[1], bitorder="little")
        logits[row, bits == 0] = -np.inf


def adjusted_logits(logits: NDArray[np.float32], requests: SamplingRequests) -> NDArray[np.float32]:
    """Return the changed logits of `requests.ids`, (ids,)."""
    if not len(requests.ids):
        return np.empty(0, dtype=np.float32)
    rows = np.repeat(np.arange(len(logits)), np.diff(requests.starts))
    values = logits[rows, requests.ids]
    factors = requests.factors
    return np.where(values > 0, values / factors, values * factors) + requests.biases


def _draw(row: Row, request: np.void) -> int:
    """Draw a token by inverse transform over the candidates in vocabulary order."""
    scaled = (row - row.max()) / np.float32(request["temperature"])
    weights = np.exp(scaled)
    top_k, top_p, min_p = int(request["top_k"]), float(request["top_p"]), float(request["min_p"])
    candidates: Ids | None = None
    if min_p > 0.0:
        candidates = np.flatnonzero(weights >= np.float32(min_p))  # the most likely token has weight 1
    if 0 < top_k < len(row if candidates is None else candidates):
        candidates = _largest(scaled, top_k, candidates)
    if top_p < 1.0:
        candidates = _nucleus(scaled, weights, top_p, candidates)
    uniform = float(request["uniform"])
    if candidates is None:
        return _pick_from_all(weights, uniform)
    candidates.sort()  # the choice does not depend on how the candidates were found
    return int(candidates[_pick(weights[candidates], uniform)])


def _pick(weights: Row, uniform: float) -> int:
    cumulative = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(weights) - 1)


def _pick_from_all(weights: Row, uniform: float) -> int:
    """Return the same as `_pick` without one pass over the whole vocabulary."""
    whole = len(weights) // _CHUNK * _CHUNK
    sums = weights[:whole].reshape(-1, _CHUNK).sum(axis=1, dtype=np.float64)
    cumulative = np.cumsum(np.append(sums, weights[whole:].sum(dtype=np.float64)))
    target = uniform * cumulative[-1]
    chunk = min(int(np.searchsorted(cumulative, target, side="right")), len(cumulative) - 1)
    start = chunk * _CHUNK
    if start == len(weights):  # rounding led past the end, where the last chunk is empty
        chunk, start = chunk - 1, start - _CHUNK
    inside = np.cumsum(weights[start : start + _CHUNK], dtype=np.float64)
    before = cumulative[chunk - 1] if chunk else 0.0
    return start + min(int(np.searchsorted(inside, target - before, side="right")), len(inside) - 1)


def _buckets(scaled: Row) -> NDArray[np.intp]:
    """Return each logit's bucket by its distance from the row's largest logit, 0 for the nearest. `scaled`: logits
    minus the largest, at most 0."""
    buckets: NDArray[np.intp] = np.minimum(scaled * np.float32(-_BUCKETS_PER_NAT), np.float32(_BUCKETS - 1)).astype(
        np.intp
    )
    return buckets


def _sorted(scaled: Row, ids: Ids) -> Ids:
    """Return the ids in order of likelihood; ties go to the smaller id."""
    return ids[np.lexsort((ids, -scaled[ids]))]


def _largest(scaled: Row, count: int, among: Ids | None = None) -> Ids:
    """Return the ids of the `count` most likely tokens; ties at the border go to the smaller id. There must be at least
    `count`."""
    pool = np.arange(len(scaled)) if among is None else among
    if len(pool) <= _SMALL:
        return _sorted(scaled, pool)[:count]
    buckets = _buckets(scaled if among is None else scaled[among])
    reached = np.cumsum(np.bincount(buckets, minlength=_BUCKETS))
    border = int(np.searchsorted(reached, count))
    above = pool[buckets < border]
    return np.concatenate([above, _sorted(scaled, pool[buckets == border])[: count - len(above)]])


def _nucleus(scaled: Row, weights: Row, top_p: float, among: Ids | None) -> Ids:
    """Return the fewest most likely candidates that together hold `top_p` (Holtzman et al. 2020)."""
    pool = np.arange(len(scaled)) if among is None else among
    pool_weights = weights if among is None else weights[among]
    if len(pool) <= _SMALL:
        above, inside, mass, target = pool[:0], pool, 0.0, top_p * float(pool_weights.sum(dtype=np.float64))
    else:
        buckets = _buckets(scaled if among is None else scaled[among])
        reached = np.cumsum(np.bincount(buckets, weights=pool_weights, minlength=_BUCKETS))
        target = top_p * float(reached[-1])
        border = int(np.searchsorted(reached, target))
        above, inside = pool[buckets < border], pool[buckets == border]
        mass = float(reached[border - 1]) if border else 0.0
    order = _sorted(scaled, inside)
    running = mass + np.cumsum(weights[order], dtype=np.float64)
    return np.concatenate([above, order[: int(np.searchsorted(running, target)) + 1]])


def _add_logprobs(row: Row, token: int, top: int, sampled: SampledTokens, index: int) -> None:
    shifted = row - row.max()
    normaliser = np.log(np.exp(shifted).sum(dtype=np.float64))
    sampled.logprobs[index] = shifted[token] - normaliser
    if top:
        ids = _sorted(shifted, _largest(shifted, min(top, len(row))))
        sampled.top_ids[index, : len(ids)] = ids
        sampled.top_logprobs[index, : len(ids)] = shifted[ids] - normaliser
