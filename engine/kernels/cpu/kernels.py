"""The C operations behind the common protocol."""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from engine.kernels.base import AttentionBatch, FusedLayers, KVTensors, LayerWeights, Packed
from engine.kernels.cpu.build import Unavailable, cpu_features, load
from engine.kernels.memory import large_zeros
from engine.kernels.reference import TorchKernels

_POINTER, _INTEGER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "myna_pack": [_POINTER] * 2 + [_SIZE] * 2,
    "myna_linear": [_POINTER] * 3 + [_SIZE] * 3 + [_INTEGER],
    "myna_add_rms_norm": [_POINTER] * 4 + [_SIZE] * 2 + [_FLOAT],
    "myna_silu_mul": [_POINTER] * 2 + [_SIZE] * 2,
    "myna_rope_and_store": [_POINTER] * 7 + [_SIZE] * 4,
    "myna_attention": [_POINTER] * 7 + [_SIZE] * 5 + [_FLOAT, _POINTER, _INTEGER],
    "myna_attention_state": [],
    "myna_layers": [_POINTER] * 9 + [_SIZE] * 3 + [_POINTER] * 2,
}
_RESULTS = {"myna_attention_state": _SIZE, "myna_layers": _POINTER}
_BLOCK = 16
_PANEL = 32
_LARGEST_HEAD = 256


class _Panels(NamedTuple):
    """A packed weight; `tensor` keeps the memory at `address`."""

    tensor: torch.Tensor
    address: int
    columns: int
    inner: int


class CpuKernels:
    """See `Kernels`. bfloat16 only; all tensors contiguous."""

    def __init__(self, cache: Path, *, heads: int, kv_heads: int, head_size: int, block_size: int, hidden: int) -> None:
        """Builds and loads the library. Raises Unavailable if it cannot be had or does not fit the model."""
        if block_size != _BLOCK or head_size % 32 or head_size > _LARGEST_HEAD or hidden % 16:
            raise Unavailable(
                f"they need blocks of {_BLOCK} tokens, heads of 32, 64, … {_LARGEST_HEAD} elements and a hidden size "
                f"in multiples of 16; this is {block_size}, {head_size} and {hidden}"
            )
        self._library = load(cache)
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = _RESULTS.get(name)
        self._scale = 1.0 / math.sqrt(head_size)
        self._heads, self._kv_heads, self._head_size = heads, kv_heads, head_size
        self._threads = torch.get_num_threads()
        size = self._threads * (heads // kv_heads) * self._library.myna_attention_state()
        self._state = torch.empty(size + 64, dtype=torch.uint8)
        self._state_address = -(-self._state.data_ptr() // 64) * 64
        # Where the CPU has a matrix unit, oneDNN uses it, and does better than dot products.
        self._onednn = (
            TorchKernels(torch.bfloat16, kv_heads, head_size, block_size) if "amx_bf16" in cpu_features() else None
        )
        self.name = "cpu, with oneDNN's AMX linear layers" if self._onednn else "cpu"
        self.batch_invariant = self._onednn is None or self._onednn.linear_is_batch_invariant()

    def new_kv(self, layers: int, blocks: int) -> KVTensors:
        """See `Kernels.new_kv`. Inside a block, keys and values are in pairs for the dot products."""
        return KVTensors.zeros(layers, (blocks, self._kv_heads, _BLOCK * self._head_size), torch.bfloat16)

    def pack(self, weight: torch.Tensor) -> Packed:
        """See `Kernels.pack`."""
        if self._onednn is not None:
            return self._onednn.pack(weight)
        columns, inner = weight.shape
        if inner % 2:
            raise Unavailable(f"a weight has an odd inner size, {inner}")
        packed = large_zeros((-(-columns // _PANEL) * _PANEL * inner,), torch.bfloat16)
        self._library.myna_pack(weight.contiguous().data_ptr(), packed.data_ptr(), columns, inner)
        return _Panels(packed, packed.data_ptr(), columns, inner)

    def linear(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:
        """See `Kernels.linear`."""
        if self._onednn is not None:
            return self._onednn.linear(x, weight)
        return self._multiply(x, weight, torch.bfloat16)

    def logits(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:
        """See `Kernels.logits`."""
        if self._onednn is not None:
            return self._onednn.logits(x, weight)
        return self._multiply(x, weight, torch.float32)

    def _multiply(self, x: torch.Tensor, weight: Packed, dtype: torch.dtype) -> torch.Tensor:
        rows = x.shape[0]
        y = torch.empty(rows, weight.columns, dtype=dtype)
        self._library.myna_linear(
            x.data_ptr(), weight.address, y.data_ptr(), rows, weight.columns, weight.inner, int(dtype is torch.float32)
        )
        return y

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `Kernels.rms_norm`."""
        y = torch.empty_like(x)
        self._library.myna_add_rms_norm(x.data_ptr(), None, weight.data_ptr(), y.data_ptr(), *x.shape, eps)
        return y

    def add_rms_norm(self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `Kernels.add_rms_norm`."""
        y = torch.empty_like(x)
        self._library.myna_add_rms_norm(
            residual.data_ptr(), x.data_ptr(), weight.data_ptr(), y.data_ptr(), *x.shape, eps
        )
        return y

    def rope_and_store(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """See `Kernels.rope_and_store`."""
        rows = qkv.shape[0]
        queries = torch.empty(rows, self._heads, self._head_size, dtype=torch.bfloat16)
        self._library.myna_rope_and_store(
            *(tensor.data_ptr() for tensor in (qkv, rotary, batch.positions, batch.slots, keys, values, queries)),
            rows,
            self._heads,
            self._kv_heads,
            self._head_size,
        )
        return queries

    def attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """See `Kernels.attention`."""
        out = torch.empty(queries.shape[0], self._heads * self._head_size, dtype=torch.bfloat16)
        tables = batch.block_tables
        self._library.myna_attention(
            *(tensor.data_ptr() for tensor in (queries, keys, values, out, batch.query_starts, batch.lengths, tables)),
            *tables.shape,
            self._heads,
            self._kv_heads,
            self._head_size,
            self._scale,
            self._state_address,
            self._threads,
        )
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Kernels.silu_mul`."""
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        y = torch.empty(rows, size, dtype=torch.bfloat16)
        self._library.myna_silu_mul(gate_up.data_ptr(), y.data_ptr(), rows, size)
        return y

    def fuse(
        self, layers: Sequence[LayerWeights], kv: KVTensors, rotary: torch.Tensor, eps: float
    ) -> FusedLayers | None:
        """See `Kernels.fuse`. Not with oneDNN's linear layers, which cannot be called from C here."""
        if self._onednn is not None:
            return None
        shape = _Shape(
            len(layers),
            len(layers[0].attention_norm),
            layers[0].down.inner,
            self._heads,
            self._kv_heads,
            self._head_size,
            self._threads,
            eps,
            self._scale,
        )
        return _Fused(self._library, layers, kv, rotary, shape, self._state_address)


class _Layer(ctypes.Structure):
    """`Layer` in kernels.c."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("attention_norm", "qkv", "output", "mlp_norm", "gate_up", "down", "keys", "values")
    ]


class _Shape(ctypes.Structure):
    """`Shape` in kernels.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_size", "threads")
        ),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


class _Fused:
    """See `FusedLayers`. Owns the activations, which are kept between steps."""

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: Sequence[LayerWeights],
        kv: KVTensors,
        rotary: torch.Tensor,
        shape: _Shape,
        state_address: int,
    ) -> None:
        self._run = library.myna_layers
        self._kept = (layers, kv, rotary)  # C holds their addresses
        self._layers = (_Layer * len(layers))(
            *(
                _Layer(
                    layer.attention_norm.data_ptr(),
                    layer.qkv.address,
                    layer.output.address,
                    layer.mlp_norm.data_ptr(),
                    layer.gate_up.address,
                    layer.down.address,
                    keys.data_ptr(),
                    values.data_ptr(),
                )
                for layer, keys, values in zip(layers, kv.keys, kv.values, strict=True)
            )
        )
        self._shape = shape
        self._addresses = (ctypes.addressof(self._layers), ctypes.addressof(shape), rotary.data_ptr())
        self._state_address = state_address
        self._row = 2 * shape.hidden + (3 * shape.heads + 2 * shape.kv_heads) * shape.head_size + 3 * shape.intermediate
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def __call__(self, residual: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """See `FusedLayers`."""
        rows = len(residual)
        if len(self._scratch) < rows * self._row:
            self._scratch = torch.empty(rows * self._row, dtype=torch.bfloat16)
        layers, shape, rotary = self._addresses
        address = self._run(
            residual.data_ptr(),
            layers,
            shape,
            rotary,
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.query_starts.data_ptr(),
            batch.lengths.data_ptr(),
            batch.block_tables.data_ptr(),
            rows,
            *batch.block_tables.shape,
            self._scratch.data_ptr(),
            self._state_address,
        )
        start = (address - self._scratch.data_ptr()) // self._scratch.itemsize
        return self._scratch[start : start + residual.numel()].view(residual.shape)
