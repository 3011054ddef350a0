"""Pool the hidden states of one text into its embedding."""

import torch

from engine.models.pooling import PoolingSpec


class Pooling:
    """Sum of one text's hidden states so far, or only the last one, from which its embedding is computed."""

    def __init__(self, spec: PoolingSpec) -> None:
        self._spec = spec
        self._sum: torch.Tensor | None = None
        self._count = 0
        """Number of tokens in the sum: those at the beginning of the text."""

    def add(self, hidden: torch.Tensor, start: int) -> None:
        """Add hidden states (rows, hidden) in float32. `start`: position of the first one.

        A text that lost its blocks starts again at position 0.
        """
        if not len(hidden):
            return
        if self._spec.method == "last":
            self._sum, self._count = hidden[-1].clone(), 1
            return
        if start == 0:
            self._sum, self._count = None, 0
        fresh = hidden[max(0, self._count - start) :]
        if len(fresh):
            total = fresh.sum(dim=0, dtype=torch.float64)
            self._sum = total if self._sum is None else self._sum + total
            self._count += len(fresh)

    def result(self) -> torch.Tensor:
        """Return the embedding (hidden,) in float32."""
        assert self._sum is not None, "a text has a token"
        vector = self._sum.double() / self._count
        if self._spec.normalizes:
            vector = vector / vector.norm().clamp(min=1e-12)
        return vector.float()
