"""gateway/engines/local/embedding_queue.py: tenants share an engine for embeddings."""

import heapq

from gateway.engines.local import embedding_queue
from gateway.engines.local.embedding_queue import EmbeddingQueue


def test_a_tenant_with_many_texts_does_not_delay_another() -> None:
    queue = EmbeddingQueue()
    waiting = [(queue.request("greedy", 100), 100, "greedy") for _ in range(1000)]
    heapq.heapify(waiting)
    served = {"greedy": 0, "modest": 0}
    for turn in range(300):
        if turn == 50:
            for _ in range(100):
                heapq.heappush(waiting, (queue.request("modest", 50), 50, "modest"))
        rank, tokens, tenant = heapq.heappop(waiting)
        served[tenant] += tokens if turn >= 50 else 0
        queue.finish(tenant, rank)
        if served["modest"] == 5000:
            break
    assert served["modest"] == 5000
    assert served["greedy"] <= 5000 + 100, "both got the same share since the second one came"


def test_an_idle_tenant_saves_up_nothing() -> None:
    queue = EmbeddingQueue()
    ranks = [queue.request("busy", 10) for _ in range(5)]
    for rank in ranks:
        queue.finish("busy", rank)
    assert queue.request("new", 10) == ranks[-1], "it begins at the time of the last text that is done"


def test_forgets_idle_tenants() -> None:
    queue = EmbeddingQueue()
    held = queue.request("held", 10)
    for number in range(embedding_queue._MAX_IDLE + 10):
        queue.finish(name := f"tenant {number}", queue.request(name, 10))
    assert len(queue._clocks) <= embedding_queue._MAX_IDLE + 1
    queue.finish("held", held)
