"""Steps recorded as CUDA graphs: what a step launches, replayed in one call."""

from collections.abc import Callable
from typing import Any

import torch


def bucket(rows: int) -> int:
    """How many rows a recorded step has in which so many ride: 1, 2, 4, 8, and from there on few more than needed."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    grain = max(8, 1 << (rows - 1).bit_length() - 4)
    return -(-rows // grain) * grain


class Graphs:
    """Owner of the recordings, by bucket. They share one pool of memory: no two run at a time."""

    def __init__(self) -> None:
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool: Any = None

    def run(self, rows: int, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `step` returns, good until the next call. The first time, it is run and then recorded."""
        if rows not in self._recorded:
            result = step()  # compiles kernels, and lets libraries make their workspaces
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                made = step()
            self._pool = graph.pool()
            self._recorded[rows] = graph, made
            return result
        return self.replay(rows)

    def replay(self, rows: int) -> torch.Tensor:
        """A recorded step once more."""
        graph, made = self._recorded[rows]
        graph.replay()
        return made
