"""Every family, on a small random model of its kind, held against transformers' own implementation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams
from engine.errors import CheckpointError
from engine.models.spec import SUPPORTED, read_spec
from tests.checkpoints import FAMILIES, write_tiny

PROMPT = [(7 * at) % 250 for at in range(100)]
"""Longer than every window and every original context of the families' models."""


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    one = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    return [token for update in engine.stream(prompt, one) for token in update.tokens]


def own_logits(engine: Engine, tokens: list[int], every: int = 1) -> torch.Tensor:
    """Logits at every position, the engine's own way: planned, gathered, in chunks. `every`: or at the first of so many
    rows of each chunk."""
    engine.fill(999, tokens)
    engine.generate(999, SamplingParams(max_tokens=1))
    rows: list[torch.Tensor] = []
    done = 0
    while done < len(tokens):
        plan = engine._planner.plan(engine._contexts.values())
        ids, batch, _ = engine._arrays.gather(plan)
        rows.append(engine.decoder.forward(ids, batch, torch.arange(0, len(ids), every)).clone())
        done += len(ids)
        for chunk in plan.chunks:
            chunk.context.commit(chunk.end)
    engine.free_context(999)
    return torch.cat(rows)


def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_are_transformers(tmp_path: Path, family: str) -> None:
    folder = write_tiny(tmp_path, family)
    model = reference(folder)
    config = EngineConfig(model=str(folder), dtype="float32", kv_tokens=1024, step_tokens=16, prefix_sharing=False)
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPT])).logits[0]
    got = own_logits(Engine(config), PROMPT)
    assert torch.allclose(got, wanted, atol=1e-3 * float(wanted.abs().max())), float((got - wanted).abs().max())

    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=1024, step_tokens=16))
    ids = torch.tensor([PROMPT])
    model.generation_config.eos_token_id = None  # goes on, as ours does
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
    answer = answer[0, len(PROMPT) :].tolist()
    assert greedy(engine, PROMPT, 30) == answer
    assert greedy(engine, PROMPT, 30) == answer, "and with its prefix found in the tree"
    assert len(set(answer)) > 3, "a model that says one thing proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_in_c_agree_on_every_family(tmp_path: Path, family: str) -> None:
    """In bfloat16: as near to float32 as torch's own bfloat16 is, and all layers in one call bit for bit."""
    folder = write_tiny(tmp_path, family, dtype=torch.bfloat16)
    shape: dict[str, Any] = {"model": str(folder), "kv_tokens": 1024, "step_tokens": 32, "prefix_sharing": False}
    exact = own_logits(Engine(EngineConfig(**shape, dtype="float32")), PROMPT)
    engine = Engine(EngineConfig(**shape, kernels="cpu"))
    fused = own_logits(engine, PROMPT)
    engine.decoder._fused = None
    assert torch.equal(own_logits(engine, PROMPT), fused)
    torch_error, own_error = (
        float((logits - exact).pow(2).mean().sqrt())
        for logits in (own_logits(Engine(EngineConfig(**shape, kernels="torch")), PROMPT), fused)
    )
    assert own_error < 1.3 * torch_error + 1e-3, (own_error, torch_error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("every", [3, 32])
def test_rows_are_the_same_if_others_are_not_asked_for(tmp_path: Path, family: str, every: int) -> None:
    """The kernels in C leave those out of the last layer."""
    folder = write_tiny(tmp_path, family, dtype=torch.bfloat16)
    config = EngineConfig(model=str(folder), kv_tokens=1024, step_tokens=32, prefix_sharing=False, kernels="cpu")
    engine = Engine(config)
    whole = own_logits(engine, PROMPT)
    some = own_logits(engine, PROMPT, every)
    asked = [row for start in range(0, len(PROMPT), 32) for row in range(start, min(start + 32, len(PROMPT)), every)]
    assert torch.equal(some, whole[asked])


def test_one_file_or_several(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "Qwen3", shards=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    with torch.no_grad():
        wanted = reference(folder)(torch.tensor([PROMPT])).logits[0]
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=512, prefix_sharing=False))
    assert torch.allclose(own_logits(engine, PROMPT), wanted, atol=1e-3)


def test_dynamic_rope_is_plain_within_its_window(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    folder = write_tiny(tmp_path, rope_parameters=rope)
    with torch.no_grad():
        wanted = reference(folder)(torch.tensor([PROMPT])).logits[0]
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=512, prefix_sharing=False))
    assert torch.allclose(own_logits(engine, PROMPT), wanted, atol=1e-3)


def test_a_model_that_also_sees_runs_as_its_text_half(tmp_path: Path) -> None:
    """Gemma 3's larger checkpoints: the text model stands inside, under another name and a nested config."""
    from safetensors.torch import load_file, save_file

    folder = write_tiny(tmp_path, "Gemma 3")
    with torch.no_grad():
        wanted = reference(folder)(torch.tensor([PROMPT])).logits[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {}})
    )
    tensors = load_file(folder / "model.safetensors")
    save_file({f"language_model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=512, prefix_sharing=False))
    assert torch.allclose(own_logits(engine, PROMPT), wanted, atol=1e-3 * float(wanted.abs().max()))


OLDER = {
    "Gemma 2": ("layer_types",),
    "Gemma 3": ("layer_types", "rope_parameters"),
    "Qwen2, sliding": ("layer_types",),
    "Mistral 7B v0.1": ("layer_types",),
}


@pytest.mark.parametrize("family", OLDER)
def test_older_configs_say_the_same_in_other_words(tmp_path: Path, family: str) -> None:
    folder = write_tiny(tmp_path, family)
    spec = read_spec(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    for key in OLDER[family]:
        config.pop(key, None)
    if family == "Gemma 3":
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    older = read_spec(folder)
    assert [layer.window for layer in older.layers] == [layer.window for layer in spec.layers]
    assert [layer.rope and layer.rope.theta for layer in older.layers] == [
        layer.rope and layer.rope.theta for layer in spec.layers
    ]
    assert len({layer.window for layer in spec.layers}) == (1 if "Mistral" in family else 2)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="MambaForCausalLM; supported: LlamaForCausalLM") as raised:
        read_spec(folder)
    assert all(name in str(raised.value) for name in SUPPORTED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu'; supported: silu"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "'mrope'; supported: default, linear"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"vocab_size": 100}, "by config.json it has 100 rows"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = write_tiny(tmp_path)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(CheckpointError, match=words):
        Engine(EngineConfig(model=str(folder), kv_tokens=512))


def test_rotary_tables_are_cosines_and_sines_by_position() -> None:
    from engine.models.rope import Rope, rotary_table

    table = rotary_table(Rope(4, 100.0, "default", {}), 8)
    angles = np.array([[p * 1.0, p * 0.1] for p in range(8)])
    assert np.allclose(table.numpy(), np.concatenate((np.cos(angles), np.sin(angles)), 1), atol=1e-6)
