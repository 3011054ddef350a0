"""Tests of gateway/prompts/placeholders.py: marks stand for what a template must not read or change."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.errors import RequestError
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Slot, Text
from gateway.prompts.placeholders import PlaceholderMap
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.prompt_contents import joined_texts

NAME, PLAN = Input(Reference("name"), "m"), Slot("plan", SamplingParams())


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer with a token for each byte, and the control tokens <s> and </s>."""
    folder: Path = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return Tokenizer(folder)


def controls(segments: list[Segment], tokenizer: Tokenizer) -> int:
    """Return the number of control tokens."""
    return sum(
        token in tokenizer.special for segment in segments if isinstance(segment, Text) for token in segment.tokens
    )


PIECES = st.lists(
    st.sampled_from(["<s>", "</s>", "<", "/s>", "s", "é", "\ue000", "\ue001", "\ue0001-0\ue001", NAME, PLAN]),
    max_size=8,
)


@given(PIECES)
@example(["<", "s>"])
@example(["<s", NAME, ">"])
def test_all_pieces_return_and_none_is_a_control_token(characters: Tokenizer, pieces: list[Any]) -> None:
    placeholders = PlaceholderMap(characters)
    # a template sees a message's pieces as one text, so control tokens can begin in one piece and end in another
    joined = "".join(piece if isinstance(piece, str) else "\0" for piece in pieces)
    others = [piece for piece in pieces if not isinstance(piece, str)]
    texts = joined.split("\0")
    pieces = [texts[0]]
    for other, text in zip(others, texts[1:], strict=True):
        pieces += [other, text]
    marked = placeholders.mark_pieces(pieces)
    assert "<s>" not in marked
    assert "</s>" not in marked
    segments = placeholders.segments(f"<s>{marked}</s>", None, "m")
    assert controls(segments, characters) == 2, "only those of the template"
    found = joined_texts(segments, characters)
    assert "".join(piece if isinstance(piece, str) else "\0" for piece in found) == f"<s>{joined}</s>"
    assert [piece for piece in found if not isinstance(piece, str)] == others


def test_control_tokens_of_a_clients_own_template_stay(characters: Tokenizer) -> None:
    placeholders = PlaceholderMap(characters)
    segments = placeholders.segments(placeholders.mark_template(["<s>a", NAME, "</s>"]), None, "prompt")
    assert joined_texts(segments, characters) == ["<s>a", NAME, "</s>"]
    assert controls(segments, characters) == 2


def test_all_texts_of_a_value_are_neutralised(characters: Tokenizer) -> None:
    placeholders = PlaceholderMap(characters)
    value = {"<s>": ["x", {"a": "</s>"}, 5, None, True]}
    safe = placeholders.neutralise(value)
    ((key, items),) = safe.items()
    assert key == "<s>", "keys are names of fields, which the API has checked"
    assert "</s>" not in items[1]["a"]
    assert (items[0], items[2:]) == ("x", [5, None, True])
    (segment,) = placeholders.segments(items[1]["a"], None, "m")
    assert joined_texts([segment], characters) == ["</s>"]
    assert controls([segment], characters) == 0


@pytest.mark.parametrize("pieces", [["abcd"], ["a" * 3, "<s>"]])
def test_a_prompt_must_be_shorter_than_the_window(characters: Tokenizer, pieces: list[Any]) -> None:
    placeholders = PlaceholderMap(characters)
    rendered = placeholders.mark_template(pieces)
    assert placeholders.segments(rendered, 5, "prompt") == placeholders.segments(rendered, None, "prompt")
    for window in (4, 3, 1):
        with pytest.raises(RequestError, match=f"window is {window} tokens") as refusal:
            placeholders.segments(rendered, window, "prompt")
        assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("pieces", [["a" * 99, NAME, "b" * 99], [PLAN, "a" * 198], ["a" * 99, PLAN, "b" * 99]])
def test_a_prompt_that_certainly_exceeds_the_window_is_refused(characters: Tokenizer, pieces: list[Any]) -> None:
    """Use text next to a reference or a slot: its tokens are not known yet, but their minimum number is."""
    placeholders = PlaceholderMap(characters)
    rendered = placeholders.mark_template(pieces)
    assert placeholders.segments(rendered, 199, "prompt") == placeholders.segments(rendered, None, "prompt")
    with pytest.raises(RequestError, match="window is 40 tokens"):
        placeholders.segments(rendered, 40, "prompt")


class RecordingTokenizer:
    """Records the texts that it encodes, and what precedes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.encoded: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self.encoded.append((text, options["after"]))
        return self._tokenizer.encode(text, **options)


def test_texts_are_encoded_in_runs_that_are_as_long_as_possible(characters: Tokenizer) -> None:
    recording: Any = RecordingTokenizer(characters)
    placeholders = PlaceholderMap(recording)
    message = placeholders.mark_pieces(["b", "<s>", "c"])
    placeholders.segments(f"a{message}<s>e", None, "m")
    assert recording.encoded == [("ab<s>c", "nothing"), ("e", "control")]
