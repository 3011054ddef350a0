"""gateway/graph/ids.py"""

import os
from concurrent.futures import ThreadPoolExecutor

from gateway.graph.ids import new_id


def test_ids_are_as_long_as_asked_for() -> None:
    for digits in (1, 12, 32):
        assert len(new_id(digits)) == digits
        int(new_id(digits), 16)


def test_nobody_gets_one_twice() -> None:
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda _: [new_id(24) for _ in range(1_000)], range(8)))
    assert len({one for ids in drawn for one in ids}) == 8_000


def test_a_forked_process_draws_its_own() -> None:
    new_id(24)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, "".join(new_id(24) for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(reader, 2400).decode()
    os.close(reader)
    os.close(writer)
    theirs = {text[at : at + 24] for at in range(0, len(text), 24)}
    assert len(theirs) == 100
    assert not theirs & {new_id(24) for _ in range(100)}
