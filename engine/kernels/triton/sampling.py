"""Sample on the device without a sort.

Each logit is mapped to an integer key of the same order. A search that counts the tokens above 16 pivots in each pass
finds the smallest key that top-k and top-p keep. Of the tokens with that key, those with the smallest ids are kept.

The tokens equal those of `engine/kernels/sampling.py` up to rounding: one uniform number per row is compared with the
running sum of weights in vocabulary order, so that a seed means the same on every device. (Gumbel noise on each logit
would save a pass, but needs a random number for every token of the vocabulary.)

Each row has one program, which makes every pass over the whole row, so no program waits for another.
"""

import triton
import triton.language as tl

STATS = 4
"""Number of float32 values in `stats` for each row: its largest logit, the logarithm of the sum of the exponentials of
all logits minus the largest one, 1 if a logit is NaN; one is unused."""

BLOCK = 1024
"""Number of logits that a program processes at a time; `CHANGES` of those that a request changes."""
CHANGES = 256
WARPS = 8

REQUEST_FIELDS = 6
"""Number of float64 fields of a row: temperature, top_p, min_p, top_k, top_logprobs, uniform."""


@triton.jit
def _keys(x):
    """Return integers in the order of the numbers."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # maps -0.0 to 0.0
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def fill_placeholders(
    tokens,  # (rows,) int64, changed in place
    chosen,  # (m,) int32
    rows,
    BLOCK: tl.constexpr,
):
    """Replace negative tokens by those sampled last; see `Kernels.stage`."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + offsets, mask=offsets < rows, other=0)
    request = (offsets < rows) & (token < 0)
    tl.store(
        tokens + offsets, tl.maximum(tl.load(chosen - 1 - token, mask=request, other=0), 0).to(tl.int64), mask=request
    )


@triton.jit
def apply_masks(
    logits,  # (m, vocabulary) float32, changed in place where a row has a mask
    allowed,  # (masks, words) int32
    masked,  # (m,) int32, which mask a row has; -1 for none
    stats,  # (m, STATS) float32
    vocabulary,
    words,
    MASKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Apply each row's mask to its logits, and compute its `stats`; see `STATS`."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * vocabulary
    offsets = tl.arange(0, BLOCK)
    maximum = float("-inf")
    total = 0.0
    bad = tl.full((), 0, tl.int32)
    mask = -1
    if MASKS:
        mask = tl.load(masked + row)
    for start in range(0, vocabulary, BLOCK):
        token = start + offsets
        inside = token < vocabulary
        x = tl.load(base + token, mask=inside, other=float("-inf"))
        bad = tl.maximum(bad, tl.max((x != x).to(tl.int32), 0))
        if MASKS and mask >= 0:
            known = inside & (token // 32 < words)
            word = tl.load(allowed + mask * words + token // 32, mask=known, other=0)
            x = tl.where(((word >> (token % 32)) & 1) == 1, x, float("-inf"))
            tl.store(base + token, x, mask=inside)
        larger = tl.maximum(maximum, tl.max(x, 0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(x - shift), 0)
        maximum = larger
    tl.store(stats + row * 4, maximum)
    tl.store(stats + row * 4 + 1, tl.log(total))
    tl.store(stats + row * 4 + 2, bad.to(tl.float32))


@triton.jit
def _narrow(reached, pivots, goal, low, high):
    """Return the next bounds: the largest pivot that reaches the goal, and the smallest that does not."""
    enough = reached >= goal
    low = tl.maximum(low, tl.max(tl.where(enough, pivots, low), 0))
    high = tl.minimum(high, tl.min(tl.where(enough, high, pivots), 0))
    return low, high


@triton.jit
def top_tokens(
    logits,
    requests,  # (m, REQUEST_FIELDS) float64
    ids,  # (m, width) int32
    values,  # (m, width) float32
    vocabulary,
    width,
    BLOCK: tl.constexpr,
):
    """Find the most likely tokens of each row that requests some, in vocabulary order; ties go to the smaller id."""
    row = tl.program_id(0)
    count = tl.minimum(tl.load(requests + row * 6 + 4).to(tl.int32), vocabulary)
    if count > 0:
        base = logits + row.to(tl.int64) * vocabulary
        offsets = tl.arange(0, BLOCK)
        step = tl.arange(0, 16).to(tl.int64) + 1
        low = tl.full((), -2147483648, tl.int64)
        high = tl.full((), 2147483647, tl.int64)
        while high - low > 1:
            pivots = low + tl.maximum((high - low) * step // 17, 1)
            reached = tl.zeros((16,), tl.int32)
            for start in range(0, vocabulary, BLOCK):
                token = start + offsets
                inside = token < vocabulary
                key = _keys(tl.load(base + token, mask=inside, other=float("-inf")))
                over = inside[:, None] & (key[:, None] >= pivots.to(tl.int32)[None, :])
                reached += tl.sum(over.to(tl.int32), 0)
            low, high = _narrow(reached, pivots, count, low, high)
        border = low.to(tl.int32)
        above = 0
        for start in range(0, vocabulary, BLOCK):
            token = start + offsets
            inside = token < vocabulary
            key = _keys(tl.load(base + token, mask=inside, other=float("-inf")))
            above += tl.sum((inside & (key > border)).to(tl.int32), 0)
        equal = count - above
        found = 0
        ties_seen = 0
        for start in range(0, vocabulary, BLOCK):
            token = start + offsets
            inside = token < vocabulary
            x = tl.load(base + token, mask=inside, other=float("-inf"))
            key = _keys(x)
            tie = (inside & (key == border)).to(tl.int32)
            among = (ties_seen + tl.cumsum(tie, 0)) <= equal
            is_candidate = inside & ((key > border) | ((tie == 1) & among))
            place = found + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
            tl.store(ids + row * width + place, token, mask=is_candidate)
            tl.store(values + row * width + place, x, mask=is_candidate)
            found += tl.sum(is_candidate.to(tl.int32), 0)
            ties_seen += tl.sum(tie, 0)


@triton.jit
def adjust(
    logits,
    starts,  # (m + 1,) int32
    ids,
    factors,
    biases,
    before,  # as many as ids, float32: previous values
    vocabulary,
    BLOCK: tl.constexpr,
):
    """Change the logits that a row's request changes, and save their previous values."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * vocabulary
    end = tl.load(starts + row + 1)
    for start in range(tl.load(starts + row), end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < end
        token = tl.load(ids + offsets, mask=inside, other=0)
        x = tl.load(base + token, mask=inside, other=0.0)
        tl.store(before + offsets, x, mask=inside)
        factor = tl.load(factors + offsets, mask=inside, other=1.0)
        x = tl.where(x > 0, x / factor, x * factor) + tl.load(biases + offsets, mask=inside, other=0.0)
        tl.store(base + token, x, mask=inside)


@triton.jit
def _weights(x, inside, maximum, temperature, min_p):
    """Return the weights of the candidates; 0 for other tokens."""
    weight = tl.where(inside, tl.exp((x - maximum) / temperature), 0.0)
    return tl.where(weight >= min_p, weight, 0.0)


@triton.jit
def pick(
    logits,
    requests,
    stats,
    tokens,  # (m,) int32: -1 where there is none
    vocabulary,
    BLOCK: tl.constexpr,
):
    """Sample a token for each row: the most likely one, or one drawn from the row's candidates."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * vocabulary
    offsets = tl.arange(0, BLOCK)
    request = requests + row * 6
    temperature = tl.load(request).to(tl.float32)
    maximum = float("-inf")
    chosen = -1
    for start in range(0, vocabulary, BLOCK):
        token = start + offsets
        x = tl.load(base + token, mask=token < vocabulary, other=float("-inf"))
        here = tl.max(x, 0)
        if here > maximum:
            maximum = here
            chosen = tl.min(tl.where(x == here, token, 2147483647), 0)
    if tl.load(stats + row * 4 + 2) > 0:
        chosen = -1
    if (temperature > 0) & (chosen >= 0):
        top_p = tl.load(request + 1)
        min_p = tl.load(request + 2).to(tl.float32)
        top_k = tl.load(request + 3).to(tl.int32)
        uniform = tl.load(request + 5)
        count = 0
        total_weight = tl.full((), 0.0, tl.float64)
        for start in range(0, vocabulary, BLOCK):
            token = start + offsets
            inside = token < vocabulary
            x = tl.load(base + token, mask=inside, other=float("-inf"))
            weight = _weights(x, inside, maximum, temperature, min_p)
            count += tl.sum((weight > 0).to(tl.int32), 0)
            total_weight += tl.sum(weight, 0).to(tl.float64)
        step = tl.arange(0, 16).to(tl.int64) + 1
        last = _keys(maximum).to(tl.int64) + 1
        border = tl.full((), -2147483648, tl.int64)
        equal = vocabulary  # number of candidates at the border that are included
        if (top_k > 0) & (top_k < count):
            high = last
            while high - border > 1:
                pivots = border + tl.maximum((high - border) * step // 17, 1)
                reached = tl.zeros((16,), tl.int32)
                for start in range(0, vocabulary, BLOCK):
                    token = start + offsets
                    inside = token < vocabulary
                    x = tl.load(base + token, mask=inside, other=float("-inf"))
                    weight = _weights(x, inside, maximum, temperature, min_p)
                    over = (weight > 0)[:, None] & (_keys(x)[:, None] >= pivots.to(tl.int32)[None, :])
                    reached += tl.sum(over.to(tl.int32), 0)
                border, high = _narrow(reached, pivots, top_k, border, high)
            above = 0
            total_weight = tl.full((), 0.0, tl.float64)
            single = tl.full((), 0.0, tl.float32)
            for start in range(0, vocabulary, BLOCK):
                token = start + offsets
                inside = token < vocabulary
                x = tl.load(base + token, mask=inside, other=float("-inf"))
                weight = _weights(x, inside, maximum, temperature, min_p)
                over = _keys(x) > border.to(tl.int32)
                above += tl.sum(((weight > 0) & over).to(tl.int32), 0)
                total_weight += tl.sum(tl.where(over, weight, 0.0), 0).to(tl.float64)
                single = tl.maximum(single, tl.max(tl.where(_keys(x) == border.to(tl.int32), weight, 0.0), 0))
            equal = top_k - above
            total_weight += single.to(tl.float64) * equal
        if top_p < 1.0:
            goal = top_p * total_weight
            high = last
            low = border
            while high - low > 1:
                pivots = low + tl.maximum((high - low) * step // 17, 1)
                mass = tl.zeros((16,), tl.float64)
                for start in range(0, vocabulary, BLOCK):
                    token = start + offsets
                    inside = token < vocabulary
                    x = tl.load(base + token, mask=inside, other=float("-inf"))
                    weight = _weights(x, inside, maximum, temperature, min_p)
                    over = _keys(x)[:, None] >= pivots.to(tl.int32)[None, :]
                    mass += tl.sum(tl.where(over, weight[:, None], 0.0), 0).to(tl.float64)
                low, high = _narrow(mass, pivots, goal, low, high)
            mass_above = tl.full((), 0.0, tl.float64)
            single = tl.full((), 0.0, tl.float32)
            ties = 0
            for start in range(0, vocabulary, BLOCK):
                token = start + offsets
                inside = token < vocabulary
                x = tl.load(base + token, mask=inside, other=float("-inf"))
                weight = _weights(x, inside, maximum, temperature, min_p)
                mass_above += tl.sum(tl.where(_keys(x) > low.to(tl.int32), weight, 0.0), 0).to(tl.float64)
                at_border = (_keys(x) == low.to(tl.int32)) & (weight > 0)
                single = tl.maximum(single, tl.max(tl.where(at_border, weight, 0.0), 0))
                ties += tl.sum(at_border.to(tl.int32), 0)
            if low > border:
                equal = ties
            border = low
            needed = tl.maximum(tl.ceil((goal - mass_above) / single.to(tl.float64)).to(tl.int32), 1)
            equal = tl.minimum(equal, needed)
            total_weight = mass_above + single.to(tl.float64) * tl.minimum(equal, ties)
        target = uniform * total_weight
        running = tl.full((), 0.0, tl.float64)
        found = -1
        last_candidate = -1
        ties_seen = 0
        for start in range(0, vocabulary, BLOCK):
            token = start + offsets
            inside = token < vocabulary
            x = tl.load(base + token, mask=inside, other=float("-inf"))
            weight = _weights(x, inside, maximum, temperature, min_p)
            key = _keys(x)
            tie = ((key == border.to(tl.int32)) & (weight > 0)).to(tl.int32)
            is_candidate = (key > border.to(tl.int32)) | ((tie == 1) & (ties_seen + tl.cumsum(tie, 0) <= equal))
            weight = tl.where(is_candidate, weight, 0.0)
            ties_seen += tl.sum(tie, 0)
            reached = running + tl.cumsum(weight.to(tl.float64), 0)
            over = (reached > target) & (weight > 0)
            first = tl.min(tl.where(over, token, 2147483647), 0)
            found = tl.where((found < 0) & (first < 2147483647), first, found)
            last_candidate = tl.maximum(last_candidate, tl.max(tl.where(weight > 0, token, -1), 0))
            running += tl.sum(weight.to(tl.float64), 0)
        chosen = tl.where(found >= 0, found, last_candidate)
    tl.store(tokens + row, chosen)


@triton.jit
def log_probabilities(
    logits,
    stats,
    tokens,
    starts,
    ids,
    before,
    logprobs,  # (m,) float32
    vocabulary,
    CHANGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the log probability of each row's token, from the logits before `adjust`."""
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    if token >= 0:
        x = tl.load(logits + row.to(tl.int64) * vocabulary + token)
        if CHANGED:
            end = tl.load(starts + row + 1)
            for start in range(tl.load(starts + row), end, BLOCK):
                offsets = start + tl.arange(0, BLOCK)
                matches = tl.load(ids + offsets, mask=offsets < end, other=-1) == token
                previous = tl.load(before + offsets, mask=matches, other=float("-inf"))
                if tl.max(matches.to(tl.int32), 0) > 0:
                    x = tl.max(previous, 0)
        tl.store(logprobs + row, x - tl.load(stats + row * 4) - tl.load(stats + row * 4 + 1))
