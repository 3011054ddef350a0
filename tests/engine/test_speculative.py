"""engine/speculative.py: what is drafted for whom, and that no text changes."""

from collections.abc import Callable
from typing import Any

import pytest

from engine import Engine, EngineConfig, SamplingParams
from engine.errors import EngineError
from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.protocol import Update
from engine.sequence import Context
from engine.speculative import Speculator
from engine.step_budget import FEW_ROWS, StepBudget
from engine.tokenizer import Tokenizer

LOOP = [5, 6, 7, 8, 9, 10] * 4


@pytest.fixture
def pacer() -> StepBudget:
    """A step takes 10 ms, each of the first rows 0.2 more, and further ones 1 ms each."""
    pacer = StepBudget(decode_share=0.65, gap=0.1)
    pacer.learn(1, 0.010)
    pacer.learn(FEW_ROWS, 0.010 + (FEW_ROWS - 1) * 0.0002)
    pacer.learn(100, 0.100)
    return pacer


@pytest.fixture
def decoding(tokenizer: Tokenizer) -> Callable[..., Context]:
    """Makes a context that has sampled the last of its tokens."""
    cache = KVCache(64, 16)
    made: list[Context] = []

    def make(tokens: list[int], limit: int = 100, **sampling: Any) -> Context:
        context = Context(len(made), cache, "", 0.0, len(made))
        context.generation = Generation(
            SamplingParams(**{"temperature": 0.0, **sampling}), tokenizer, tokens[:-1], limit, matcher=None
        )
        context.generation.push(tokens[-1])
        context.tokens, context.computed = list(tokens), len(tokens) - 1
        made.append(context)
        return context

    return make


def told(speculation: Speculator, contexts: list[Context], drafts: dict[int, list[int]], right: int) -> None:
    for context in contexts:
        drafted = len(drafts.get(context.id, ()))
        speculation.tell(context, drafted, min(drafted, right))


def test_who_is_right_gets_more_and_who_is_wrong_none(pacer: StepBudget, decoding: Callable[..., Context]) -> None:
    speculation = Speculator(pacer)
    one = decoding(LOOP)
    lengths = []
    for _ in range(30):
        drafts = speculation.propose([one], 100, among=1, beside=False)
        assert drafts[0] == (LOOP * 3)[: len(drafts[0])], "as the loop goes on"
        lengths.append(len(drafts[0]))
        told(speculation, [one], drafts, right=100)
    assert 1 <= lengths[0] < lengths[-1] <= 31
    assert lengths[-1] > 10
    other = decoding(LOOP)
    seen = []
    for _ in range(60):
        drafts = speculation.propose([other], 100, among=1, beside=True)
        seen.append(len(drafts.get(1, ())))
        told(speculation, [other], drafts, right=0)
    assert seen[0] >= 1, "what is right for others is tried"
    assert 0 < sum(seen[30:]) < 15, "who was wrong is tried once in a while"


def test_the_likelier_go_first_where_rows_are_few(pacer: StepBudget, decoding: Callable[..., Context]) -> None:
    speculation = Speculator(pacer)
    good, bad = decoding(LOOP), decoding(LOOP)
    for context, right in ((good, 4), (bad, 1)):
        speculation._look(context)
        assert context.generation is not None
        context.generation.lookup(context.tokens).rate.add(5 * right, 20)
    drafts = speculation.propose([bad, good], 100, among=2, beside=False)
    assert len(drafts[good.id]) > len(drafts[bad.id])
    drafts = speculation.propose([bad, good], 1, among=2, beside=False)
    assert drafts == {good.id: [5]}


def test_nobody_crawls_because_another_repeats_itself(pacer: StepBudget, decoding: Callable[..., Context]) -> None:
    speculation = Speculator(pacer)
    lengths = []
    for among in (1, 2, 4, 8, 16):
        one = decoding(LOOP)
        for _ in range(20):
            drafts = speculation.propose([one], 100, among=among, beside=False)
            told(speculation, [one], drafts, right=100)
        lengths.append(len(drafts.get(one.id, ())))
    assert lengths[0] > 10
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] <= 1


def test_rows_have_to_be_worth_their_time(pacer: StepBudget, decoding: Callable[..., Context]) -> None:
    speculation = Speculator(pacer)
    one = decoding(LOOP)
    far = len(speculation.propose([one], 100, among=1, beside=False)[0])
    near = len(speculation.propose([one], 100, among=1, beside=True).get(0, ()))
    assert near < far, "beside a prompt every row has its price"
    many = [decoding(LOOP) for _ in range(40)]
    assert not speculation.propose(many, 100, among=40, beside=False), "40 rows are bound by computing"


@pytest.mark.parametrize(
    "sampling",
    [{"presence_penalty": 1.0}, {"repetition_penalty": 1.2}, {"logit_bias": {3: 1.0}}, {"min_tokens": 5}],
    ids=lambda sampling: next(iter(sampling)),
)
def test_what_depends_on_tokens_before_it_is_not_drafted(
    pacer: StepBudget, decoding: Callable[..., Context], sampling: dict[str, Any]
) -> None:
    speculation = Speculator(pacer)
    assert not speculation.propose([decoding(LOOP, **sampling)], 100, among=1, beside=False)
    assert speculation.propose([decoding(LOOP, temperature=0.7, logprobs=True)], 100, among=1, beside=False)


def test_nothing_is_drafted_behind_the_end(pacer: StepBudget, decoding: Callable[..., Context]) -> None:
    speculation = Speculator(pacer)
    for left, drafted in ((1, None), (2, 1), (3, 2)):
        one = decoding(LOOP, limit=left + 1)
        for _ in range(5):
            drafts = speculation.propose([one], 100, among=1, beside=False)
            told(speculation, [one], drafts, right=100)
        assert (len(drafts[one.id]) if one.id in drafts else None) == drafted


# on the real model

REPEATS = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n"


def run(engine: Engine, prompts: list[str], sampling: list[SamplingParams]) -> tuple[list[list[Update]], int]:
    """Each prompt's updates, and how many steps all took."""
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
def plain(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the engine go token by token from here on."""

    def stop() -> None:
        monkeypatch.setattr(engine._planner, "_speculation", None)

    return stop


@pytest.mark.usefixtures("batch_invariant")
def test_no_text_changes_and_there_are_fewer_steps(engine: Engine, plain: Callable[[], None]) -> None:
    prompts = [REPEATS * 3, REPEATS * 2 + "def mul", "Once upon a time", REPEATS * 4, REPEATS * 2]
    sampling = [
        SamplingParams(temperature=0.0, max_tokens=60),
        SamplingParams(temperature=0.6, seed=3, max_tokens=60),
        SamplingParams(temperature=0.0, max_tokens=30, presence_penalty=0.5),
        SamplingParams(temperature=0.0, max_tokens=60, logprobs=True, top_logprobs=3, stop=("return a - b",)),
        SamplingParams(temperature=0.0, regex=r"(def [a-z]{3}\(a, b\):\n    return a [-+*/] b\n\n\n){3}"),
    ]
    speculated, few = run(engine, prompts, sampling)
    assert max(len(update.tokens) for updates in speculated for update in updates) > 4
    plain()
    alone, many = run(engine, prompts, sampling)
    assert [same(updates) for updates in speculated] == [same(updates) for updates in alone]
    assert few < many
    assert same(alone[3])[3] == "stop", "the stop string came, behind tokens that were drafted"
    assert len(same(alone[3])[2]) == len(same(alone[3])[0])


@pytest.mark.usefixtures("batch_invariant")
def test_what_was_said_is_found_again_whole(engine: Engine) -> None:
    """Blocks that drafted tokens filled are in the tree as soon as they are right."""
    prompt = engine.tokenizer.encode_template(REPEATS * 3)
    engine.fill(1, prompt, scope="found again")
    engine.generate(1, SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))
    while engine.has_work:
        engine.step()
    text = list(engine._contexts[1].tokens)
    engine.free_context(1)
    engine.fill(1, text[:-1], scope="found again")
    size = engine.config.block_size
    (update,) = engine.step()
    assert update.cached == (len(text) - 1) // size * size
    engine.free_context(1)


def test_bad_logits_behind_a_right_draft_fail_the_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, pacer: StepBudget
) -> None:
    forward = engine.decoder.forward

    def spoilt(*arguments: Any) -> Any:
        logits = forward(*arguments)
        if len(logits) > 1:
            logits = logits.clone()
            logits[-1] = float("nan")
        return logits

    monkeypatch.setattr(engine.decoder, "forward", spoilt)
    monkeypatch.setattr(engine, "_speculation", Speculator(pacer))
    monkeypatch.setattr(engine._planner, "_speculation", engine._speculation)
    engine.fill(1, engine.tokenizer.encode_template(REPEATS * 4))
    engine.generate(1, SamplingParams(temperature=0.0, max_tokens=60))
    told = []
    while engine.has_work:
        told += engine.step()
    assert told[-1].error is not None
    assert told[-1].error[0] == "bad_logits"
    assert sum(len(update.tokens) for update in told) > 1, "what came before was right"
    engine.check_integrity()


def test_steps_that_overlap_do_not_speculate(tiny_engine: Engine) -> None:
    tiny_folder = tiny_engine.info.folder
    with pytest.raises(EngineError, match="leave out overlap or speculation"):
        Engine(EngineConfig(model=tiny_folder, overlap="on", speculation="on"))
    assert Engine(EngineConfig(model=tiny_folder, overlap="on", kv_tokens=320))._speculation is None
    assert Engine(EngineConfig(model=tiny_folder, speculation="off", kv_tokens=320))._speculation is None
    assert Engine(EngineConfig(model=tiny_folder, kernels="torch", kv_tokens=320))._speculation is None
    on = Engine(EngineConfig(model=tiny_folder, kernels="torch", speculation="on", kv_tokens=320))
    assert on._speculation is not None


def test_a_prediction_is_read_no_further_than_an_answer_can_go(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, pacer: StepBudget
) -> None:
    monkeypatch.setattr(engine, "_speculation", Speculator(pacer))
    engine.fill(1, [1, 2, 3])
    engine.generate(1, SamplingParams(max_tokens=10, prediction="word " * 1_000_000))
    generation = engine._contexts[1].generation
    assert generation is not None
    assert 10 <= len(generation._prediction) <= 3 + 160
    engine.free_context(1)
