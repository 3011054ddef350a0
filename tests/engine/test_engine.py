"""Tests of engine/engine.py: the whole engine on the real model, compared with transformers."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams
from engine.errors import ContextError
from engine.kv.cache import LastBlock
from engine.kv.eviction import EvictionPolicy
from engine.scheduler import StepScheduler
from tests.engine.prompts import CHAT, PROMPTS
from tests.fakes.checkpoints import write_tiny_llama

NEW_TOKENS = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)


@pytest.fixture(scope="session")
def reference(gguf_file: Path) -> Any:
    """Load the same checkpoint with transformers' own GGUF loader, in float32."""
    import gguf
    from transformers import AutoModelForCausalLM

    with (
        pytest.MonkeyPatch.context() as patch
    ):  # the loader reads the file twice, and builds one table hundreds of times
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def prompts(exact_engine: Engine) -> list[list[int]]:
    return [exact_engine.tokenizer.encode_template(CHAT.format(prompt)) for prompt in PROMPTS]


@pytest.fixture(scope="session")
def batch_answers(exact_engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Return the answers of the float32 engine to all prompts in one batch."""
    return run(exact_engine, prompts, GREEDY, interactive=False)


@pytest.fixture(scope="session")
def reference_logits(reference: Any, prompts: list[list[int]], batch_answers: list[list[int]]) -> list[torch.Tensor]:
    """Return the logits of transformers at each place of the float32 engine's answers."""
    with torch.inference_mode():
        return [
            reference(torch.tensor([prompt + answer]), logits_to_keep=len(answer) + 1).logits[0, :-1]
            for prompt, answer in zip(prompts, batch_answers, strict=True)
        ]


@pytest.fixture(scope="session")
def reference_answers(exact_engine: Engine, reference_logits: list[torch.Tensor]) -> list[list[int]]:
    """Return the token that transformers predicts at each place of the float32 engine's answers, up to the end token.

    The answers equal these tokens exactly if they equal the output of transformers' greedy `generate`, and one pass
    over each answer suffices.
    """
    (end,) = exact_engine.tokenizer.eos_ids
    reference_answers = []
    for logits in reference_logits:
        says = logits.argmax(-1).tolist()
        reference_answers.append(says[: says.index(end) + 1] if end in says else says)
    return reference_answers


def run(
    engine: Engine,
    prompts: list[list[int]],
    sampling: SamplingParams | list[SamplingParams],
    *,
    interactive: bool = True,
) -> list[list[int]]:
    """Run all prompts in one batch, and return the tokens of each answer."""
    each = sampling if isinstance(sampling, list) else [sampling] * len(prompts)
    for index, (tokens, one) in enumerate(zip(prompts, each, strict=True)):
        engine.fill(index, tokens, interactive=interactive)
        engine.generate(index, one)
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for update in engine.step():
            assert update.error is None
            answers[update.context].extend(update.tokens)
    engine.check_integrity()
    for index in range(len(prompts)):
        engine.free_context(index)
    engine.check_integrity()
    return answers


@pytest.fixture
def step_tokens() -> Iterator[Callable[[Engine, int], None]]:
    """Set an engine's token budget for one test."""
    changed: list[tuple[Engine, StepScheduler]] = []

    def set_budget(engine: Engine, tokens: int) -> None:
        changed.append((engine, engine._scheduler))
        engine._scheduler = StepScheduler(engine.cache, tokens, engine.config.max_batch)

    yield set_budget
    for engine, planner in changed:
        engine._scheduler = planner


# float32: equal to transformers token for token


def test_greedy_text_equals_transformers_in_one_batch(
    batch_answers: list[list[int]], reference_answers: list[list[int]]
) -> None:
    assert batch_answers == reference_answers


def test_greedy_text_equals_transformers_one_by_one(
    exact_engine: Engine, prompts: list[list[int]], reference_answers: list[list[int]]
) -> None:
    # all prompts ran before, so their prefixes are reused
    for tokens, expected in zip(prompts[::3], reference_answers[::3], strict=True):
        assert run(exact_engine, [tokens], GREEDY) == [expected]


def test_greedy_text_equals_transformers_without_prefix_reuse_in_odd_chunks(
    prompts: list[list[int]], reference_answers: list[list[int]]
) -> None:
    engine = Engine(EngineConfig(kv_tokens=16_384, dtype="float32", prefix_sharing=False, step_tokens=37))
    assert run(engine, prompts[1::3], GREEDY) == reference_answers[1::3]


# bfloat16, as served: bit for bit the same in any batch


@pytest.mark.usefixtures("batch_invariant")
def test_text_does_not_depend_on_the_batch(engine: Engine, prompts: list[list[int]]) -> None:
    batch_answers = run(engine, prompts, GREEDY)
    assert [run(engine, [tokens], GREEDY)[0] for tokens in prompts] == batch_answers


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("budget", [16, 23, 77])
def test_text_does_not_depend_on_chunks(
    engine: Engine, prompts: list[list[int]], step_tokens: Callable[[Engine, int], None], budget: int
) -> None:
    whole = run(engine, prompts[:8], GREEDY)
    step_tokens(engine, budget)
    # another scope: the tree holds nothing, so everything is computed in these chunks
    for index, tokens in enumerate(prompts[:8]):
        engine.fill(index, tokens, scope=f"chunks of {budget}")
        engine.generate(index, GREEDY)
    answers: list[list[int]] = [[] for _ in range(8)]
    while engine.has_work:
        for update in engine.step():
            answers[update.context].extend(update.tokens)
    for index in range(8):
        engine.free_context(index)
    assert answers == whole


@pytest.mark.usefixtures("batch_invariant")
def test_seeded_text_does_not_depend_on_the_batch(engine: Engine, prompts: list[list[int]]) -> None:
    seeded = [SamplingParams(max_tokens=16, seed=index, top_p=0.95) for index in range(len(prompts))]
    batch_answers = run(engine, prompts, seeded)
    assert [run(engine, [prompts[i]], [seeded[i]])[0] for i in range(len(prompts))] == batch_answers
    assert batch_answers != run(
        engine,
        prompts,
        [SamplingParams(max_tokens=16, seed=99 + s.seed, top_p=0.95) for s in seeded if s.seed is not None],
    )


def test_bfloat16_agrees_with_the_exact_model(
    engine: Engine, prompts: list[list[int]], batch_answers: list[list[int]], reference_logits: list[torch.Tensor]
) -> None:
    """Compare along the float32 model's own continuations; the figures are in docs/benchmarks.md."""
    same = positions = 0
    gaps = []
    for prompt, answer, exact in zip(prompts, batch_answers, reference_logits, strict=True):
        got = teacher_forced(engine, prompt, answer)
        for row, choice in zip(exact, got, strict=True):
            positions += 1
            best = int(row.argmax())
            if best == choice:
                same += 1
            else:
                gaps.append(float(row[best] - row[choice]))
    print(f"the same top token at {same} of {positions} positions ({same / positions:.1%}), gaps where not: {gaps}")
    assert same / positions >= 0.97
    assert all(gap < 0.5 for gap in gaps)


def teacher_forced(engine: Engine, prompt: list[int], answer: list[int]) -> list[int]:
    """Return the engine's most likely token at each place of `answer`, given all tokens before it."""
    one = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    run(engine, [prompt], one)  # the others find it in the cache
    return [choice for (choice,) in run(engine, [prompt + answer[:length] for length in range(len(answer))], one)]


# contexts


def collect(engine: Engine, context: int) -> tuple[list[int], str, str | None]:
    tokens: list[int] = []
    text, finish = "", None
    while finish is None:
        for update in engine.step():
            if update.context == context:
                assert update.error is None
                tokens += update.tokens
                text += update.text
                finish = update.finish
    return tokens, text, finish


@pytest.mark.usefixtures("batch_invariant")
def test_fill_in_pieces_equals_one_fill(engine: Engine, prompts: list[list[int]]) -> None:
    tokens = prompts[15]
    (whole,) = run(engine, [tokens], GREEDY)
    ends = [0, 5, 16, 40, len(tokens)]
    for start, end in pairwise(ends):
        engine.fill(7, tokens[start:end], scope="pieces")
        while engine.has_work:
            engine.step()
    engine.generate(7, GREEDY)
    assert collect(engine, 7)[0] == whole
    engine.free_context(7)


@pytest.mark.usefixtures("batch_invariant")
def test_generated_tokens_remain_for_the_next_fill(engine: Engine, prompts: list[list[int]]) -> None:
    tokens, more = prompts[2], engine.tokenizer.encode(" And another one:")
    engine.fill(1, tokens)
    engine.generate(1, SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True))
    answer, _, _ = collect(engine, 1)
    engine.fill(1, more)
    engine.generate(1, GREEDY)
    gone_on, _, _ = collect(engine, 1)
    engine.free_context(1)
    assert run(engine, [tokens + answer + more], GREEDY) == [gone_on]


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("stop", ["the", "e", " ", "th", "."])
def test_text_cut_by_a_stop_string_is_removed_from_the_context(
    engine: Engine, prompts: list[list[int]], stop: str
) -> None:
    more = engine.tokenizer.encode(", and so")
    for prompt in prompts[:4]:
        engine.fill(1, prompt)
        engine.generate(1, SamplingParams(temperature=0.0, max_tokens=40, stop=(stop,)))
        _, text, _ = collect(engine, 1)
        engine.check_integrity()
        held = list(engine._sequences[1].tokens)
        assert held[: len(prompt)] == prompt
        assert engine.tokenizer.decode(held[len(prompt) :], skip_special=False) == text
        engine.fill(1, more)
        engine.generate(1, GREEDY)
        gone_on, _, _ = collect(engine, 1)
        engine.free_context(1)
        assert run(engine, [held + more], GREEDY) == [gone_on]


@pytest.mark.usefixtures("batch_invariant")
def test_forks_are_independent(engine: Engine, prompts: list[list[int]]) -> None:
    tokens = prompts[3]
    tails = [engine.tokenizer.encode(tail) for tail in (" Be brief.", " Use an example.", "")]
    engine.fill(1, tokens)
    while engine.has_work:
        engine.step()
    for child, tail in enumerate(tails, 2):
        engine.fill(child, [], parent=1)
        if tail:
            engine.fill(child, tail)
        engine.generate(child, GREEDY)
    answers: dict[int, list[int]] = {2: [], 3: [], 4: []}
    while engine.has_work:
        for update in engine.step():
            answers[update.context].extend(update.tokens)
        engine.check_integrity()
    for context in range(1, 5):
        engine.free_context(context)
    engine.check_integrity()
    assert list(answers.values()) == run(engine, [tokens + tail for tail in tails], GREEDY)


def test_fill_reports_cached_tokens(engine: Engine, prompts: list[list[int]]) -> None:
    tokens = prompts[16]
    reports = []
    for context in (1, 2):
        engine.fill(context, tokens, scope="found")
        while engine.has_work:
            reports += [update for update in engine.step() if update.filled is not None]
    size = engine.config.block_size
    assert [(r.filled, r.cached) for r in reports] == [(len(tokens), 0), (len(tokens), len(tokens) // size * size)]
    for context in (1, 2):
        engine.free_context(context)


@pytest.mark.usefixtures("batch_invariant")
def test_text_is_the_same_under_memory_pressure(engine: Engine, prompts: list[list[int]]) -> None:
    small = Engine(EngineConfig(kv_tokens=1536, step_tokens=128))
    few = [tokens for tokens in prompts if len(tokens) < 900]
    assert run(small, few, GREEDY) == run(engine, few, GREEDY)


@pytest.mark.usefixtures("batch_invariant")
def test_overlapping_steps_change_no_update(engine: Engine, prompts: list[list[int]], overlapping: None) -> None:
    """Requests with all parameters, next to each other, get the same updates as without overlap."""
    requested = [
        SamplingParams(temperature=0.0, max_tokens=12),
        SamplingParams(temperature=1.0, seed=5, max_tokens=12, logprobs=True, top_logprobs=3),
        SamplingParams(temperature=0.0, max_tokens=20, stop=(".", " the")),
        SamplingParams(temperature=0.0, max_tokens=14, min_tokens=9, stop=("e",)),
        SamplingParams(temperature=0.7, seed=6, max_tokens=10, top_p=0.9, frequency_penalty=1.0),
        SamplingParams(temperature=0.0, max_tokens=10, regex="[a-z]{3,20}"),
        SamplingParams(temperature=0.0, max_tokens=1),
        SamplingParams(temperature=0.0, max_tokens=8, logit_bias={30: -100.0}, ignore_eos=True),
    ]
    groups = [requested[:4], requested[4:], [requested[position] for position in (0, 1, 2, 3, 6, 7)], requested]

    def updates_of(overlap: bool) -> list[Any]:
        engine._overlaps = overlap
        found = []
        for group in groups:
            for position, sampling in enumerate(group):
                engine.fill(position, prompts[position % len(prompts)])
                engine.generate(position, sampling)
            lines: dict[int, list[Any]] = {position: [] for position in range(len(group))}
            while engine.has_work:
                for update in engine.step():
                    if update.tokens:
                        lines[update.context].append((update.tokens, update.text, update.finish, update.logprobs))
                engine.check_integrity()
            texts = [list(engine._sequences[position].tokens) for position in range(len(group))]
            for position in range(len(group)):
                engine.free_context(position)
            found.append((lines, texts))
        return found

    assert updates_of(True) == updates_of(False)


@pytest.fixture
def overlapping(engine: Engine) -> Iterator[None]:
    """Restore the engine after the test."""
    before = engine._overlaps
    yield
    engine._overlaps = before


def test_overlapping_step_starts_before_the_previous_one_is_read(
    engine: Engine, prompts: list[list[int]], overlapping: None
) -> None:
    engine._overlaps = True
    engine.fill(1, prompts[0])
    engine.generate(1, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    assert engine.step() == [], "the prompt's step has only started"
    seen = [sum(len(update.tokens) for update in engine.step()) for _ in range(4)]
    assert seen == [1, 1, 1, 1]
    assert not engine.has_work, "no step started for a token beyond the limit"
    engine.free_context(1)


def test_free_takes_effect_within_a_step(engine: Engine, prompts: list[list[int]]) -> None:
    free = engine.free_tokens
    engine.fill(1, prompts[0])
    engine.generate(1, SamplingParams(max_tokens=500, ignore_eos=True))
    engine.step()
    engine.free_context(1)
    assert not engine.has_work
    assert engine.free_tokens == free
    assert engine.step() == []
    engine.free_context(1)


# rejected commands


@pytest.mark.parametrize(
    ("tokens", "sampling", "code"),
    [
        ([1] * 8200, GREEDY, "context_length_exceeded"),
        ([49_152], GREEDY, "bad_token"),
        ([-1], GREEDY, "bad_token"),
        ([], GREEDY, "empty_context"),
        ([5], SamplingParams(logit_bias={99_999: 1.0}), "bad_token"),
        ([5], SamplingParams(stop_token_ids=(99_999,)), "bad_token"),
    ],
)
def test_impossible_commands_are_rejected(
    engine: Engine, tokens: list[int], sampling: SamplingParams, code: str
) -> None:
    with pytest.raises(ContextError) as refusal:
        engine.fill(1, tokens)
        engine.generate(1, sampling)
    assert refusal.value.code == code
    engine.free_context(1)
    assert not engine.has_work


def test_commands_out_of_order_are_rejected(engine: Engine, prompts: list[list[int]]) -> None:
    with pytest.raises(ContextError, match="context 5 does not exist"):
        engine.generate(5, GREEDY)
    engine.fill(1, prompts[0])
    engine.generate(1, GREEDY)
    with pytest.raises(ContextError, match="is generating"):
        engine.fill(1, [5])
    with pytest.raises(ContextError, match="already generating"):
        engine.generate(1, GREEDY)
    with pytest.raises(ContextError, match="exists already"):
        engine.fill(1, [], parent=1)
    engine.free_context(1)


def test_generation_ends_at_the_window(tiny_engine: Engine) -> None:
    window = tiny_engine.info.window
    tiny_engine.fill(1, [3 + i % 50 for i in range(window - 3)])
    tiny_engine.generate(1, SamplingParams(ignore_eos=True))
    tokens, _, finish = collect(tiny_engine, 1)
    assert (len(tokens), finish) == (3, "length")
    tiny_engine.free_context(1)


def test_failed_step_is_reported_and_leaves_no_state(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("out of luck")

    engine.fill(1, prompts[5], scope="fails")
    engine.generate(1, GREEDY)
    with monkeypatch.context() as patched:
        patched.setattr(engine.decoder, "forward", broken)
        (update,) = engine.step()
    assert update.error is not None
    assert update.error[0] == "step_failed"
    assert "out of luck" in update.error[1]
    assert not engine.has_work
    engine.check_integrity()
    assert run(engine, [prompts[5]], GREEDY)[0]


@pytest.mark.usefixtures("batch_invariant")
def test_nan_logits_fail_only_their_request(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = engine.decoder.forward

    def poisoned(*arguments: Any) -> torch.Tensor:
        logits = forward(*arguments).clone()
        if len(logits) == 2 and not errors:  # later, two rows may be a token and a draft of the other request
            logits[0] = float(np.nan)
        return logits

    errors: dict[int, str] = {}
    answer: list[int] = []
    (expected,) = run(engine, [prompts[1]], GREEDY)
    monkeypatch.setattr(engine.decoder, "forward", poisoned)
    for context in (1, 2):
        engine.fill(context, prompts[context - 1])
        engine.generate(context, GREEDY)
    while engine.has_work:
        for update in engine.step():
            if update.error is not None:
                errors[update.context] = update.error[0]
            elif update.context == 2:
                answer += update.tokens
    engine.free_context(2)
    assert errors == {1: "bad_logits"}
    assert answer == expected
    engine.check_integrity()


# readers that are expected to return


def read_conversation(
    engine: Engine, context: int, tokens: list[int], *, pausable: bool = False
) -> tuple[int, LastBlock]:
    """Fill a context, generate an answer of one token, and free it. Return how many of its tokens were cached, and the
    record of the free."""
    engine.fill(context, tokens, pausable=pausable)
    engine.generate(context, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
    cached = 0
    while engine.has_work:
        cached += sum(update.cached for update in engine.step())
    last_block = engine.free_context(context)
    assert last_block is not None
    engine.check_integrity()
    return cached, last_block


def cached_tokens(engine: Engine, tokens: list[int]) -> int:
    """Return how many of the tokens the tree has."""
    node, size = engine.cache.root(""), engine.config.block_size
    for start in range(0, len(tokens), size):
        child = engine.cache.child(node, tuple(tokens[start : start + size]))
        if child is None:
            return start
        node = child
    return len(tokens)


@pytest.mark.parametrize("late", [False, True])
def test_pool_retains_the_conversation_that_is_expected_soon(tmp_path: Path, late: bool) -> None:
    """Fill the pool with two conversations; another text then needs the room of one. Without an expectation, the one
    that was read last would stay."""
    engine = Engine(EngineConfig(model=str(write_tiny_llama(tmp_path, window=512)), kv_tokens=512))
    seconds = 0.0
    engine.cache._eviction_policy = EvictionPolicy(32, now=lambda: seconds)
    for context in range(1, 9):  # two turns of the pool, 16 blocks a second
        read_conversation(engine, context, [30 + context] * 128)
        seconds += 0.5
    awaited, other, short, new = [200] * 240, [210] * 240, [220] * 32, [230] * 240
    order = (other, awaited) if late else (awaited, other)
    last_blocks = {tokens[0]: read_conversation(engine, 10, tokens)[1] for tokens in order}
    engine.retain(last_blocks[200], [0.5, 1.0, 1.0])
    engine.retain(last_blocks[210], [])
    seconds += 3600.0 if late else 0.25
    for _ in range(32):  # the rate is that of busy times again
        seconds += 0.125
        read_conversation(engine, 11, short)
    if not late:
        engine.retain(last_blocks[200], [4.5, 5.0, 5.0])
    read_conversation(engine, 12, new)
    cached = (cached_tokens(engine, awaited), cached_tokens(engine, other))
    if late:
        assert cached == (0, 240), "the reader is an hour late"
    else:
        assert cached == (240, 0), "the reader is expected in half a second"


def test_kv_of_a_call_of_a_program_is_protected_before_the_gateway_reports_its_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a prompt wait that needs the KV of a call which has just ended, while other work runs."""
    monkeypatch.setattr("engine.admission._COUNT_SECONDS", 0.0)
    engine = Engine(EngineConfig(model=str(write_tiny_llama(tmp_path, window=512)), kv_tokens=512))

    def is_read(tokens: list[int]) -> bool:
        engine.fill(30, [240] * 32)  # other work
        engine.generate(30, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
        engine.fill(31, tokens, pausable=True)
        engine.generate(31, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
        began = False
        for _ in range(3):
            began = began or any(update.context == 31 for update in engine.step())
        engine.free_context(30)
        if (freed := engine.free_context(31)) is not None:
            engine.retain(freed, [])
        engine.check_integrity()
        return began

    _, last_block = read_conversation(engine, 10, [200] * 320, pausable=True)
    assert not is_read([210] * 320)
    assert cached_tokens(engine, [200] * 320) == 320
    engine.retain(last_block, [])
    assert is_read([210] * 320), "no reader is expected any more"
    read_conversation(engine, 11, [220] * 320)
    assert is_read([230] * 320), "a context that may not wait belongs to no program"
    engine.fill(12, [250] * 320, pausable=True)
    engine.generate(12, SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True))
    engine.step()
    engine.free_context(12)
    assert engine.cache.expected_tokens(lambda tokens, wait: True) == {}, "a call that was cancelled has no gap"


def test_kv_of_a_call_whose_gap_is_never_reported_is_not_protected_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(EngineConfig(model=str(write_tiny_llama(tmp_path, window=512)), kv_tokens=512))

    def expected() -> int:
        return sum(engine.cache.expected_tokens(lambda tokens, wait: True).values())

    _, reported = read_conversation(engine, 10, [200] * 64, pausable=True)
    engine.retain(reported, [60.0])
    read_conversation(engine, 11, [210] * 32, pausable=True)
    assert expected() == 96
    monkeypatch.setattr("engine.engine._RETAIN_SECONDS", 0.0)
    read_conversation(engine, 12, [220] * 16)
    assert expected() == 64
