"""Tests of every model family with a small random model, against transformers."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams
from tests.fakes.checkpoints import FAMILIES, write_tiny

PROMPT = [(7 * index) % 250 for index in range(100)]
"""Longer than every window and every original context of the families' models."""


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    one = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    return [token for update in engine.stream(prompt, one) for token in update.tokens]


def engine_logits(engine: Engine, tokens: list[int], every: int = 1) -> torch.Tensor:
    """Return logits at every position, in chunks as the scheduler plans them. `every`: interval of rows whose logits
    are requested."""
    engine.fill(999, tokens)
    engine.generate(999, SamplingParams(max_tokens=1))
    rows: list[torch.Tensor] = []
    done = 0
    while done < len(tokens):
        plan = engine._scheduler.plan(engine._sequences.values())
        ids, batch, _ = engine._input_batch.gather(plan)
        rows.append(engine.decoder.forward(ids, batch, torch.arange(0, len(ids), every)).clone())
        done += len(ids)
        for chunk in plan.chunks:
            chunk.sequence.commit(chunk.end)
    engine.free_context(999)
    return torch.cat(rows)


def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_equal_transformers(tmp_path: Path, family: str) -> None:
    folder = write_tiny(tmp_path, family)
    model = reference(folder)
    config = EngineConfig(model=str(folder), dtype="float32", kv_tokens=1024, step_tokens=16, prefix_sharing=False)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    got = engine_logits(Engine(config), PROMPT)
    assert torch.allclose(got, expected, atol=1e-3 * float(expected.abs().max())), float((got - expected).abs().max())

    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=1024, step_tokens=16))
    ids = torch.tensor([PROMPT])
    model.generation_config.eos_token_id = None  # continues, as the engine does
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
    answer = answer[0, len(PROMPT) :].tolist()
    assert greedy(engine, PROMPT, 30) == answer
    assert greedy(engine, PROMPT, 30) == answer, "the same with a cached prefix"
    assert len(set(answer)) > 3, "a model that repeats one token proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_c_kernels_agree_on_every_family(tmp_path: Path, family: str) -> None:
    """Compare in bfloat16: as close to float32 as torch's own bfloat16, and bit for bit the same with all layers in one
    call."""
    folder = write_tiny(tmp_path, family, dtype=torch.bfloat16)
    shape: dict[str, Any] = {"model": str(folder), "kv_tokens": 1024, "step_tokens": 32, "prefix_sharing": False}
    engine, plain = Engine(EngineConfig(**shape, kernels="cpu")), Engine(EngineConfig(**shape, kernels="torch"))
    exact = Engine(EngineConfig(**shape, dtype="float32"))
    source = random.Random(1)
    prompts = [PROMPT, *([source.choice(PROMPT) for _ in PROMPT] for _ in range(3))]  # one alone depends on luck
    fused = [engine_logits(engine, prompt) for prompt in prompts]
    torch_error = own_error = 0.0
    for prompt, own in zip(prompts, fused, strict=True):
        expected = engine_logits(exact, prompt)
        own_error += float((own - expected).pow(2).mean())
        torch_error += float((engine_logits(plain, prompt) - expected).pow(2).mean())
    assert own_error**0.5 < 1.1 * torch_error**0.5 + 1e-3, (own_error, torch_error)
    engine.decoder._fused = None
    assert torch.equal(engine_logits(engine, PROMPT), fused[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("every", [3, 32])
def test_logits_do_not_depend_on_which_rows_are_requested(tmp_path: Path, family: str, every: int) -> None:
    """Check that the C kernels, which omit the other rows in the last layer, return the same logits."""
    folder = write_tiny(tmp_path, family, dtype=torch.bfloat16)
    config = EngineConfig(model=str(folder), kv_tokens=1024, step_tokens=32, prefix_sharing=False, kernels="cpu")
    engine = Engine(config)
    whole = engine_logits(engine, PROMPT)
    some = engine_logits(engine, PROMPT, every)
    requested = [
        row for start in range(0, len(PROMPT), 32) for row in range(start, min(start + 32, len(PROMPT)), every)
    ]
    assert torch.equal(some, whole[requested])


def test_one_safetensors_file_or_several(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "Qwen3", shards=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    with torch.no_grad():
        expected = reference(folder)(torch.tensor([PROMPT])).logits[0]
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=512, prefix_sharing=False))
    assert torch.allclose(engine_logits(engine, PROMPT), expected, atol=1e-3)


def test_dynamic_rope_equals_default_within_the_window(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    folder = write_tiny(tmp_path, rope_parameters=rope)
    with torch.no_grad():
        expected = reference(folder)(torch.tensor([PROMPT])).logits[0]
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=512, prefix_sharing=False))
    assert torch.allclose(engine_logits(engine, PROMPT), expected, atol=1e-3)


def test_vision_language_model_runs_as_text_model(tmp_path: Path) -> None:
    """Load a checkpoint like Gemma 3's larger ones: the text model has another prefix and a nested config."""
    from safetensors.torch import load_file, save_file

    folder = write_tiny(tmp_path, "Gemma 3")
    with torch.no_grad():
        expected = reference(folder)(torch.tensor([PROMPT])).logits[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {}})
    )
    tensors = load_file(folder / "model.safetensors")
    save_file({f"language_model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=512, prefix_sharing=False))
    assert torch.allclose(engine_logits(engine, PROMPT), expected, atol=1e-3 * float(expected.abs().max()))
