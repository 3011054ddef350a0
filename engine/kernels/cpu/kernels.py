"""The C kernels as an implementation of `Kernels`."""

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.base import (
    AttentionBatch,
    DeviceInputs,
    FusedLayers,
    KVTensors,
    LayerShape,
    LayerWeights,
    PackedWeight,
    Positions,
    SampledTokens,
    SamplingRequests,
)
from engine.kernels.cpu.build import KernelsUnavailable, load
from engine.kernels.memory import large_zeros
from engine.kernels.sampling import adjusted_logits, apply_masks, fill_placeholders

log = logging.getLogger("myna.engine")

_POINTER, _INTEGER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "myna_pack": [_POINTER] * 2 + [_SIZE] * 2,
    "myna_pack_bytes": [_POINTER] * 3 + [_SIZE] * 2,
    "myna_linear": [_POINTER] * 3 + [_SIZE, _INTEGER],
    "myna_add_rms_norm": [_POINTER] * 5 + [_SIZE] * 2 + [_FLOAT],
    "myna_gated": [_POINTER] * 2 + [_SIZE] * 2 + [_INTEGER],
    "myna_rope_and_store": [_POINTER] * 7 + [_FLOAT],
    "myna_attention": [_POINTER] * 6 + [_SIZE, _POINTER],
    "myna_attention_state": [_SIZE],
    "myna_scratch": [_POINTER] * 2 + [_SIZE],
    "myna_layers": [_POINTER] * 5 + [_SIZE] + [_POINTER] * 2,
    "myna_sample": [_POINTER] + [_SIZE] * 2 + [_POINTER] * 8 + [_SIZE, _POINTER],
    "myna_sample_scratch": [_SIZE],
    "myna_instructions": [],
    "myna_has_amx": [],
    "myna_forbid_amx": [],
    "myna_limit_tile_threads": [_SIZE],
}
_RESULTS = {
    "myna_attention_state": _SIZE,
    "myna_scratch": _SIZE,
    "myna_layers": _POINTER,
    "myna_sample_scratch": _SIZE,
    "myna_instructions": ctypes.c_char_p,
    "myna_has_amx": _INTEGER,
}
_BLOCK = 16
_PANEL = 32
_GROUP = 64
_LARGEST_HEAD = 256
_ACTIVATIONS = {"silu": 0, "gelu": 1}


def _structure(name: str, fields: str) -> type[ctypes.Structure]:
    """Return a C struct. `fields`: for example `pointer a b, size c, float d`."""
    kinds = {"pointer": _POINTER, "size": _SIZE, "float": _FLOAT}
    listed = []
    for part in fields.split(","):
        kind, *names = part.split()
        listed += [(field, kinds[kind]) for field in names]
    return type(name, (ctypes.Structure,), {"_fields_": listed})


# These structs mirror kernels.h, layers.c and attention.c.
_Weight = _structure("_Weight", "pointer data scales bias, size n k")
_AttentionShape = _structure("_AttentionShape", "size heads kv_heads d threads, float scale softcap")
_Batch = _structure("_Batch", "pointer positions slots starts lengths tables, size rows n width")
_Positions = _structure("_Positions", "pointer query_norm key_norm rotary, size rotated")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Weight) for name in ("qkv", "output", "gate_up", "down")),
        ("positions", _Positions),
        *((name, _POINTER) for name in ("attention_norm", "mlp_norm", "attended_norm", "mlp_out_norm")),
        ("window", _SIZE),
        ("keys", _POINTER),
        ("values", _POINTER),
    ]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, _SIZE) for name in ("layers", "hidden", "intermediate", "activation")),
        ("eps", _FLOAT),
        ("attention", _AttentionShape),
    ]


@dataclass(frozen=True)
class _Panels:
    """A packed weight; `owners` owns the memory that `weight` points to."""

    weight: ctypes.Structure
    owners: tuple[torch.Tensor | None, ...]
    columns: int


class CpuKernels:
    """Implementation of `Kernels` in C. bfloat16 only; weights, KV and tensors that are written to are contiguous."""

    def __init__(
        self,
        cache: Path,
        shape: LayerShape,
        dtype: torch.dtype,
        block_size: int,
        *,
        quantize: str = "none",
        tile_threads: int = 0,
        target: tuple[str, ...] | None = None,
    ) -> None:
        """Build and load the library. `target`: see `load`.

        `tile_threads`: number of threads that multiply AMX tiles in linear layers; 0: all. The last value applies to
        all kernels of the process.

        Raises KernelsUnavailable if it cannot be built or does not support the model.
        """
        if dtype != torch.bfloat16:
            raise KernelsUnavailable(f"they support bfloat16, not {dtype}")
        if block_size != _BLOCK or shape.head_size % 32 or shape.head_size > _LARGEST_HEAD:
            raise KernelsUnavailable(
                f"they need blocks of {_BLOCK} tokens and heads of 32, 64, … {_LARGEST_HEAD} elements; "
                f"this is {block_size} and {shape.head_size}"
            )
        if shape.hidden % 16 or shape.intermediate % 16 or shape.rotary_size % 32:
            raise KernelsUnavailable(
                "they need sizes in multiples of 16, and of 32 where heads are rotated; this is "
                f"{shape.hidden}, {shape.intermediate} and {shape.rotary_size}"
            )
        self._library = load(cache, target)
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = _RESULTS.get(name)
        self._shape = shape
        self._quantize = quantize == "int8"
        threads = torch.get_num_threads()
        self._attention = _AttentionShape(
            shape.heads, shape.kv_heads, shape.head_size, threads, shape.scale, shape.softcap
        )
        size = threads * self._library.myna_attention_state(shape.heads // shape.kv_heads)
        self._state = torch.empty(size + 64, dtype=torch.uint8)
        self._state_address = -(-self._state.data_ptr() // 64) * 64
        self._sampling: _SampleCall | None = None
        self._last_sample: SampledTokens | None = None
        self._sampling_scratch: NDArray[np.uint8] | None = None
        self._library.myna_limit_tile_threads(tile_threads)
        if self._library.myna_has_amx() and not self._amx_works():
            log.warning("AMX gives wrong results on this CPU; using the kernels without it")
            self._library.myna_forbid_amx()
        instructions = self._library.myna_instructions().decode()
        self.name = f"C with {'AMX and ' if self._library.myna_has_amx() else ''}{instructions}"
        if self._quantize:
            self.name += ", weights in 8 bits"
        self.device, self.kv_dtype, self.qkv_dtype = torch.device("cpu"), torch.bfloat16, torch.float32
        self.recorded_sizes: Sequence[int] = ()
        self.is_batch_invariant = True

    def stage(self, tokens: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor) -> DeviceInputs:
        """See `Kernels.stage`."""
        return DeviceInputs(fill_placeholders(tokens, self._last_sample), batch, logit_rows)

    def run(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See `Kernels.run`."""
        return compute()

    def _amx_works(self) -> bool:
        """Return whether AMX multiplies correctly: an emulator or a hypervisor may have implemented it wrongly."""
        random = torch.Generator().manual_seed(0)
        for inner, in_bytes, error in ((96, False, 0.05), (192, True, 0.8)):
            x, weight = (torch.randn(size, inner, generator=random).bfloat16() for size in (45, 64))
            product = self.linear_float32(x, self._pack(weight, None, in_bytes=in_bytes))
            if not torch.allclose(product, x.float() @ weight.float().T, atol=error, rtol=0.02):
                return False
        return self._attention_works(random)

    def _attention_works(self, random: torch.Generator) -> bool:
        """Return whether attention is right for a prompt of 150 tokens: more than one segment, and part of a block."""
        shape, rows = self._shape, 150
        heads, group = shape.heads, shape.heads // shape.kv_heads
        qkv = torch.randn(rows, heads + 2 * shape.kv_heads, shape.head_size, generator=random).bfloat16().float()
        blocks = -(-rows // _BLOCK)
        batch = AttentionBatch(
            positions=torch.arange(rows),
            slots=torch.arange(rows) + _BLOCK,
            query_starts=torch.tensor([0, rows], dtype=torch.int32),
            lengths=torch.tensor([rows], dtype=torch.int32),
            block_tables=torch.arange(1, blocks + 1, dtype=torch.int32).unsqueeze(0),
        )
        kv = self.new_kv(1, blocks + 1)
        queries = self.rope_and_store(qkv.flatten(1), Positions(None), kv.keys[0], kv.values[0], batch)
        got = self.attention(queries, kv.keys[0], kv.values[0], batch).float().view(rows, heads, -1)
        q, k, v = torch.split(qkv, [heads, shape.kv_heads, shape.kv_heads], dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * shape.scale
        if shape.softcap:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        hidden = torch.ones(rows, rows, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        expected = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1))
        return torch.allclose(got, expected, atol=0.05, rtol=0.05)

    def new_kv(self, layers: int, blocks: int) -> KVTensors:
        """See `Kernels.new_kv`. Inside a block, keys and values are in pairs for the dot products."""
        return KVTensors.zeros(layers, (blocks, self._shape.kv_heads, _BLOCK * self._shape.head_size), torch.bfloat16)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
        """See `Kernels.pack`. With quantization, weights are packed to 8 bits, with one scale for each 64 elements of a
        row. Weights whose rows are not a multiple of 64 long stay in bfloat16."""
        return self._pack(weight, bias, in_bytes=self._quantize and weight.shape[1] % _GROUP == 0)

    def _pack(self, weight: torch.Tensor, bias: torch.Tensor | None, *, in_bytes: bool) -> PackedWeight:
        columns, inner = weight.shape
        weight, panels = weight.contiguous(), -(-columns // _PANEL)
        bias = None if bias is None else bias.float().contiguous()
        scales = None
        if in_bytes:
            packed = large_zeros((panels * _PANEL * inner,), torch.uint8)
            scales = large_zeros((panels * _PANEL * inner // _GROUP,), torch.float32)
            self._library.myna_pack_bytes(weight.data_ptr(), packed.data_ptr(), scales.data_ptr(), columns, inner)
        else:
            packed = large_zeros((panels * _PANEL * inner,), torch.bfloat16)
            self._library.myna_pack(weight.data_ptr(), packed.data_ptr(), columns, inner)
        c_struct = _Weight(packed.data_ptr(), _address(scales), _address(bias), columns, inner)
        return _Panels(c_struct, (packed, scales, bias), columns)

    def linear(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """See `Kernels.linear`."""
        return self._multiply(x, weight, torch.bfloat16)

    def linear_float32(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """See `Kernels.linear_float32`."""
        return self._multiply(x, weight, torch.float32)

    def _multiply(self, x: torch.Tensor, weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
        x, y = x.contiguous(), torch.empty(len(x), weight.columns, dtype=dtype)
        self._library.myna_linear(
            x.data_ptr(), ctypes.byref(weight.weight), y.data_ptr(), len(x), int(dtype is torch.float32)
        )
        return y

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, inner: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Kernels.add_rms_norm`."""
        y = torch.empty(residual.shape, dtype=torch.bfloat16)
        self._library.myna_add_rms_norm(
            residual.data_ptr(),
            _address(x),
            _address(inner),
            weight.data_ptr(),
            y.data_ptr(),
            *residual.shape,
            self._shape.eps,
        )
        return y

    def rope_and_store(
        self, qkv: torch.Tensor, positions: Positions, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """See `Kernels.rope_and_store`."""
        qkv = qkv.contiguous()
        queries = torch.empty(len(qkv), self._shape.heads, self._shape.head_size, dtype=torch.bfloat16)
        self._library.myna_rope_and_store(
            qkv.data_ptr(),
            ctypes.byref(_positions(positions)),
            keys.data_ptr(),
            values.data_ptr(),
            queries.data_ptr(),
            ctypes.byref(_batch(batch)),
            ctypes.byref(self._attention),
            self._shape.eps,
        )
        return queries

    def attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
        window: int = 0,
    ) -> torch.Tensor:
        """See `Kernels.attention`."""
        queries = queries.contiguous()
        out = torch.empty(len(queries), self._shape.heads * self._shape.head_size, dtype=torch.bfloat16)
        self._library.myna_attention(
            queries.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            ctypes.byref(_batch(batch)),
            ctypes.byref(self._attention),
            window,
            self._state_address,
        )
        return out

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Kernels.gated`."""
        gate_up, rows, size = gate_up.contiguous(), gate_up.shape[0], gate_up.shape[1] // 2
        y = torch.empty(rows, size, dtype=torch.bfloat16)
        self._library.myna_gated(gate_up.data_ptr(), y.data_ptr(), rows, size, _ACTIVATIONS[self._shape.activation])
        return y

    def sample(self, logits: torch.Tensor, requests: SamplingRequests) -> SampledTokens:
        """See `Kernels.sample`. The threads share the rows."""
        apply_masks(logits.numpy(), requests)
        if self._sampling is None or self._sampling.requests is not requests or len(requests.ids):
            if self._sampling_scratch is None:
                self._sampling_scratch = np.empty(self._library.myna_sample_scratch(logits.shape[1]), dtype=np.uint8)
            values = adjusted_logits(logits.numpy(), requests)
            self._sampling = _SampleCall(self._library, requests, values, self._sampling_scratch)
        self._last_sample = self._sampling(logits)
        return self._last_sample

    def fuse(self, layers: Sequence[LayerWeights], kv: KVTensors) -> FusedLayers | None:
        """See `Kernels.fuse`."""
        shape = _Shape(
            len(layers),
            self._shape.hidden,
            self._shape.intermediate,
            _ACTIVATIONS[self._shape.activation],
            self._shape.eps,
            self._attention,
        )
        return _FusedLayers(self._library, layers, kv, shape, self._state_address)


class _SampleCall:
    """Prepared invocation of the C sampler for one `SamplingRequests`, with arrays for its results.

    The next steps use it again as long as they have the same requests, unless penalties or biases change the logits.
    """

    def __init__(
        self, library: ctypes.CDLL, requests: SamplingRequests, values: NDArray[np.float32], scratch: NDArray[np.uint8]
    ) -> None:
        self.requests = requests
        self._values = values  # C code holds its address
        self._library = library
        self._choices = sampled = SampledTokens.empty(requests)
        inputs = (requests.rows, requests.starts, requests.ids, values)
        outputs = (sampled.tokens, sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
        self._arguments = (
            *(array.ctypes.data for array in (*inputs, *outputs)),
            sampled.top_ids.shape[1],
            scratch.ctypes.data,
        )

    def __call__(self, logits: torch.Tensor) -> SampledTokens:
        self._library.myna_sample(logits.data_ptr(), *logits.shape, *self._arguments)
        outputs = self._choices
        return SampledTokens(
            outputs.tokens.copy(), outputs.logprobs.copy(), outputs.top_ids.copy(), outputs.top_logprobs.copy()
        )


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _positions(positions: Positions) -> ctypes.Structure:
    rotated = 0 if positions.rotary is None else positions.rotary.shape[1]
    return _Positions(_address(positions.query_norm), _address(positions.key_norm), _address(positions.rotary), rotated)


def _batch(batch: AttentionBatch) -> ctypes.Structure:
    return _Batch(
        batch.positions.data_ptr(),
        batch.slots.data_ptr(),
        batch.query_starts.data_ptr(),
        batch.lengths.data_ptr(),
        batch.block_tables.data_ptr(),
        len(batch.positions),
        *batch.block_tables.shape,
    )


class _FusedLayers:
    """Implementation of `FusedLayers`. It owns the memory of the activations, which is reused between steps."""

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: Sequence[LayerWeights],
        kv: KVTensors,
        shape: _Shape,
        state_address: int,
    ) -> None:
        self._library = library
        self._references = (layers, kv)  # C code holds their addresses
        self._layers = (_Layer * len(layers))(
            *(
                _Layer(
                    layer.qkv.weight,
                    layer.output.weight,
                    layer.gate_up.weight,
                    layer.down.weight,
                    _positions(layer.positions),
                    layer.attention_norm.data_ptr(),
                    layer.mlp_norm.data_ptr(),
                    _address(layer.attention_out_norm),
                    _address(layer.mlp_out_norm),
                    layer.window,
                    keys.data_ptr(),
                    values.data_ptr(),
                )
                for layer, keys, values in zip(layers, kv.keys, kv.values, strict=True)
            )
        )
        self._shape = shape
        self._state_address = state_address
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def __call__(
        self, residual: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `FusedLayers`."""
        c_struct, count = _batch(batch), len(logit_rows)
        needed = self._library.myna_scratch(ctypes.byref(self._shape), ctypes.byref(c_struct), count)
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed + needed // 4, dtype=torch.uint8)
        address = self._library.myna_layers(
            residual.data_ptr(),
            self._layers,
            ctypes.byref(self._shape),
            ctypes.byref(c_struct),
            logit_rows.data_ptr(),
            count,
            self._scratch.data_ptr(),
            self._state_address,
        )
        start = address - self._scratch.data_ptr()
        last = residual[:count]
        return last, self._scratch[start : start + 4 * last.numel()].view(torch.float32).view(last.shape)
