"""Forecast of the return of a released block's reader, and the value of keeping the block until then. Pure.

Blocks of a prefix are worth what it costs to compute them again, if their reader returns. Until then they occupy the
pool. So the pool saves the most if it evicts first the block that occupies most token-seconds for each second that it
is expected to save.

A reader that was declared has a known time of return. One that is expected, such as the next turn of an agent after a
tool call, has a forecast: earlier durations of the same tool. For all others the mean wait of blocks like it serves, as
the eviction policy has learned it.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence


def expected_wait(durations: Sequence[float], age: float) -> float:
    """Return the seconds that a block waits for each return of its reader, if the pool keeps it for the best time.

    The pool may keep a block for some time and then evict it. Keeping it for a time `h` costs `E[min(wait, h)]` seconds
    and ends in a return with probability `P(wait <= h)`; the result is the minimum of their ratio over all `h`. It is
    the reciprocal of the Gittins index (Gittins, 1979; here as in Aalto et al., 2009). A mean would be wrong here: a
    tool that takes 10 s as a rule and an hour at times has a mean of minutes.

    `durations`: sorted durations of earlier waits, in seconds. `age`: seconds since the release. One more wait that
    never ends counts as observed, because few observations say little about the longest waits. If all earlier waits
    were shorter than the age, the result is the age: what has lasted long is expected to last as long again.
    """
    first = bisect_right(durations, age)
    count = len(durations) - first
    best, total = math.inf, 0.0
    for returned in range(1, count + 1):
        wait = durations[first + returned - 1] - age
        total += wait
        best = min(best, (total + (count + 1 - returned) * wait) / returned)
    return best if count else max(age, 0.0)


def eviction_score(wait: float, tokens: int, recompute_seconds: float) -> float:
    """Return the token-seconds that a block occupies for each second of computing that it saves. The block with the
    highest score is evicted first.

    `wait`: seconds until its reader returns; see `expected_wait`. `tokens`: its size, 1 or more. `recompute_seconds`:
    time to compute them again, more than 0.
    """
    if tokens < 1 or recompute_seconds <= 0:
        raise ValueError("a block has tokens, and they cost time to compute")
    return wait * tokens / recompute_seconds
