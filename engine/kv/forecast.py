"""Forecast of the return of a released block's reader, and the value of keeping the block until then. Pure.

Blocks of a prefix are worth what it costs to compute them again, if their reader returns. Until then they occupy the
pool. So the pool saves the most if it evicts first the block that occupies most token-seconds for each second that it
is expected to save.

A reader that was declared has a known time of return. One that is expected, such as the next turn of an agent after a
tool call, has a forecast: earlier durations of the same tool. For all others the mean wait of blocks like it serves, as
the eviction policy has learned it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise


def expected_wait(durations: Sequence[float], age: float) -> float:
    """Return the seconds that a block waits for each return of its reader, if the pool keeps it for the best time.

    The pool may keep a block for some time and then evict it. From one age to a later one, the blocks that are still
    kept wait for a total of seconds, and some of their readers return; the result is seconds for each return. A mean
    would be wrong here: a tool that takes 10 s as a rule and an hour at times has a mean of minutes.

    At age 0 the result is the minimum over all times to keep, the reciprocal of the Gittins index (Gittins, 1979; here
    as in Aalto et al., 2009). Until the best of these times it counts the seconds and returns from the age to that
    time, so a tool that always takes a minute is near after 50 s. Later it is an isotonic estimate: it never falls
    while the age grows (Grenander, 1956; for failure rates Barlow et al., 1972). It is the slope of the convex hull of
    seconds over returns at that age. The minimum over all times to keep from a later age would rely on the few
    durations that are left there, and the earliest of these always looks near.

    `durations`: sorted durations of earlier waits, in seconds. `age`: seconds since the release. One more wait that
    never ends counts as observed, because few observations say little about the longest waits. If all earlier waits
    were shorter than the age, the result is at least the age: what has lasted long is expected to last as long again.
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
