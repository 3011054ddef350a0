"""Input arrays of a step, reused from one step to the next."""

import numpy as np
import torch

from engine.kernels import AttentionBatch
from engine.kv.cache import SCRATCH
from engine.scheduler import Plan
from engine.sequence import TokenSequence


class InputBatch:
    """Owner of the arrays from which kernels read a step. It writes only the changes since the last step.

    A row of the block tables belongs to the sequence at that index of the batch. While the sequence stays there, only
    its new blocks are written.
    """

    def __init__(self, rows: int, sequences: int, block_size: int, *, reads_all: bool = False) -> None:
        """Allocate the arrays. `rows`, `sequences`: maximum numbers in a step. `reads_all`: every row gets logits, or
        hidden states in place of them."""
        self._reads_all = reads_all
        self._block_size = block_size
        self._tokens, self._positions, self._slots = np.zeros((3, rows), dtype=np.int64)
        self._starts = np.zeros(sequences + 1, dtype=np.int32)
        self._lengths = np.zeros(sequences, dtype=np.int32)
        self._logit_rows = np.zeros(rows if reads_all else sequences, dtype=np.int64)
        self._tables = np.full((sequences, 16), SCRATCH, dtype=np.int32)
        self._versions = [0] * sequences
        self._written = [0] * sequences
        self._views: tuple[tuple[int, int, int], tuple[torch.Tensor, ...]] | None = None

    def gather(self, plan: Plan) -> tuple[torch.Tensor, AttentionBatch, torch.Tensor]:
        """Return token ids (rows,), the batch, and the rows that get logits; valid until the next step is gathered."""
        chunks, size = plan.chunks, self._block_size
        if plan.empty_chunks:
            chunks = [chunk for chunk in chunks if chunk.end > chunk.start]
        # After a step of the model none of this is in the CPU's caches, so the number of calls into numpy and torch
        # decides. Rows are gathered in lists, and every array is written once.
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, lengths = [0], []
        logit_rows: list[int] = []
        row = 0
        for index, (sequence, start, end, samples, is_stored, draft) in enumerate(chunks):
            blocks = sequence.blocks
            if self._versions[index] != sequence.table_version or self._written[index] != len(blocks):
                self._write_table(index, sequence)
            if end - start == 1:
                tokens.append(sequence.tokens[start])
                positions.append(start)
                slots.append(SCRATCH * size if is_stored else blocks[start // size] * size + start % size)
            else:
                tokens += sequence.tokens[start:end]
                tokens += draft
                positions += range(start, end)
                slots += [blocks[position // size] * size + position % size for position in range(start, end)]
            row += end - start
            starts.append(row)
            lengths.append(end)
            if self._reads_all:
                logit_rows += range(row - (end - start), row)
            elif draft:
                logit_rows += range(row - 1 - len(draft), row)
            elif samples:
                logit_rows.append(row - 1)
        count, sampling = len(chunks), len(logit_rows)
        self._tokens[:row] = tokens
        self._positions[:row] = positions
        self._slots[:row] = slots
        self._starts[: count + 1] = starts
        self._lengths[:count] = lengths
        self._logit_rows[:sampling] = logit_rows
        token_view, *batch, logit_row_view = self._tensors(row, count, sampling)
        return token_view, AttentionBatch(*batch), logit_row_view

    def _tensors(self, rows: int, count: int, sampling: int) -> tuple[torch.Tensor, ...]:
        """Return the used parts of the arrays as tensors on the same memory; mostly those of the last step."""
        shape = (rows, count, sampling)
        if self._views is None or self._views[0] != shape:
            arrays = (
                self._tokens[:rows],
                self._positions[:rows],
                self._slots[:rows],
                self._starts[: count + 1],
                self._lengths[:count],
                self._tables[:count],
                self._logit_rows[:sampling],
            )
            self._views = shape, tuple(torch.from_numpy(array) for array in arrays)
        return self._views[1]

    def _write_table(self, index: int, sequence: TokenSequence) -> None:
        blocks, written = sequence.blocks, self._written[index]
        unchanged = written if self._versions[index] == sequence.table_version else 0
        if len(blocks) > self._tables.shape[1]:
            wider = np.full((len(self._tables), 2 * len(blocks)), SCRATCH, dtype=np.int32)
            wider[:, : self._tables.shape[1]] = self._tables
            self._tables, self._views = wider, None
        row = self._tables[index]
        row[unchanged : len(blocks)] = blocks[unchanged:]
        row[len(blocks) : written] = SCRATCH
        self._versions[index], self._written[index] = sequence.table_version, len(blocks)
