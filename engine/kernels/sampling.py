"""Logits to tokens in numpy, the reference: on CPU several times faster than torch, and never a full sort."""

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.base import ChoiceRequests, Choices

Row = NDArray[np.float32]
Ids = NDArray[np.int64]
_BUCKETS = 1024
_BUCKETS_PER_NAT = 16.0
"""Candidates are sorted into buckets by how far they are below the likeliest; only one bucket is ever sorted."""
_SMALL = 2048
"""So few candidates are quicker sorted than counted into buckets."""
_CHUNK = 256
"""Weights summed at a time when one is drawn from all: first the chunk is found, then the token in it."""


def choose(logits: NDArray[np.float32], requests: ChoiceRequests) -> Choices:
    """See `Kernels.choose`."""
    choices = Choices.empty(requests)
    forbid(logits, requests)
    values = adjusted(logits, requests)
    for at, (row, request) in enumerate(zip(logits, requests.rows, strict=True)):
        likeliest = int(np.argmax(row))
        if np.isnan(row[likeliest]):  # argmax finds a NaN if there is one
            continue
        changed = slice(requests.starts[at], requests.starts[at + 1])
        weighed = row
        if changed.start < changed.stop:
            weighed = row.copy()
            weighed[requests.ids[changed]] = values[changed]
            likeliest = int(np.argmax(weighed))
        if not weighed[likeliest] > -np.inf:  # NaN, or everything is forbidden
            continue
        token = likeliest
        if request["temperature"] > 0.0:
            token = _draw(weighed, request)
        choices.tokens[at] = token
        if request["top_logprobs"] >= 0:
            _log(row, token, int(request["top_logprobs"]), choices, at)
    return choices


def fill_in(tokens: torch.Tensor, chosen: Choices | None) -> torch.Tensor:
    """Tokens as `Kernels.stage` takes them, with those of the last choice where they are asked for."""
    array = tokens.numpy()
    asked = array < 0
    if chosen is None or not asked.any():
        return tokens
    filled = array.copy()
    filled[asked] = np.maximum(0, chosen.tokens[-1 - array[asked]])
    return torch.from_numpy(filled)


def forbid(logits: NDArray[np.float32], requests: ChoiceRequests) -> None:
    """Sets the logits that the rows' masks do not allow to minus infinity, in place."""
    for row in np.flatnonzero(requests.masked >= 0):
        words = requests.allowed[requests.masked[row]]
        bits = np.unpackbits(words.view(np.uint8), count=logits.shape[1], bitorder="little")
        logits[row, bits == 0] = -np.inf


def adjusted(logits: NDArray[np.float32], requests: ChoiceRequests) -> NDArray[np.float32]:
    """What the logits of `requests.ids` become, (ids,)."""
    if not len(requests.ids):
        return np.empty(0, dtype=np.float32)
    rows = np.repeat(np.arange(len(logits)), np.diff(requests.starts))
    values = logits[rows, requests.ids]
    factors = requests.factors
    return np.where(values > 0, values / factors, values * factors) + requests.biases


def _draw(row: Row, request: np.void) -> int:
    """Inverse transform over the kept candidates in vocabulary order."""
    scaled = (row - row.max()) / np.float32(request["temperature"])
    weights = np.exp(scaled)
    top_k, top_p, min_p = int(request["top_k"]), float(request["top_p"]), float(request["min_p"])
    candidates: Ids | None = None
    if min_p > 0.0:
        candidates = np.flatnonzero(weights >= np.float32(min_p))  # the likeliest has weight 1
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


def _log(row: Row, token: int, top: int, choices: Choices, at: int) -> None:
    shifted = row - row.max()
    normaliser = np.log(np.exp(shifted).sum(dtype=np.float64))
    choices.logprobs[at] = shifted[token] - normaliser
    if top:
        ids = _sorted(shifted, _largest(shifted, min(top, len(row))))
        choices.top_ids[at, : len(ids)] = ids
        choices.top_logprobs[at, : len(ids)] = shifted[ids] - normaliser
