"""Conversion of a GGUF file's tokenizer into the files that accompany safetensors."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from engine.errors import CheckpointError
from engine.models.gguf_metadata import Metadata
from engine.word_patterns import GPT4O, LLAMA3, QWEN2, TEKKEN

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # token types of the GGUF specification


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# Pre-tokenizers by `tokenizer.ggml.pre`.
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _split(LLAMA3),
    "smaug-bpe": lambda: _split(LLAMA3),
    "dbrx": lambda: _split(LLAMA3),
    "qwen2": lambda: _split(QWEN2),
    "gpt-4o": lambda: _split(GPT4O),
    "tekken": lambda: _split(TEKKEN),
}


def write_tokenizer(fields: Metadata, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises CheckpointError for a kind of tokenizer that is not supported.
    """
    kind = fields.require("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(f"{fields.path} has a tokenizer of kind {kind!r}; supported in GGUF: gpt2, llama")
    tokens: list[str] = fields.require("tokenizer.ggml.tokens")
    types: list[int] = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    backend = _byte_level(fields, tokens) if kind == "gpt2" else _sentencepiece(fields, tokens, types)
    content = json.loads(backend.to_str())
    content["added_tokens"] = [
        {
            "id": token,
            "content": tokens[token],
            "special": type_ == _CONTROL,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token, type_ in enumerate(types)
        if type_ in (_CONTROL, _USER_DEFINED)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    def text(key: str) -> str | None:
        token = fields.get(key)
        return None if token is None else tokens[token]

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text("tokenizer.ggml.bos_token_id"),
        "eos_token": text("tokenizer.ggml.eos_token_id"),
        "add_bos_token": fields.get("tokenizer.ggml.add_bos_token", kind == "llama"),
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ends = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    stops = sorted({end for end in ends if end is not None})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))


def _byte_level(fields: Metadata, tokens: list[str]) -> Backend:
    pre = fields.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{fields.path} has the pre-tokenizer {pre!r}; supported in GGUF: {', '.join(_PRE_TOKENIZERS)}"
        )
    merges = [tuple(merge.split(" ")) for merge in fields.require("tokenizer.ggml.merges")]
    vocabulary = {text: token for token, text in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: Metadata, tokens: list[str], types: list[int]) -> Backend:
    """Return a SentencePiece BPE model. It stores scores instead of merges: of all adjacent pairs that form a token,
    the pair whose token has the highest score is merged first."""
    scores: list[float] = fields.require("tokenizer.ggml.scores")
    vocabulary = {text: token for token, text in enumerate(tokens)}
    normal = {text for text, type_ in zip(tokens, types, strict=True) if type_ not in (_CONTROL, _BYTE)}
    found = [
        (scores[vocabulary[text]], text[:index], text[index:])
        for text in normal
        for index in range(1, len(text))
        if text[:index] in normal and text[index:] in normal
    ]
    found.sort(key=lambda merge: (-merge[0], vocabulary[merge[1]], vocabulary[merge[2]]))
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    backend = Backend(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for _, left, right in found],
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        space.insert(0, normalizers.Prepend("▁"))
    backend.normalizer = normalizers.Sequence(space)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend
