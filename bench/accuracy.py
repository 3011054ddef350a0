"""Accuracy of reduced precision: `python -m bench.accuracy [FILE ...]`.

It prints the perplexity of texts, and the distance of each precision's distributions from float32's. Without files, it
uses the project's own prose.
"""

import argparse
import math
from pathlib import Path

import torch

from engine import Engine, EngineConfig
from engine.kernels import AttentionBatch

_WINDOW = 512
_KINDS = {
    "float32": EngineConfig(dtype="float32", kv_tokens=1024),
    "bfloat16": EngineConfig(kv_tokens=1024),
    "int8": EngineConfig(kv_tokens=1024, quantize="int8"),
    "fp8 KV": EngineConfig(kv_tokens=1024, kernels="torch", kv_dtype="fp8"),
}


def _log_probabilities(engine: Engine, tokens: list[int]) -> torch.Tensor:
    """Return log probabilities (tokens, vocabulary) float32 of the token after each token."""
    size, count = engine.config.block_size, len(tokens)
    place = torch.arange(count)
    batch = AttentionBatch(
        positions=place,
        slots=place + size,
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        lengths=torch.tensor([count], dtype=torch.int32),
        block_tables=torch.arange(1, 1 + -(-count // size), dtype=torch.int32).unsqueeze(0),
    )
    return engine.decoder.forward(torch.tensor(tokens), batch, place).log_softmax(-1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, default=[Path("README.md"), Path("LICENSE"), *Path("docs").glob("*.md")]
    )
    text = "\n".join(path.read_text(encoding="utf-8") for path in parser.parse_args().files)
    engines = {name: Engine(config) for name, config in _KINDS.items()}
    tokens = engines["float32"].tokenizer.encode(text)
    windows = [tokens[index : index + _WINDOW] for index in range(0, len(tokens) - 1, _WINDOW)]
    loss = dict.fromkeys(_KINDS, 0.0)
    agree, divergence, error, positions = (dict.fromkeys(_KINDS, 0.0) for _ in range(4))
    for window in windows:
        exact = _log_probabilities(engines["float32"], window)
        for name, engine in engines.items():
            got = exact if name == "float32" else _log_probabilities(engine, window)
            positions[name] += len(window) - 1
            loss[name] -= float(got[:-1].gather(1, torch.tensor(window[1:]).unsqueeze(1)).sum())
            agree[name] += float((got.argmax(-1) == exact.argmax(-1))[:-1].sum())
            divergence[name] += float((exact.exp() * (exact - got)).sum(-1)[:-1].sum())
            likely = exact > math.log(1e-3)
            error[name] += float(((got - exact).abs() * likely).sum() / likely.sum()) * (len(window) - 1)
    print(f"{len(tokens)} tokens in windows of {_WINDOW}")
    print(f"{'':<10}{'perplexity':>12}{'same top':>12}{'KL, nats':>12}{'|Δ log p|':>12}")
    for name in _KINDS:
        n = positions[name]
        print(
            f"{name:<10}{math.exp(loss[name] / n):>12.3f}{agree[name] / n:>12.2%}{divergence[name] / n:>12.5f}"
            f"{error[name] / n:>12.4f}"
        )


if __name__ == "__main__":
    main()
