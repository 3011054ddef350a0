"""Tests of gateway/prompts/segment_builder.py: which text is tokenised before values are known."""

from array import array

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Slot, Text
from gateway.prompts.segment_builder import SegmentBuilder, text_segment

NAME = Input(Reference("name"), "m")
ANSWER, PLAN = Slot(None, SamplingParams()), Slot("plan", SamplingParams(), heals=True)
SENTENCE = "The quick brown fox jumps over the lazy dog and runs"


def test_text_without_a_reference_is_tokens(tokenizer: Tokenizer) -> None:
    builder = SegmentBuilder(tokenizer, None, "prompt")
    builder.add_run(["It is ", ANSWER], "nothing")
    assert builder.finish() == [Text(array("i", tokenizer.encode("It is "))), ANSWER]


def test_the_end_before_a_reference_stays_text(tokenizer: Tokenizer) -> None:
    builder = SegmentBuilder(tokenizer, None, "prompt")
    builder.add_run([SENTENCE, NAME, " away", PLAN, "."], "control")
    stable, rest, *others = builder.finish()
    assert isinstance(stable, Text)
    assert isinstance(rest, Characters)
    assert tokenizer.decode(list(stable.tokens)) + rest.text == SENTENCE
    assert len(rest.text) < 15
    assert others == [NAME, Characters(" away", weight=2), PLAN, Characters(".", weight=1)]


def test_text_after_a_slot_stays_text(tokenizer: Tokenizer) -> None:
    """Check text that has no reference: the digest of a call must not depend on references."""
    builder = SegmentBuilder(tokenizer, None, "prompt")
    end = tokenizer.control["<|im_end|>"]
    builder.add_run([PLAN], "control")
    builder.add_control_token(end)
    builder.add_run([SENTENCE], "control")
    assert builder.finish() == [PLAN, Text(array("i", [end])), Characters(SENTENCE, weight=13)]


def test_an_answer_may_complete_the_text_before_it(tokenizer: Tokenizer) -> None:
    builder = SegmentBuilder(tokenizer, None, "prompt")
    builder.add_run(["It is "], "control", heals=True)
    assert builder.finish() == [Characters("It is ", weight=2)]


def test_tokens_are_stored_in_an_array() -> None:
    assert text_segment([1, 2]) == Text(array("i", [1, 2]))
