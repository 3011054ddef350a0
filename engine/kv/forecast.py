"""Forecast of the return of a released block's reader, and the value of keeping the block until then. Pure.

Blocks of a prefix are worth what it costs to compute them again, if their reader returns. Until then they occupy the
pool. So the pool saves the most if it evicts first the block that occupies most token-seconds for each second that it
is expected to save.

A reader that was declared has a known time of return. An expected reader, such as the next turn of an agent after a
tool call or after a person has read, has a forecast from the durations of earlier gaps. For all others, the eviction
policy uses the mean wait of similar blocks, which it has learned.
"""

import math
from collections.abc import Sequence
from itertools import pairwise


def expected_wait(durations: Sequence[float], age: float) -> float:
    """Return the forecast: seconds in the cache per hit, if the pool retains a block for the best time, then evicts it.

    Let the pool retain blocks from one age to a later one. The blocks then spend some seconds in the pool in total, and
    some are read again: hits. The result is seconds divided by hits; the best time makes it smallest. The mean duration
    would be wrong here: a tool that takes 10 s as a rule and an hour at times has a mean of minutes.

    At age 0, the result is the minimum over all later ages: the reciprocal of the Gittins index (Gittins, 1979; here as
    in Aalto et al., 2009). Up to the age of this minimum, the result counts only seconds and hits from `age` to there.
    So a block whose reader always returns after a minute has a small result after 50 s. For later ages, the result is
    the slope, at `age`, of the convex hull of seconds over hits. This is an isotonic estimate, which never falls with
    the age (Grenander, 1956; for failure rates Barlow et al., 1972). The minimum over all ages after a late `age` would
    depend on the few durations that are left, and the shortest of these always makes it small.

    `durations`: sorted durations of earlier gaps, in seconds. `age`: seconds since the release. One more gap that
    never ends counts as observed, because few observations say little about the longest gaps. If all earlier gaps
    were shorter than the age, the result is at least the age: the gap is expected to last as long again.
    An age below 0 counts as 0. It takes linear time.
    """
    age = max(age, 0.0)
    hull = [(0.0, 0)]  # total seconds of all waits up to an age, and returns until then, where the slope changes
    count = len(durations)
    total = previous = 0.0
    position, first = math.inf, count  # total seconds and returns at `age`
    for index, seconds in enumerate(durations):
        waits = count + 1 - index
        if seconds > age and position == math.inf:
            position, first = total + waits * (age - previous), index
        total += waits * (seconds - previous)
        previous = seconds
        while len(hull) > 1:
            (before, returned_before), (last, returned) = hull[-2:]
            if (returned - returned_before) * (total - last) > (index + 1 - returned) * (last - before):
                break  # returns become rarer after the last vertex
            hull.pop()
        hull.append((total, index + 1))
    wait = 0.0
    for (before, returned_before), (last, returned) in pairwise(hull):
        if position < last and not returned_before:
            return (last - position) / (returned - first)
        wait = (last - before) / (returned - returned_before)
        if position < last:
            return wait
    return max(wait, age)


def eviction_score(wait: float, tokens: int, recompute_seconds: float) -> float:
    """Return the token-seconds that a block occupies for each second of computing that it saves. The block with the
    highest score is evicted first.

    `wait`: seconds until its reader returns; see `expected_wait`. `tokens`: its size, 1 or more. `recompute_seconds`:
    time to compute them again, more than 0.
    """
    if tokens < 1 or recompute_seconds <= 0:
        raise ValueError("a block has tokens, and they cost time to compute")
    return wait * tokens / recompute_seconds
