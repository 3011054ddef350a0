"""engine/pooling.py, and whole engines that compute embeddings, against transformers."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig
from engine.errors import ContextError
from engine.models.pooling import PoolingSpec
from engine.pooling import Pooling
from engine.sampling_params import SamplingParams
from tests.fakes.checkpoints import write_tiny, write_tiny_embedder

LENGTHS = (1, 5, 15, 16, 17, 33, 33, 90, 200)


def texts(seed: int = 0) -> list[list[int]]:
    """Return texts as tokens, two of which begin alike. Token 0 is padding for some families."""
    pick = random.Random(seed)
    found = [[pick.randrange(1, 250) for _ in range(length)] for length in LENGTHS]
    found[6][:32] = found[5][:32]
    return found


def embeddings(engine: Engine, tokens: list[list[int]]) -> list[torch.Tensor]:
    """Return the embeddings of the texts, all in flight together."""
    for number, text in enumerate(tokens, start=1):
        engine.embed(number, text, rank=float(number % 3))
    found: dict[int, torch.Tensor] = {}
    for _ in range(2_000):
        for update in engine.step():
            assert update.error is None, update
            if update.finish is not None:
                found[update.context] = torch.frombuffer(bytearray(update.embedding), dtype=torch.float32)
        engine.check_integrity()
        if len(found) == len(tokens):
            break
    for number in found:
        engine.free_context(number)
    assert not engine.has_work
    return [found[number] for number in sorted(found)]


def expected(folder: Path, tokens: list[list[int]], method: str, *, normalizes: bool) -> list[torch.Tensor]:
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    vectors = []
    for text in tokens:
        with torch.no_grad():
            hidden = model(torch.tensor([text])).last_hidden_state[0]
        vector = hidden[-1] if method == "lasttoken" else hidden.mean(dim=0)
        vectors.append(vector / vector.norm() if normalizes else vector)
    return vectors


@pytest.mark.parametrize("family", ["Qwen3", "Mistral", "Llama 3", "Gemma 2"])
@pytest.mark.parametrize("method", ["lasttoken", "mean_tokens"])
@pytest.mark.parametrize("normalizes", [False, True])
def test_embeddings_equal_those_of_transformers(tmp_path: Path, family: str, method: str, normalizes: bool) -> None:
    folder = write_tiny_embedder(tmp_path, family, method, normalizes=normalizes)
    wanted = expected(folder, texts(), method, normalizes=normalizes)
    scale = max(float(vector.abs().max()) for vector in wanted)
    for step_tokens, kv_tokens in ((512, 4_096), (40, 4_096), (16, 256)):  # the last one preempts
        config = EngineConfig(model=str(folder), dtype="float32", kv_tokens=kv_tokens, step_tokens=step_tokens)
        engine = Engine(config)
        assert (engine.info.embedding, engine.info.normalizes) == (len(wanted[0]), normalizes)
        for _ in range(2):  # the second time, the prefix tree may have the texts
            for got, vector in zip(embeddings(engine, texts()), wanted, strict=True):
                assert torch.allclose(got, vector, atol=2e-4 * scale)


def test_embeddings_with_the_fast_kernels_are_close(tmp_path: Path) -> None:
    folder = write_tiny_embedder(tmp_path, "Qwen3", "lasttoken")
    wanted = expected(folder, texts(), "lasttoken", normalizes=True)
    for got, vector in zip(
        embeddings(Engine(EngineConfig(model=str(folder), kv_tokens=2_048)), texts()), wanted, strict=True
    ):
        assert float(got @ vector) > 0.99


def test_a_model_either_generates_or_embeds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    embedder = Engine(EngineConfig(model=str(write_tiny_embedder(tmp_path / "a", "Qwen3", "lasttoken")), kv_tokens=512))
    generator = Engine(EngineConfig(model=str(write_tiny(tmp_path / "b", "Qwen3")), kv_tokens=512))
    embedder.fill(1, [1, 2])
    for act in (
        lambda: embedder.generate(1, SamplingParams()),
        lambda: generator.embed(1, [1, 2]),
        lambda: embedder.embed(1, [1]),
        lambda: embedder.embed(2, []),
        lambda: embedder.embed(3, [10**6]),
        lambda: embedder.embed(4, [1] * 1_000),
    ):
        with pytest.raises(ContextError):
            act()
    embedder.free_context(1)
    assert len(embeddings(embedder, [[1, 2]])) == 1


def test_a_text_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    engine = Engine(
        EngineConfig(model=str(write_tiny_embedder(tmp_path, "Qwen3", "mean_tokens")), dtype="float32", kv_tokens=512)
    )
    table = engine.decoder._embedding
    table[200] = torch.nan
    engine.embed(1, [1, 2, 3])
    engine.embed(2, [1, 200, 3])
    updates = {update.context: update for _ in range(3) for update in engine.step()}
    assert updates[1].finish == "stop"
    assert updates[2].error is not None
    assert updates[2].error[0] == "bad_logits"


def test_a_mean_over_parts_counts_each_token_once() -> None:
    hidden = torch.randn(10, 4)
    whole, parts = Pooling(PoolingSpec("mean", False)), Pooling(PoolingSpec("mean", False))
    whole.add(hidden, 0)
    for start, end in ((0, 4), (4, 6), (0, 5), (5, 10), (9, 10)):  # it lost its blocks once
        parts.add(hidden[start:end], start)
    assert torch.allclose(whole.result(), hidden.mean(dim=0), atol=1e-6)
    assert torch.equal(whole.result(), parts.result()) or torch.allclose(whole.result(), parts.result(), atol=1e-6)
