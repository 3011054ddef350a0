"""Logits to tokens on the device, without a sort: what is kept ends at a key that is found by halving, sixteen ways at
a time, and of those that are equal there the first are kept.

The same choices as `engine/kernels/sampling.py` but for rounding: one uniform number a row, against the running sum of
weights in vocabulary order, so that a seed means the same on every device. (Adding Gumbel noise to each logit would
spare a pass, and give every token of the vocabulary a random number of its own.)

A program a row; rows are whole in every pass, so nothing waits for another program.
"""

import triton
import triton.language as tl

FACTS = 4
"""Numbers about a row, in float32: its largest logit, the logarithm of the sum of all exponentials, 1 if one is NaN;
one is not used."""

BLOCK = 1024
"""Logits that a program looks at together, and `CHANGES` of those that a request changes."""
CHANGES = 256
WARPS = 8

REQUEST_FIELDS = 6
"""Of a row in float64: temperature, top_p, min_p, top_k, top_logprobs, uniform."""


@triton.jit
def _keys(x):
    """Integers in the order of the numbers."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # there is only one zero then
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def fill_in(
    tokens,  # (rows,) int64, changed in place
    chosen,  # (m,) int32
    rows,
    BLOCK: tl.constexpr,
):
    """Puts in the last choice's tokens where they are asked for; see `Kernels.stage`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + at, mask=at < rows, other=0)
    asked = (at < rows) & (token < 0)
    tl.store(tokens + at, tl.maximum(tl.load(chosen - 1 - token, mask=asked, other=0), 0).to(tl.int64), mask=asked)


@triton.jit
def observe(
    logits,  # (m, vocabulary) float32, changed in place where a row has a mask
    allowed,  # (masks, words) int32
    masked,  # (m,) int32, which mask a row has; -1 for none
    facts,  # (m, FACTS) float32
    vocabulary,
    words,
    MASKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Forbids what a row's mask does not allow, and finds the row's facts."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * vocabulary
    at = tl.arange(0, BLOCK)
    most = float("-inf")
    total = 0.0
    bad = tl.full((), 0, tl.int32)
    mask = -1
    if MASKS:
        mask = tl.load(masked + row)
    for start in range(0, vocabulary, BLOCK):
        token = start + at
        inside = token < vocabulary
        x = tl.load(base + token, mask=inside, other=float("-inf"))
        bad = tl.maximum(bad, tl.max((x != x).to(tl.int32), 0))
        if MASKS and mask >= 0:
            known = inside & (token // 32 < words)
            word = tl.load(allowed + mask * words + token // 32, mask=known, other=0)
            x = tl.where(((word >> (token % 32)) & 1) == 1, x, float("-inf"))
            tl.store(base + token, x, mask=inside)
        larger = tl.maximum(most, tl.max(x, 0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(most - shift) + tl.sum(tl.exp(x - shift), 0)
        most = larger
    tl.store(facts + row * 4, most)
    tl.store(facts + row * 4 + 1, tl.log(total))
    tl.store(facts + row * 4 + 2, bad.to(tl.float32))


@triton.jit
def _narrow(reached, pivots, goal, low, high):
    """The next bounds: the largest pivot that reaches the goal, and the smallest that does not."""
    enough = reached >= goal
    low = tl.maximum(low, tl.max(tl.where(enough, pivots, low), 0))
    high = tl.minimum(high, tl.min(tl.where(enough, high, pivots), 0))
    return low, high


@triton.jit
def likeliest(
    logits,
    requests,  # (m, REQUEST_FIELDS) float64
    ids,  # (m, width) int32
    values,  # (m, width) float32
    vocabulary,
    width,
    BLOCK: tl.constexpr,
):
    """The likeliest tokens of the rows that ask for some, in the order of the vocabulary; ties go to the smaller id."""
    row = tl.program_id(0)
    count = tl.minimum(tl.load(requests + row * 6 + 4).to(tl.int32), vocabulary)
    if count > 0:
        base = logits + row.to(tl.int64) * vocabulary
        at = tl.arange(0, BLOCK)
        step = tl.arange(0, 16).to(tl.int64) + 1
        low = tl.full((), -2147483648, tl.int64)
        high = tl.full((), 2147483647, tl.int64)
        while high - low > 1:
            pivots = low + tl.maximum((high - low) * step // 17, 1)
            reached = tl.zeros((16,), tl.int32)
            for start in range(0, vocabulary, BLOCK):
                token = start + at
                inside = token < vocabulary
                key = _keys(tl.load(base + token, mask=inside, other=float("-inf")))
                over = inside[:, None] & (key[:, None] >= pivots.to(tl.int32)[None, :])
                reached += tl.sum(over.to(tl.int32), 0)
            low, high = _narrow(reached, pivots, count, low, high)
        border = low.to(tl.int32)
        above = 0
        for start in range(0, vocabulary, BLOCK):
            token = start + at
            inside = token < vocabulary
            key = _keys(tl.load(base + token, mask=inside, other=float("-inf")))
            above += tl.sum((inside & (key > border)).to(tl.int32), 0)
        equal = count - above
        found = 0
        met = 0
        for start in range(0, vocabulary, BLOCK):
            token = start + at
            inside = token < vocabulary
            x = tl.load(base + token, mask=inside, other=float("-inf"))
            key = _keys(x)
            tie = (inside & (key == border)).to(tl.int32)
            among = (met + tl.cumsum(tie, 0)) <= equal
            kept = inside & ((key > border) | ((tie == 1) & among))
            place = found + tl.cumsum(kept.to(tl.int32), 0) - 1
            tl.store(ids + row * width + place, token, mask=kept)
            tl.store(values + row * width + place, x, mask=kept)
            found += tl.sum(kept.to(tl.int32), 0)
            met += tl.sum(tie, 0)


@triton.jit
def adjust(
    logits,
    starts,  # (m + 1,) int32
    ids,
    factors,
    biases,
    before,  # as many as ids, float32: what they were
    vocabulary,
    BLOCK: tl.constexpr,
):
    """Changes the logits that a row's request changes, and keeps what they were."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * vocabulary
    end = tl.load(starts + row + 1)
    for start in range(tl.load(starts + row), end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < end
        token = tl.load(ids + at, mask=inside, other=0)
        x = tl.load(base + token, mask=inside, other=0.0)
        tl.store(before + at, x, mask=inside)
        factor = tl.load(factors + at, mask=inside, other=1.0)
        x = tl.where(x > 0, x / factor, x * factor) + tl.load(biases + at, mask=inside, other=0.0)
        tl.store(base + token, x, mask=inside)


@triton.jit
def _weights(x, inside, most, temperature, min_p):
    """Of the candidates; 0 for others."""
    weight = tl.where(inside, tl.exp((x - most) / temperature), 0.0)
    return tl.where(weight >= min_p, weight, 0.0)


@triton.jit
def pick(
    logits,
    requests,
    facts,
    tokens,  # (m,) int32: -1 where there is none
    vocabulary,
    BLOCK: tl.constexpr,
):
    """A token for each row: the likeliest, or drawn from the row's candidates."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * vocabulary
    at = tl.arange(0, BLOCK)
    asked = requests + row * 6
    temperature = tl.load(asked).to(tl.float32)
    most = float("-inf")
    chosen = -1
    for start in range(0, vocabulary, BLOCK):
        token = start + at
        x = tl.load(base + token, mask=token < vocabulary, other=float("-inf"))
        here = tl.max(x, 0)
        if here > most:
            most = here
            chosen = tl.min(tl.where(x == here, token, 2147483647), 0)
    if tl.load(facts + row * 4 + 2) > 0:
        chosen = -1
    if (temperature > 0) & (chosen >= 0):
        top_p = tl.load(asked + 1)
        min_p = tl.load(asked + 2).to(tl.float32)
        top_k = tl.load(asked + 3).to(tl.int32)
        uniform = tl.load(asked + 5)
        count = 0
        whole = tl.full((), 0.0, tl.float64)
        for start in range(0, vocabulary, BLOCK):
            token = start + at
            inside = token < vocabulary
            x = tl.load(base + token, mask=inside, other=float("-inf"))
            weight = _weights(x, inside, most, temperature, min_p)
            count += tl.sum((weight > 0).to(tl.int32), 0)
            whole += tl.sum(weight, 0).to(tl.float64)
        step = tl.arange(0, 16).to(tl.int64) + 1
        last = _keys(most).to(tl.int64) + 1
        border = tl.full((), -2147483648, tl.int64)
        equal = vocabulary  # how many of those at the border are kept
        if (top_k > 0) & (top_k < count):
            high = last
            while high - border > 1:
                pivots = border + tl.maximum((high - border) * step // 17, 1)
                reached = tl.zeros((16,), tl.int32)
                for start in range(0, vocabulary, BLOCK):
                    token = start + at
                    inside = token < vocabulary
                    x = tl.load(base + token, mask=inside, other=float("-inf"))
                    weight = _weights(x, inside, most, temperature, min_p)
                    over = (weight > 0)[:, None] & (_keys(x)[:, None] >= pivots.to(tl.int32)[None, :])
                    reached += tl.sum(over.to(tl.int32), 0)
                border, high = _narrow(reached, pivots, top_k, border, high)
            above = 0
            whole = tl.full((), 0.0, tl.float64)
            single = tl.full((), 0.0, tl.float32)
            for start in range(0, vocabulary, BLOCK):
                token = start + at
                inside = token < vocabulary
                x = tl.load(base + token, mask=inside, other=float("-inf"))
                weight = _weights(x, inside, most, temperature, min_p)
                over = _keys(x) > border.to(tl.int32)
                above += tl.sum(((weight > 0) & over).to(tl.int32), 0)
                whole += tl.sum(tl.where(over, weight, 0.0), 0).to(tl.float64)
                single = tl.maximum(single, tl.max(tl.where(_keys(x) == border.to(tl.int32), weight, 0.0), 0))
            equal = top_k - above
            whole += single.to(tl.float64) * equal
        if top_p < 1.0:
            goal = top_p * whole
            high = last
            low = border
            while high - low > 1:
                pivots = low + tl.maximum((high - low) * step // 17, 1)
                held = tl.zeros((16,), tl.float64)
                for start in range(0, vocabulary, BLOCK):
                    token = start + at
                    inside = token < vocabulary
                    x = tl.load(base + token, mask=inside, other=float("-inf"))
                    weight = _weights(x, inside, most, temperature, min_p)
                    over = _keys(x)[:, None] >= pivots.to(tl.int32)[None, :]
                    held += tl.sum(tl.where(over, weight[:, None], 0.0), 0).to(tl.float64)
                low, high = _narrow(held, pivots, goal, low, high)
            held_above = tl.full((), 0.0, tl.float64)
            single = tl.full((), 0.0, tl.float32)
            ties = 0
            for start in range(0, vocabulary, BLOCK):
                token = start + at
                inside = token < vocabulary
                x = tl.load(base + token, mask=inside, other=float("-inf"))
                weight = _weights(x, inside, most, temperature, min_p)
                held_above += tl.sum(tl.where(_keys(x) > low.to(tl.int32), weight, 0.0), 0).to(tl.float64)
                at_border = (_keys(x) == low.to(tl.int32)) & (weight > 0)
                single = tl.maximum(single, tl.max(tl.where(at_border, weight, 0.0), 0))
                ties += tl.sum(at_border.to(tl.int32), 0)
            if low > border:
                equal = ties
            border = low
            wanted = tl.maximum(tl.ceil((goal - held_above) / single.to(tl.float64)).to(tl.int32), 1)
            equal = tl.minimum(equal, wanted)
            whole = held_above + single.to(tl.float64) * tl.minimum(equal, ties)
        target = uniform * whole
        running = tl.full((), 0.0, tl.float64)
        found = -1
        last_kept = -1
        met = 0
        for start in range(0, vocabulary, BLOCK):
            token = start + at
            inside = token < vocabulary
            x = tl.load(base + token, mask=inside, other=float("-inf"))
            weight = _weights(x, inside, most, temperature, min_p)
            key = _keys(x)
            tie = ((key == border.to(tl.int32)) & (weight > 0)).to(tl.int32)
            kept = (key > border.to(tl.int32)) | ((tie == 1) & (met + tl.cumsum(tie, 0) <= equal))
            weight = tl.where(kept, weight, 0.0)
            met += tl.sum(tie, 0)
            reached = running + tl.cumsum(weight.to(tl.float64), 0)
            over = (reached > target) & (weight > 0)
            first = tl.min(tl.where(over, token, 2147483647), 0)
            found = tl.where((found < 0) & (first < 2147483647), first, found)
            last_kept = tl.maximum(last_kept, tl.max(tl.where(weight > 0, token, -1), 0))
            running += tl.sum(weight.to(tl.float64), 0)
        chosen = tl.where(found >= 0, found, last_kept)
    tl.store(tokens + row, chosen)


@triton.jit
def tell(
    logits,
    facts,
    tokens,
    starts,
    ids,
    before,
    logprobs,  # (m,) float32
    vocabulary,
    CHANGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The log probability of each row's token, by the logits as they were before they were adjusted."""
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    if token >= 0:
        x = tl.load(logits + row.to(tl.int64) * vocabulary + token)
        if CHANGED:
            end = tl.load(starts + row + 1)
            for start in range(tl.load(starts + row), end, BLOCK):
                at = start + tl.arange(0, BLOCK)
                same = tl.load(ids + at, mask=at < end, other=-1) == token
                was = tl.load(before + at, mask=same, other=float("-inf"))
                if tl.max(same.to(tl.int32), 0) > 0:
                    x = tl.max(was, 0)
        tl.store(logprobs + row, x - tl.load(facts + row * 4) - tl.load(facts + row * 4 + 1))
