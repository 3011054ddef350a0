"""Tests of engine/speculative.py: which drafts each sequence gets, and that no text changes."""

from collections.abc import Callable
from typing import Any

import pytest

from engine import Engine, SamplingParams
from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.protocol import Update
from engine.sequence import TokenSequence
from engine.speculative import Speculator
from engine.step_budget import FEW_ROWS, StepBudget
from engine.tokenizer import Tokenizer

LOOP = [5, 6, 7, 8, 9, 10] * 4


@pytest.fixture
def step_budget() -> StepBudget:
    """Return a budget where a step takes 10 ms, each of the first rows 0.2 ms more, and further ones 1 ms each."""
    step_budget = StepBudget(decode_share=0.65, max_step_seconds=0.1)
    step_budget.calibrate(1, 0.010)
    step_budget.calibrate(FEW_ROWS, 0.010 + (FEW_ROWS - 1) * 0.0002)
    step_budget.calibrate(100, 0.100)
    return step_budget


@pytest.fixture
def decoding(tokenizer: Tokenizer) -> Callable[..., TokenSequence]:
    """Return a factory of sequences whose last token is sampled."""
    cache = KVCache(64, 16)
    created: list[TokenSequence] = []

    def make(tokens: list[int], limit: int = 100, **sampling: Any) -> TokenSequence:
        sequence = TokenSequence(len(created), cache, "", 0.0, len(created))
        sequence.generation = Generation(
            SamplingParams(**{"temperature": 0.0, **sampling}), tokenizer, tokens[:-1], limit, matcher=None
        )
        sequence.generation.push(tokens[-1])
        sequence.tokens, sequence.computed_tokens = list(tokens), len(tokens) - 1
        created.append(sequence)
        return sequence

    return make


def record_drafts(
    speculator: Speculator, sequences: list[TokenSequence], drafts: dict[int, list[int]], accepted: int
) -> None:
    for sequence in sequences:
        drafted = len(drafts.get(sequence.id, ()))
        speculator.record(sequence, drafted, min(drafted, accepted))


def test_accepted_drafts_grow_and_rejected_ones_stop(
    step_budget: StepBudget, decoding: Callable[..., TokenSequence]
) -> None:
    speculator = Speculator(step_budget)
    one = decoding(LOOP)
    lengths = []
    for _ in range(30):
        drafts = speculator.propose([one], 100, decoding=1, with_prefill=False)
        assert drafts[0] == (LOOP * 3)[: len(drafts[0])], "the draft continues the loop"
        lengths.append(len(drafts[0]))
        record_drafts(speculator, [one], drafts, accepted=100)
    assert 1 <= lengths[0] < lengths[-1] <= 31
    assert lengths[-1] > 10
    other = decoding(LOOP)
    seen = []
    for _ in range(60):
        drafts = speculator.propose([other], 100, decoding=1, with_prefill=True)
        seen.append(len(drafts.get(1, ())))
        record_drafts(speculator, [other], drafts, accepted=0)
    assert seen[0] >= 1, "a sequence without history uses the rate of others"
    assert 0 < sum(seen[30:]) < 15, "a sequence with a low rate gets another try from time to time"


def test_likelier_drafts_get_scarce_rows(step_budget: StepBudget, decoding: Callable[..., TokenSequence]) -> None:
    speculator = Speculator(step_budget)
    good, bad = decoding(LOOP), decoding(LOOP)
    for sequence, accepted in ((good, 4), (bad, 1)):
        speculator._find_draft(sequence)
        assert sequence.generation is not None
        sequence.generation.proposer(sequence.tokens).rate.add(5 * accepted, 20)
    drafts = speculator.propose([bad, good], 100, decoding=2, with_prefill=False)
    assert len(drafts[good.id]) > len(drafts[bad.id])
    drafts = speculator.propose([bad, good], 1, decoding=2, with_prefill=False)
    assert drafts == {good.id: [5]}


def test_repetitive_sequence_does_not_slow_others_to_a_crawl(
    step_budget: StepBudget, decoding: Callable[..., TokenSequence]
) -> None:
    speculator = Speculator(step_budget)
    lengths = []
    for count in (1, 2, 4, 8, 16):
        one = decoding(LOOP)
        for _ in range(20):
            drafts = speculator.propose([one], 100, decoding=count, with_prefill=False)
            record_drafts(speculator, [one], drafts, accepted=100)
        lengths.append(len(drafts.get(one.id, ())))
    assert lengths[0] > 10
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] <= 1


def test_drafted_rows_must_be_worth_their_time(step_budget: StepBudget, decoding: Callable[..., TokenSequence]) -> None:
    speculator = Speculator(step_budget)
    one = decoding(LOOP)
    far = len(speculator.propose([one], 100, decoding=1, with_prefill=False)[0])
    near = len(speculator.propose([one], 100, decoding=1, with_prefill=True).get(0, ()))
    assert near < far, "next to a prompt every row costs full time"
    many = [decoding(LOOP) for _ in range(40)]
    assert not speculator.propose(many, 100, decoding=40, with_prefill=False), "40 rows are compute-bound"


@pytest.mark.parametrize(
    "sampling",
    [{"presence_penalty": 1.0}, {"repetition_penalty": 1.2}, {"logit_bias": {3: 1.0}}, {"min_tokens": 5}],
    ids=lambda sampling: next(iter(sampling)),
)
def test_history_dependent_sampling_gets_no_drafts(
    step_budget: StepBudget, decoding: Callable[..., TokenSequence], sampling: dict[str, Any]
) -> None:
    speculator = Speculator(step_budget)
    assert not speculator.propose([decoding(LOOP, **sampling)], 100, decoding=1, with_prefill=False)
    assert speculator.propose([decoding(LOOP, temperature=0.7, logprobs=True)], 100, decoding=1, with_prefill=False)


def test_no_draft_beyond_the_limit(step_budget: StepBudget, decoding: Callable[..., TokenSequence]) -> None:
    speculator = Speculator(step_budget)
    for left, drafted in ((1, None), (2, 1), (3, 2)):
        one = decoding(LOOP, limit=left + 1)
        for _ in range(5):
            drafts = speculator.propose([one], 100, decoding=1, with_prefill=False)
            record_drafts(speculator, [one], drafts, accepted=100)
        assert (len(drafts[one.id]) if one.id in drafts else None) == drafted


# on the real model

REPEATS = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n"


def run(engine: Engine, prompts: list[str], sampling: list[SamplingParams]) -> tuple[list[list[Update]], int]:
    """Return each prompt's updates, and the number of steps of all."""
    updates: list[list[Update]] = [[] for _ in prompts]
    for index, (prompt, one) in enumerate(zip(prompts, sampling, strict=True)):
        engine.fill(index, engine.tokenizer.encode_template(prompt))
        engine.generate(index, one)
    steps = 0
    while engine.has_work:
        steps += 1
        for update in engine.step():
            assert update.error is None
            updates[update.context].append(update)
        engine.check_integrity()
    for index in range(len(prompts)):
        engine.free_context(index)
    engine.check_integrity()
    return updates, steps


def same(updates: list[Update]) -> tuple[list[int], str, Any, str | None]:
    return (
        [token for update in updates for token in update.tokens],
        "".join(update.text for update in updates),
        [logprob for update in updates for logprob in update.logprobs],
        updates[-1].finish,
    )


@pytest.fixture
def disable_speculation(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes the engine decode token by token."""

    def stop() -> None:
        monkeypatch.setattr(engine._scheduler, "_speculator", None)

    return stop


@pytest.mark.usefixtures("batch_invariant")
def test_speculation_saves_steps_without_changing_text(engine: Engine, disable_speculation: Callable[[], None]) -> None:
    prompts = [REPEATS * 3, REPEATS * 2 + "def mul", "Once upon a time", REPEATS * 4, REPEATS * 2]
    sampling = [
        SamplingParams(temperature=0.0, max_tokens=60),
        SamplingParams(temperature=0.6, seed=3, max_tokens=60),
        SamplingParams(temperature=0.0, max_tokens=30, presence_penalty=0.5),
        SamplingParams(temperature=0.0, max_tokens=60, logprobs=True, top_logprobs=3, stop=("return a - b",)),
        SamplingParams(temperature=0.0, regex=r"(def [a-z]{3}\(a, b\):\n    return a [-+*/] b\n\n\n){3}"),
    ]
    speculated, _ = run(engine, prompts, sampling)
    assert max(len(update.tokens) for updates in speculated for update in updates) > 4
    disable_speculation()
    alone, _ = run(engine, prompts, sampling)
    assert [same(updates) for updates in speculated] == [same(updates) for updates in alone]
    assert sum(map(len, speculated)) < sum(map(len, alone)), "each update is a step of an answer"
    assert same(alone[3])[3] == "stop", "the stop string follows drafted tokens"
    assert len(same(alone[3])[2]) == len(same(alone[3])[0])


@pytest.mark.usefixtures("batch_invariant")
def test_blocks_of_accepted_drafts_are_in_the_tree(engine: Engine) -> None:
    """Blocks that drafted tokens filled are in the tree as soon as the tokens are accepted."""
    prompt = engine.tokenizer.encode_template(REPEATS * 3)
    engine.fill(1, prompt, scope="found again")
    engine.generate(1, SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))
    while engine.has_work:
        engine.step()
    text = list(engine._sequences[1].tokens)
    engine.free_context(1)
    engine.fill(1, text[:-1], scope="found again")
    size = engine.config.block_size
    (update,) = engine.step()
    assert update.cached == (len(text) - 1) // size * size
    engine.free_context(1)


def test_bad_logits_after_an_accepted_draft_fail_the_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, step_budget: StepBudget
) -> None:
    forward = engine.decoder.forward

    def forward_with_nan(*arguments: Any) -> Any:
        logits = forward(*arguments)
        if len(logits) > 1:
            logits = logits.clone()
            logits[-1] = float("nan")
        return logits

    monkeypatch.setattr(engine.decoder, "forward", forward_with_nan)
    monkeypatch.setattr(engine, "_speculator", Speculator(step_budget))
    monkeypatch.setattr(engine._scheduler, "_speculator", engine._speculator)
    engine.fill(1, engine.tokenizer.encode_template(REPEATS * 4))
    engine.generate(1, SamplingParams(temperature=0.0, max_tokens=60))
    updates = []
    while engine.has_work:
        updates += engine.step()
    assert updates[-1].error is not None
    assert updates[-1].error[0] == "bad_logits"
    assert sum(len(update.tokens) for update in updates) > 1, "the tokens before it were accepted"
    engine.check_integrity()


def test_prediction_is_tokenised_only_up_to_the_limit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, step_budget: StepBudget
) -> None:
    monkeypatch.setattr(engine, "_speculator", Speculator(step_budget))
    engine.fill(1, [1, 2, 3])
    engine.generate(1, SamplingParams(max_tokens=10, prediction="word " * 1_000_000))
    generation = engine._sequences[1].generation
    assert generation is not None
    assert 10 <= len(generation._prediction) <= 3 + 160
    engine.free_context(1)
