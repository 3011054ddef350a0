"""Pauses between attempts to reach an engine."""

from gateway.runtime.backoff import Backoff


def test_the_pause_doubles_up_to_its_maximum_and_starts_over() -> None:
    backoff = Backoff()
    pauses = []
    for _ in range(8):
        pauses.append(backoff.seconds)
        backoff.grow()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    backoff.reset()
    assert backoff.seconds == 0.5
