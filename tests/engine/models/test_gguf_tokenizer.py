"""Tests of engine/models/gguf_tokenizer.py: the same tokens as sentencepiece, and every pre-tokenizer."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.models.fetch import checkpoint_folder
from engine.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces, a\ttab and a\nline",
    "naïve café, 日本語, 🙂 and a null \x00 byte",
    "x = [i**2 for i in range(10)]",
    "",
]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabulary_tokenises_like_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(Path(__file__).read_text().splitlines() + TEXTS[:2]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", "llama")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 8),
        (writer.add_feed_forward_length, 16),
        (writer.add_head_count, 2),
        (writer.add_layer_norm_rms_eps, 1e-5),
    ):
        add(value)
    ids = range(model.get_piece_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    writer.add_token_types(
        [3 if model.is_control(i) else 2 if model.is_unknown(i) else 6 if model.is_byte(i) else 1 for i in ids]
    )
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_space_prefix(prefix)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = Tokenizer(checkpoint_folder(str(tmp_path / "spm.gguf"), tmp_path, torch.float32))
    for text in TEXTS:
        assert tokenizer.encode(text, after="nothing") == model.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text, "in the middle of a text no space is added"
    assert tokenizer.encode_template("<s>The fox</s>fox") == [
        model.bos_id(), *model.encode("The fox"), model.eos_id(), *model.encode("fox")
    ]  # fmt: skip
    assert tokenizer.eos_ids == {model.eos_id()}
    assert tokenizer.encode("</s>") != [model.eos_id()], "text is data"


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "tekken"])
def test_every_pre_tokenizer_round_trips(tmp_path: Path, pre: str) -> None:
    from tokenizers.decoders import ByteLevel

    from engine.models.gguf_tokenizer import _PRE_TOKENIZERS

    for text in TEXTS[:4]:
        pieces = _PRE_TOKENIZERS[pre]().pre_tokenize_str(text)
        assert ByteLevel().decode([piece for piece, _ in pieces]) == text
        assert len(pieces) > 3
