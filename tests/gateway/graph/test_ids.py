"""gateway/graph/ids.py"""

import os
from concurrent.futures import ThreadPoolExecutor

from gateway.graph.ids import new_id


def test_ids_have_the_requested_length() -> None:
    for digits in (1, 12, 32):
        assert len(new_id(digits)) == digits
        int(new_id(digits), 16)


def test_ids_are_unique_across_threads() -> None:
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda _: [new_id(24) for _ in range(1_000)], range(8)))
    assert len({id for ids in drawn for id in ids}) == 8_000


def test_a_forked_process_issues_other_ids() -> None:
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
    child_ids = {text[begin : begin + 24] for begin in range(0, len(text), 24)}
    assert len(child_ids) == 100
    assert not child_ids & {new_id(24) for _ in range(100)}
