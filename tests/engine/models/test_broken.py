"""Tests of unusable checkpoints: each yields one line that names the file and the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import Engine, EngineConfig
from engine.errors import CheckpointError, EngineError
from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_tiny, write_tiny_llama

Break = Callable[[Path], Any]


@pytest.fixture(scope="module")
def valid_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "sound")


def change_json(name: str = "config.json", **values: Any) -> Break:
    """Return a change that sets keys of a JSON file; None removes a key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        content = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(content))

    return change


def write_text(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def truncated(name: str, keep: float) -> Break:
    def truncate(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return truncate


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def reshaped(name: str, *shape: int) -> Break:
    return weights(lambda tensors: tensors.update({name: torch.zeros(*shape)}))


def retyped(dtype: torch.dtype) -> Break:
    return weights(lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)}))


Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
BROKEN: dict[str, tuple[Break, str]] = {
    "no config": (remove("config.json"), r"no config\.json"),
    "broken config": (truncated("config.json", 0.5), r"config\.json is not JSON"),
    "config that is no object": (write_text("config.json", b"[1]"), r"config\.json must hold a JSON object"),
    "config that is no text": (write_text("config.json", b"\xff\xfe{"), r"config\.json is not JSON"),
    "deep config": (write_text("config.json", b"[" * 100_000), r"config\.json is not JSON"),
    "unknown architecture": (change_json(architectures=["MambaForCausalLM"]), "architecture MambaForCausalLM"),
    "no architecture": (change_json(architectures=None), "architecture none"),
    "odd architecture": (change_json(architectures=[{}]), "has architecture"),
    "unknown model type": (change_json(model_type="cohere"), "model_type is 'cohere'"),
    "quantized": (change_json(quantization_config={"quant_method": "fp8"}), r"quantized \(fp8\)"),
    "no layers": (change_json(num_hidden_layers=0), "num_hidden_layers = 0"),
    "too many layers": (change_json(num_hidden_layers=10**9), "num_hidden_layers = 1000000000"),
    "half a head": (change_json(num_attention_heads=2.5), "num_attention_heads = 2.5"),
    "a size in words": (change_json(hidden_size="64"), "hidden_size = '64'"),
    "no vocabulary": (change_json(vocab_size=-1), "vocab_size = -1"),
    "no size": (change_json(intermediate_size=None), "lacks 'intermediate_size'"),
    "heads that do not fit": (change_json(num_key_value_heads=3), "not a multiple of num_key_value_heads = 3"),
    "no window": (change_json(max_position_embeddings=0), "max_position_embeddings = 0"),
    "unknown activation": (change_json(hidden_act="relu"), "hidden_act = 'relu'"),
    "unknown norm": (change_json(rms_norm_eps="small"), "rms_norm_eps = 'small'"),
    "unknown layer": (change_json(layer_types=["linear_attention"] * 2, sliding_window=8), "linear_attention"),
    "layer types for other layers": (change_json(layer_types=["full_attention"]), "layer_types has 1 entries"),
    "no base": (change_json(rope_parameters=None, rope_theta=0), "rope_theta = 0 is too small"),
    "no base among the parameters": (change_json(rope_parameters={"rope_theta": 0}), "rope_theta = 0 is too small"),
    "a base that is no number": (
        change_json(rope_parameters={"rope_theta": "1e4"}),
        "rope_theta = '1e4' is not a finite",
    ),
    "unknown scaling": (change_json(rope_parameters={"rope_type": "spiral"}), "rope_type = 'spiral'"),
    "scaling that is no object": (change_json(rope_parameters=[1]), "is not an object"),
    "scaling without factor": (change_json(rope_parameters={"rope_type": "linear"}), "lacks factor"),
    "scaling by nothing": (change_json(rope_parameters={**YARN, "factor": 0}), "factor = 0 is too small"),
    "long scaling of another head": (
        change_json(rope_parameters={"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
        "does not have 16 entries",
    ),
    "odd share of a head": (change_json(partial_rotary_factor=0.1), "elements of a head"),
    "no weights": (remove("model.safetensors"), r"no \.safetensors file"),
    "empty weights": (write_text("model.safetensors", b""), r"model\.safetensors cannot be read"),
    "truncated weights": (truncated("model.safetensors", 0.7), r"model\.safetensors cannot be read"),
    "weights that are none": (
        write_text("model.safetensors", b"not weights at all"),
        r"model\.safetensors cannot be read",
    ),
    "missing tensor": (weights(lambda tensors: tensors.pop(Q)), "lacks the tensor.*q_proj"),
    "rows": (reshaped(Q, 64, 64), r"q_proj.*192 rows; config\.json implies 256"),
    "columns": (reshaped(DOWN, 64, 97), r"down_proj.*\(64, 97\)"),
    "dimensions": (reshaped("model.norm.weight", 8, 8), r"model\.norm\.weight has the shape \(8, 8\)"),
    "norm": (reshaped("model.norm.weight", 63), r"model\.norm\.weight has the shape \(63,\)"),
    "embedding": (reshaped("model.embed_tokens.weight", 319, 64), "embed_tokens has 319 rows"),
    "integers": (retyped(torch.int8), "model.norm.weight' is torch.int8"),
    "eight bits": (retyped(torch.float8_e4m3fn), "model.norm.weight' is torch.float8"),
    "no tokenizer": (remove("tokenizer.json"), r"no tokenizer\.json"),
    "broken tokenizer": (truncated("tokenizer.json", 0.5), r"tokenizer\.json is not a valid tokenizer"),
    "tokenizer that is no object": (write_text("tokenizer.json", b"[]"), r"tokenizer\.json is not a valid tokenizer"),
    "tokenizer without model": (change_json("tokenizer.json", model=None), r"tokenizer\.json is not a valid tokenizer"),
    "tokenizer of another kind": (
        change_json("tokenizer.json", model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}),
        "Unigram is not supported",
    ),
    "broken tokenizer config": (write_text("tokenizer_config.json", b"{"), r"tokenizer_config\.json is not JSON"),
    "tokenizer config that is no object": (
        write_text("tokenizer_config.json", b"1"),
        "tokenizer_config.json must hold a",
    ),
    "broken generation config": (write_text("generation_config.json", b"{"), r"generation_config\.json is not JSON"),
    "odd end": (change_json("generation_config.json", eos_token_id=1.5), r"beside .*tokenizer\.json is invalid"),
    "template that is no text": (write_text("chat_template.jinja", b"\xff"), r"chat_template\.jinja cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_checkpoint_is_rejected_with_a_reason(valid_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(valid_checkpoint, folder)
    break_it, words = BROKEN[kind]
    break_it(folder)
    config = EngineConfig(model=str(folder), cache=str(tmp_path), kernels="torch", dtype="float32", kv_tokens=64)
    with pytest.raises(CheckpointError, match=words) as refusal:
        Engine(config)
    assert str(tmp_path) in str(refusal.value), "the message names the file, or the folder"
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if "token" in kind or "template" in kind])
def test_gateway_rejects_a_broken_tokenizer(valid_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    if kind in ("no tokenizer", "missing tensor") or "token" in kind or "template" in kind:
        folder = tmp_path / "broken"
        shutil.copytree(valid_checkpoint, folder)
        BROKEN[kind][0](folder)
        with pytest.raises(CheckpointError, match=BROKEN[kind][1]):
            Tokenizer(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "cannot be read as GGUF"), (b"GGML" + bytes(64), "cannot be read as GGUF"), (b"GGUF\3\0", "GGUF")],
)
def test_broken_gguf_file_is_rejected_with_a_reason(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=words) as refusal:
        Engine(EngineConfig(model=str(path), cache=str(tmp_path), kernels="torch"))
    assert str(path) in str(refusal.value)


def test_truncated_gguf_file_is_rejected_with_a_reason(gguf_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with gguf_file.open("rb") as whole:
        head = whole.read(8_000_000)
    for size in (30, 1_000, 100_000, 8_000_000):
        path.write_bytes(head[:size])
        with pytest.raises(EngineError, match=r"model\.gguf"):
            Engine(EngineConfig(model=str(path), cache=str(tmp_path), kernels="torch"))
    assert not list((tmp_path / "converted").glob("model*")), "the next start finds no partial conversion"


@pytest.mark.parametrize("family", ["Llama 3", "Gemma 3", "Phi-3, longrope", "Qwen2.5, yarn", "SmolLM3"])
def test_valid_checkpoints_are_accepted(tmp_path: Path, family: str) -> None:
    folder = write_tiny(tmp_path / "sound", family)
    config = EngineConfig(model=str(folder), cache=str(tmp_path), kernels="torch", dtype="float32", kv_tokens=64)
    assert Engine(config).info.window == 256
