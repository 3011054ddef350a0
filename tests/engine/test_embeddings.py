"""Embeddings of decoder checkpoints made for them, against transformers."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine import Engine, EngineConfig, SamplingParams
from engine.errors import CheckpointError, ContextError
from engine.protocol import Update
from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_tiny, write_tiny_embedder

Vector = NDArray[np.float32]
TEXTS = [
    [(index * step) % 250 for index in range(length)]
    for step, length in ((7, 1), (3, 15), (5, 16), (11, 60), (13, 100))
]


def small_engine(folder: Path, **options: Any) -> Engine:
    return Engine(
        EngineConfig(**{"model": str(folder), "dtype": "float32", "kv_tokens": 1024, "step_tokens": 32, **options})
    )


def run(engine: Engine, count: int) -> dict[int, Vector]:
    """Return the embeddings of the contexts, once there are `count`."""
    found: dict[int, Vector] = {}
    for _ in range(1000):
        for update in engine.step():
            assert update.error is None, update.error
            if update.embedding:
                found[update.context] = np.frombuffer(update.embedding, dtype="<f4")
                engine.free_context(update.context)
        engine.check_integrity()
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} of {count} embeddings")


def embed(engine: Engine, texts: list[list[int]]) -> list[Vector]:
    for number, tokens in enumerate(texts):
        engine.embed(number, tokens)
    found = run(engine, len(texts))
    return [found[number] for number in range(len(texts))]


def expected_vectors(folder: Path, texts: list[list[int]], pooling: str) -> list[Vector]:
    """Return the embeddings that transformers computes."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    vectors = []
    for tokens in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([tokens])).last_hidden_state[0]
        vectors.append((hidden[-1] if pooling == "lasttoken" else hidden.mean(0)).numpy())
    return vectors


def close(got: list[Vector], expected: list[Vector], error: float) -> bool:
    return all(float(np.abs(a - b).max()) <= error * float(np.abs(b).max()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("family", ["Qwen3", "Qwen2", "Mistral", "Llama 3", "Gemma 3"])
@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens"])
def test_embeddings_equal_those_of_transformers(tmp_path: Path, family: str, pooling: str) -> None:
    folder = write_tiny_embedder(tmp_path / "tiny", family, pooling=pooling)
    expected = expected_vectors(folder, TEXTS, pooling)
    engine = small_engine(folder)
    assert engine.info.embedding is not None
    assert (engine.info.embedding.size, engine.info.embedding.normalizes) == (64, True)
    assert close(embed(engine, TEXTS), expected, 1e-3), "several texts in a step, long ones in several steps"
    assert close(embed(engine, TEXTS), expected, 1e-3), "a second time, with a cached prefix if that is possible"
    one_by_one = small_engine(folder, prefix_sharing=False)
    assert close([embed(one_by_one, [tokens])[0] for tokens in TEXTS], expected, 1e-3)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens"])
def test_c_kernels_compute_them_in_bfloat16(tmp_path: Path, pooling: str) -> None:
    folder = write_tiny_embedder(tmp_path / "tiny", pooling=pooling)
    expected = expected_vectors(folder, TEXTS, pooling)
    got = embed(small_engine(folder, dtype="bfloat16", kernels="cpu"), TEXTS)
    for vector, other in zip(got, expected, strict=True):
        cosine = float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))
        assert cosine > 0.998


def test_prefixes_are_shared_only_for_the_last_token(tmp_path: Path) -> None:
    for pooling, cached in (("lasttoken", 96), ("mean_tokens", 0)):
        engine = small_engine(write_tiny_embedder(tmp_path / pooling, pooling=pooling))
        embed(engine, [TEXTS[4]])
        engine.embed(1, TEXTS[4])
        updates: list[Update] = []
        while not any(update.embedding for update in updates):
            updates += engine.step()
        assert sum(update.cached for update in updates) == cached, pooling


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens"])
def test_a_small_pool_and_cancellations_change_no_result(tmp_path: Path, pooling: str) -> None:
    folder = write_tiny_embedder(tmp_path / "tiny", pooling=pooling)
    picked = random.Random(1)
    texts = [[picked.randrange(250) for _ in range(picked.randrange(1, 120))] for _ in range(30)]
    expected = expected_vectors(folder, texts, pooling)
    engine = small_engine(folder, kv_tokens=160)
    for number, tokens in enumerate(texts):
        engine.embed(number, tokens, rank=picked.random(), scope=picked.choice("ab"))
    for _ in range(3):
        engine.step()
    cancelled = set(range(0, 30, 7)) & engine._sequences.keys()
    for number in cancelled:
        engine.free_context(number)
    done = run(engine, sum(sequence.embeds for sequence in engine._sequences.values()))
    assert len(done) >= 20
    assert all(close([vector], [expected[number]], 1e-3) for number, vector in done.items())
    for number in list(engine._sequences):  # those that were done in the first steps
        engine.free_context(number)
    assert engine.cache.available * 16 == engine.info.kv_tokens


def test_what_an_engine_for_embeddings_refuses(tmp_path: Path) -> None:
    engine = small_engine(write_tiny_embedder(tmp_path / "tiny"))
    engine.fill(1, [1, 2, 3])
    with pytest.raises(ContextError, match="makes embeddings; it generates no text"):
        engine.generate(1, SamplingParams())
    with pytest.raises(ContextError, match="exists already"):
        engine.embed(1, [1])
    with pytest.raises(ContextError, match="an empty text"):
        engine.embed(2, [])
    with pytest.raises(ContextError, match="outside the vocabulary"):
        engine.embed(2, [10**6])
    with pytest.raises(ContextError, match="window is 256"):
        engine.embed(2, [1] * 257)
    assert embed(engine, [[5]])[0].shape == (64,)
    text_engine = small_engine(write_tiny(tmp_path / "text"))
    assert text_engine.info.embedding is None
    with pytest.raises(ContextError, match="makes no embeddings"):
        text_engine.embed(1, [1])


def test_unsupported_checkpoints_say_why(tmp_path: Path) -> None:
    folder = write_tiny_embedder(tmp_path / "cls", pooling="cls_token")
    with pytest.raises(CheckpointError, match="selects pooling_mode_cls_token"):
        small_engine(folder)
    folder = write_tiny_embedder(tmp_path / "dense")
    (folder / "modules.json").write_text(
        (folder / "modules.json").read_text().replace("models.Normalize", "models.Dense")
    )
    with pytest.raises(CheckpointError, match="lists Transformer, Pooling, Dense"):
        small_engine(folder)
    folder = write_tiny_embedder(tmp_path / "broken")
    (folder / "modules.json").write_text("[1, 2")
    with pytest.raises(CheckpointError, match=r"modules.json is invalid"):
        small_engine(folder)
    folder = write_tiny_embedder(tmp_path / "both-ways", "Gemma 3", use_bidirectional_attention=True)
    with pytest.raises(CheckpointError, match="attend to later ones"):
        small_engine(folder)


def test_texts_get_the_tokens_of_the_vocabulary(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_tiny_embedder(tmp_path / "tiny")
    reference = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer(folder)
    for text in ("", "hello", "<s> is text </s>", "é" * 300):
        plain = text.replace("<s>", "<_s>").replace("</s>", "<_/s>")  # the reference would read control tokens
        assert ours.encode_whole(plain) == reference(plain)["input_ids"], text
    assert ours.encode_whole("</s>")[-1:] == [257]
    assert 257 not in ours.encode_whole("</s>")[:-1], "text never becomes a control token"
