"""A step's rows as arrays, kept from one step to the next."""

import numpy as np
import torch

from engine.kernels import AttentionBatch
from engine.kv.cache import SCRATCH
from engine.scheduler import Plan
from engine.sequence import Context


class InputBatch:
    """Owns the arrays that kernels read a step from. What is as it was in the last step is not written again.

    A block table's row belongs to the context that stands at that place in the batch; while it stays there, only the
    blocks that it got since are written.
    """

    def __init__(self, rows: int, sequences: int, block_size: int) -> None:
        """`rows`, `sequences`: the most that a step can have."""
        self._block_size = block_size
        self._tokens, self._positions, self._slots = np.zeros((3, rows), dtype=np.int64)
        self._starts = np.zeros(sequences + 1, dtype=np.int32)
        self._lengths = np.zeros(sequences, dtype=np.int32)
        self._wanted = np.zeros(sequences, dtype=np.int64)
        self._tables = np.full((sequences, 16), SCRATCH, dtype=np.int32)
        self._versions = [0] * sequences
        self._written = [0] * sequences
        self._views: tuple[tuple[int, int, int], tuple[torch.Tensor, ...]] | None = None

    def gather(self, plan: Plan) -> tuple[torch.Tensor, AttentionBatch, torch.Tensor]:
        """Token ids (rows,), the batch, and the rows that get logits; good until the next call."""
        chunks, size = plan.chunks, self._block_size
        if plan.empty:
            chunks = [chunk for chunk in chunks if chunk.end > chunk.start]
        # Behind a step of the model nothing of this is in the caches, and what counts is how many calls into numpy
        # and torch are made: so rows are gathered in lists, and every array is written once.
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, lengths = [0], []
        wanted: list[int] = []
        row = 0
        for place, (context, start, end, samples, stored, drafted) in enumerate(chunks):
            blocks = context.blocks
            if self._versions[place] != context.table_version or self._written[place] != len(blocks):
                self._write_table(place, context)
            if end - start == 1:
                tokens.append(context.tokens[start])
                positions.append(start)
                slots.append(SCRATCH * size if stored else blocks[start // size] * size + start % size)
            else:
                tokens += context.tokens[start:end]
                tokens += drafted
                positions += range(start, end)
                slots += [blocks[at // size] * size + at % size for at in range(start, end)]
            row += end - start
            starts.append(row)
            lengths.append(end)
            if drafted:
                wanted += range(row - 1 - len(drafted), row)
            elif samples:
                wanted.append(row - 1)
        count, sampling = len(chunks), len(wanted)
        self._tokens[:row] = tokens
        self._positions[:row] = positions
        self._slots[:row] = slots
        self._starts[: count + 1] = starts
        self._lengths[:count] = lengths
        self._wanted[:sampling] = wanted
        token_view, *batch, wanted_view = self._tensors(row, count, sampling)
        return token_view, AttentionBatch(*batch), wanted_view

    def _tensors(self, rows: int, count: int, sampling: int) -> tuple[torch.Tensor, ...]:
        """The arrays' beginnings as tensors of the same memory; mostly those of the last step."""
        shape = (rows, count, sampling)
        if self._views is None or self._views[0] != shape:
            arrays = (
                self._tokens[:rows],
                self._positions[:rows],
                self._slots[:rows],
                self._starts[: count + 1],
                self._lengths[:count],
                self._tables[:count],
                self._wanted[:sampling],
            )
            self._views = shape, tuple(torch.from_numpy(array) for array in arrays)
        return self._views[1]

    def _write_table(self, place: int, context: Context) -> None:
        blocks, written = context.blocks, self._written[place]
        kept = written if self._versions[place] == context.table_version else 0
        if len(blocks) > self._tables.shape[1]:
            wider = np.full((len(self._tables), 2 * len(blocks)), SCRATCH, dtype=np.int32)
            wider[:, : self._tables.shape[1]] = self._tables
            self._tables, self._views = wider, None
        row = self._tables[place]
        row[kept : len(blocks)] = blocks[kept:]
        row[len(blocks) : written] = SCRATCH
        self._versions[place], self._written[place] = context.table_version, len(blocks)
