"""Steps recorded as CUDA graphs: the launches of a step, replayed in one call."""

from collections.abc import Callable
from typing import Any

import torch


def bucket_size(rows: int) -> int:
    """Return the row count of the graph for a step of `rows` rows: 1, 2, 4, 8, and then slightly more than needed."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    grain = max(8, 1 << (rows - 1).bit_length() - 4)
    return -(-rows // grain) * grain


class Graphs:
    """Owner of the graphs, by row count. They share one memory pool: no two run at a time."""

    def __init__(self) -> None:
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool: Any = None

    def run(self, rows: int, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the result of `compute`, valid until the next run. The first run for a row count runs `compute` itself
        and records it; later ones replay the record."""
        if rows not in self._graphs:
            result = compute()  # compiles kernels, and lets libraries make their workspaces
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = compute()
            self._pool = graph.pool()
            self._graphs[rows] = graph, output
            return result
        return self.replay(rows)

    def replay(self, rows: int) -> torch.Tensor:
        """Replay a recorded step, and return its result."""
        graph, output = self._graphs[rows]
        graph.replay()
        return output
