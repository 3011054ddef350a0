"""Construction of an engine: load the model, size the memory, allocate the KV pool, and warm up."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from engine.admission import PromptAdmission
from engine.config import EngineConfig
from engine.device import check_weights, choose_device, device_memory, kv_pool_tokens
from engine.errors import CheckpointError, EngineError
from engine.input_batch import InputBatch
from engine.kernels import AttentionBatch, Kernels, Limits, select_kernels
from engine.kv.cache import SCRATCH, KVCache
from engine.kv.eviction import EvictionPolicy
from engine.kv.host_offload import HostOffload
from engine.kv.sizing import affordable_tokens, free_memory
from engine.models.checkpoint import open_weights, weights_size
from engine.models.decoder import Decoder
from engine.models.fetch import checkpoint_folder, model_name
from engine.models.spec import DecoderSpec, read_spec
from engine.protocol import EngineInfo
from engine.sampler import greedy_requests
from engine.scheduler import StepScheduler
from engine.speculative import Speculator
from engine.step_budget import FEW_ROWS, StepBudget
from engine.tokenizer import Tokenizer

_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
"""Default token budget of a step: enough rows that their products are worth reading the weights."""
_TRIAL_ROWS, _TRIAL_KEYS = 64, 2048
"""Number of prefill rows in the steps that measure the cost of a row, and of tokens before them in the step that
measures the cost of attention."""
_HOST_SHARE = 0.2
"""Maximum share of the host's free memory for offloaded KV blocks."""


@dataclass(frozen=True)
class EngineParts:
    """Parts of an engine, ready for the first step. Without a `speculator`, steps check no drafts.

    `overlaps`: whether the engine prepares the next step while one runs.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    decoder: Decoder
    cache: KVCache
    step_budget: StepBudget
    speculator: Speculator | None
    scheduler: StepScheduler
    input_batch: InputBatch
    overlaps: bool


def build_parts(config: EngineConfig, on_resolved: Callable[[Path], None]) -> EngineParts:
    """Load the model, size and allocate the memory, and warm up. See `Engine` for `on_resolved` and exceptions."""
    began = time.monotonic()
    dtype = getattr(torch, config.dtype)
    assert isinstance(dtype, torch.dtype)
    device = choose_device("cpu" if config.kernels in ("cpu", "torch") else config.device)
    threads = config.threads or max(1, len(os.sched_getaffinity(0)) // config.peers)
    torch.set_num_threads(threads)
    cache_folder = Path(config.cache).expanduser()
    folder = checkpoint_folder(config.model, cache_folder, dtype)
    spec = read_spec(folder)
    on_resolved(folder)
    tokenizer = Tokenizer(folder)
    is_mean = spec.pooling is not None and spec.pooling.method == "mean"
    if spec.pooling is not None:
        # A mean needs the hidden states of all tokens, which the prefix tree does not have.
        config = msgspec.structs.replace(
            config, speculation="off", overlap="off", prefix_sharing=config.prefix_sharing and not is_mean
        )
    step_tokens = config.step_tokens or _STEP_TOKENS[device.type]
    kernels = select_kernels(
        config.kernels,
        spec.shape,
        dtype,
        config.block_size,
        cache_folder,
        quantize=config.quantize,
        tile_threads=config.tile_threads,
        kv_dtype=config.kv_dtype,
        device=device,
        limits=Limits(
            max(step_tokens, _TRIAL_ROWS),
            max(step_tokens, _TRIAL_ROWS, config.max_batch) if is_mean else config.max_batch,
            1 + spec.window // config.block_size,
        ),
    )
    decoder = _load_decoder(folder, spec, kernels, dtype)
    cache = _allocate_kv(config, decoder, device)
    step_budget = StepBudget(decode_share=config.decode_share, max_step_seconds=config.step_seconds)
    speculates, overlaps = _step_modes(config, device, kernels)
    speculator = Speculator(step_budget) if speculates else None
    info = EngineInfo(
        model=model_name(config.model),
        folder=str(folder),
        architecture=spec.architecture,
        parameters=decoder.parameters,
        dtype=config.dtype,
        device=str(device),
        kernels=kernels.name,
        threads=threads,
        window=spec.window,
        vocabulary=spec.vocabulary,
        kv_tokens=cache.capacity,
        block_size=config.block_size,
        load_seconds=time.monotonic() - began,
        embedding=0 if spec.pooling is None else spec.shape.hidden,
        normalizes=spec.pooling is not None and spec.pooling.normalizes,
    )
    _warm_up(decoder, step_budget, config, speculates=speculates)
    return EngineParts(
        info=info,
        tokenizer=tokenizer,
        decoder=decoder,
        cache=cache,
        step_budget=step_budget,
        speculator=speculator,
        scheduler=StepScheduler(
            cache,
            step_tokens,
            config.max_batch,
            step_budget,
            speculator,
            PromptAdmission(cache, lambda: step_budget.row_seconds),
        ),
        input_batch=InputBatch(step_tokens, config.max_batch, config.block_size, reads_all=is_mean),
        overlaps=overlaps,
    )


def _load_decoder(folder: Path, spec: DecoderSpec, kernels: Kernels, dtype: torch.dtype) -> Decoder:
    """Return the model without a KV pool. Raises EngineError if its weights do not fit the device, CheckpointError if
    they cannot be loaded."""
    if kernels.device.type == "cuda":
        check_weights(device_memory(kernels.device), weights_size(folder, dtype))
    weights = open_weights(folder)
    try:
        return Decoder(spec, weights, kernels, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _step_modes(config: EngineConfig, device: torch.device, kernels: Kernels) -> tuple[bool, bool]:
    """Return whether steps check drafts, and whether they overlap. Raises EngineError if the configuration requests
    both."""
    speculates = config.speculation == "on"
    if speculates and config.overlap == "on":
        raise EngineError("speculation and overlap exclude each other: drafts need the tokens of the step before")
    overlaps = config.overlap == "on" or (config.overlap == "auto" and device.type == "cuda" and not speculates)
    if config.speculation == "auto":
        speculates = kernels.is_batch_invariant and not overlaps
    return speculates, overlaps


# memory


def _allocate_kv(config: EngineConfig, decoder: Decoder, device: torch.device) -> KVCache:
    """Allocate the KV pool and the offload in host memory. Return the cache that manages their blocks."""
    tokens = _kv_tokens(config, decoder, device)
    blocks = 1 + math.ceil(tokens / config.block_size)
    decoder.allocate_kv(blocks)
    host_offload = HostOffload(_host_tokens(config, decoder, device, tokens) // config.block_size)
    if host_offload.slots:
        decoder.make_slots(host_offload.slots)
    return KVCache(
        blocks,
        config.block_size,
        shares_prefixes=config.prefix_sharing,
        eviction_policy=EvictionPolicy(blocks - 1, learns=config.retention == "learned"),
        host_offload=host_offload,
    )


def _kv_tokens(config: EngineConfig, decoder: Decoder, device: torch.device) -> int:
    """Return the size of the KV pool, in tokens. The weights must be loaded."""
    token_bytes = decoder.kv_bytes_per_token
    if device.type == "cuda":
        shape = decoder.spec.shape
        return kv_pool_tokens(
            device_memory(device),
            config.kv_tokens,
            token_bytes,
            config.block_size,
            config.peers,
            key_elements=shape.kv_heads * shape.head_size,
        )
    return config.kv_tokens or affordable_tokens(token_bytes, decoder.spec.window, config.peers)


def _host_tokens(config: EngineConfig, decoder: Decoder, device: torch.device, pool_tokens: int) -> int:
    """Return the size of the KV offload in host memory, in tokens, for a pool of `pool_tokens` tokens."""
    if config.host_kv_tokens >= 0:
        return config.host_kv_tokens
    if device.type == "cpu":
        return 0
    free = free_memory() * _HOST_SHARE / config.peers
    return min(pool_tokens, int(free / decoder.kv_bytes_per_token))


# warm-up


def _warm_up(decoder: Decoder, step_budget: StepBudget, config: EngineConfig, *, speculates: bool) -> None:
    """Run steps on the scratch block: the first request then finds everything compiled, and the step budget knows the
    cost of a row."""
    for size in decoder.kernels.recorded_sizes:
        _run_trial(decoder, [1] * size, config.block_size)
    trials = {_TRIAL_ROWS: [_TRIAL_ROWS], 1: [1]}
    if speculates:
        few_rows = min(FEW_ROWS, config.max_batch)
        trials[few_rows] = [1] * few_rows
    fastest = dict.fromkeys(trials, math.inf)
    for rows, rows_by_sequence in list(trials.items()) * 2:
        began = time.perf_counter()
        _run_trial(decoder, rows_by_sequence, config.block_size)
        fastest[rows] = min(fastest[rows], time.perf_counter() - began)
    for rows, seconds in fastest.items():
        step_budget.calibrate(rows, seconds)
    keys = min(_TRIAL_KEYS, decoder.spec.window - _TRIAL_ROWS) // config.block_size * config.block_size
    if keys > 0:
        seconds = math.inf
        for _ in range(2):
            began = time.perf_counter()
            _run_trial(decoder, [_TRIAL_ROWS], config.block_size, keys)
            seconds = min(seconds, time.perf_counter() - began)
        step_budget.calibrate_keys(_TRIAL_ROWS, keys, seconds)


def _run_trial(decoder: Decoder, rows_by_sequence: list[int], block_size: int, keys: int = 0) -> None:
    """Run a step of sequences with the given numbers of rows, without using its tokens. `keys`: number of tokens before
    these rows."""
    row_count, ends = sum(rows_by_sequence), torch.tensor(rows_by_sequence).cumsum(0)
    blocks = -(-(keys + max(rows_by_sequence)) // block_size)
    batch = AttentionBatch(
        positions=torch.cat([torch.arange(rows) for rows in rows_by_sequence])
        .add(keys)
        .clamp(max=decoder.spec.window - 1),
        slots=torch.zeros(row_count, dtype=torch.int64),
        query_starts=torch.cat((torch.zeros(1, dtype=torch.int64), ends)).int(),
        lengths=torch.tensor(rows_by_sequence, dtype=torch.int32) + keys,
        block_tables=torch.full((len(rows_by_sequence), blocks), SCRATCH, dtype=torch.int32),
    )
    logits = decoder.forward(torch.zeros(row_count, dtype=torch.int64), batch, ends - 1)
    if decoder.spec.pooling is not None:
        logits.cpu()  # hidden states, which are not sampled; this waits for them
    else:
        decoder.kernels.sample(logits, greedy_requests(len(rows_by_sequence))).result()
