"""engine/admission.py: which prompts wait so that others keep their KV."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.admission import PromptAdmission
from engine.generation import Generation
from engine.kv.cache import KVCache, LastBlock, Node
from engine.kv.eviction import EvictionPolicy
from engine.kv.pausing import MAX_PAUSE_SECONDS
from engine.sampling_params import SamplingParams
from engine.scheduler import Plan, StepScheduler
from engine.sequence import TokenSequence
from engine.step_budget import StepBudget
from engine.tokenizer import Tokenizer

BLOCKS, SIZE = 65, 4
CAPACITY = (BLOCKS - 1) * SIZE
SOON = [1.0] * 8


class Pool:
    """A pool of 256 tokens whose KV is worth its memory for some minutes, and prompts that may have to wait."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cache = KVCache(BLOCKS, SIZE, eviction_policy=EvictionPolicy(BLOCKS - 1, now=lambda: self.now))
        self.admission = PromptAdmission(self.cache, lambda: 1.0, lambda: self.now)
        self.sequences: list[TokenSequence] = []
        self._last_token = 0

    def new(self, length: int, scope: str = "", *, beginning: list[int] | None = None) -> TokenSequence:
        """Return a pausable prompt, which shares no block with others after its beginning."""
        sequence = TokenSequence(len(self.sequences), self.cache, scope, 0.0, len(self.sequences))
        sequence.is_pausable, sequence.is_admitted = True, False
        self._last_token += 1
        sequence.tokens = [*(beginning or ()), *[self._last_token] * length]
        sequence.pending_fills.append(len(sequence.tokens))
        self.sequences.append(sequence)
        return sequence

    def run(self, sequence: TokenSequence) -> None:
        """Compute a prompt."""
        sequence.adopt_cached()
        assert sequence.reserve(len(sequence.tokens)) is not None
        sequence.announce(len(sequence.tokens))
        sequence.commit(len(sequence.tokens))
        sequence.finish_fills()

    def waits(self, *sequences: TokenSequence) -> bool:
        """Ask for the sequences together. Return whether the first one must wait."""
        self.admission.admit_fitting(sequences)
        return not sequences[0].is_admitted

    def begin_tool(self, length: int, scope: str = "", returns: list[float] | None = None) -> TokenSequence:
        """Compute a prompt and free it; its reader is expected."""
        sequence = self.new(length, scope)
        self.run(sequence)
        self.free(sequence, SOON if returns is None else returns)
        return sequence

    def free(self, sequence: TokenSequence, returns: Sequence[float] = SOON) -> LastBlock:
        """Free a sequence whose reader is expected. Return the record of its last block."""
        last_block = sequence.free()
        assert last_block is not None
        self.cache.expect_reader(last_block, returns)
        return last_block


def test_a_prompt_waits_for_kv_that_is_read_soon() -> None:
    pool = Pool()
    pool.begin_tool(200)
    newcomer = pool.new(100)
    assert pool.waits(newcomer)
    assert not pool.waits(pool.new(56)), "it fits beside the rest"


def test_kv_that_is_read_late_or_by_nobody_is_no_reason_to_wait() -> None:
    pool = Pool()
    pool.begin_tool(200, returns=[1000.0] * 8)
    assert not pool.waits(pool.new(100))
    pool = Pool()
    pool.begin_tool(200, returns=[])
    assert not pool.waits(pool.new(100))


def test_kv_that_a_returned_agent_does_not_read_again_is_no_reason_to_wait() -> None:
    pool = Pool()
    first = pool.begin_tool(160)
    newcomer = pool.new(120)
    assert pool.waits(newcomer)
    turn = pool.new(0, beginning=first.tokens[:124])
    pool.run(turn)
    turn.free()
    pool.now += 1.0
    assert not pool.waits(newcomer)


def test_the_next_turn_of_an_agent_never_waits() -> None:
    pool = Pool()
    first = pool.begin_tool(100)
    pool.begin_tool(120)
    assert not pool.waits(pool.new(100, beginning=first.tokens))
    assert pool.waits(pool.new(101, beginning=first.tokens)), "less than half is cached"


def test_the_cached_beginning_of_an_admitted_prompt_is_evicted_last() -> None:
    pool = Pool()
    first = pool.begin_tool(120, returns=[])
    pool.now += 1.0
    pool.begin_tool(80)
    turn = pool.new(40, beginning=first.tokens)
    assert not pool.waits(turn)
    pool.cache.check_integrity([])
    pool.run(other := pool.new(120))
    assert pool.cache.cached_tokens("", turn.tokens) == 120, "the newer KV of the tool went first"
    pool.cache.check_integrity([other.blocks])
    other.free()
    pool.run(turn)
    assert turn.cached_tokens == 120
    pool.cache.check_integrity([turn.blocks])


def test_a_prompt_that_ends_before_its_first_step_protects_nothing_any_more() -> None:
    pool = Pool()
    first = pool.begin_tool(120, returns=[])
    turn = pool.new(40, beginning=first.tokens)
    assert not pool.waits(turn)
    assert turn.free() is None, "it computed nothing"
    pool.cache.check_integrity([])
    pool.run(pool.new(CAPACITY - 60))
    assert pool.cache.cached_tokens("", first.tokens) == 60


def test_a_prompt_that_is_longer_than_the_lookups_of_a_step_protects_its_cached_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.admission._LOOKUP_TOKENS", 50)
    pool = Pool()
    first = pool.begin_tool(120, returns=[])
    turn = pool.new(40, beginning=first.tokens)
    assert not pool.waits(turn)
    pool.run(pool.new(136))
    assert pool.cache.cached_tokens("", turn.tokens) == 120


def test_prompts_protect_no_more_than_the_lookups_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.admission._LOOKUP_TOKENS", 200)
    pool = Pool()
    first = pool.begin_tool(80, returns=[])
    turns = [pool.new(20, beginning=first.tokens) for _ in range(6)]
    pool.admission.admit_fitting(turns)
    node, cached = pool.cache.cached_path("", first.tokens)
    assert cached == 80
    assert node.return_count <= 200 // 80 + 1
    pool.cache.check_integrity([])


def test_a_prompt_that_fits_is_admitted_for_good() -> None:
    pool = Pool()
    newcomer = pool.new(100)
    assert not pool.waits(newcomer)
    pool.begin_tool(200)
    assert not pool.waits(newcomer)


def test_a_prompt_that_waits_is_admitted_once_the_kv_is_read_or_its_beginning_is_cached() -> None:
    pool = Pool()
    agent = pool.begin_tool(200)
    waiting = pool.new(104)
    similar = pool.new(100, beginning=[1000] * 100)
    assert pool.waits(waiting)
    assert pool.waits(similar)
    other = pool.new(0, beginning=[1000] * 100)
    pool.run(other)  # evicts some blocks of the agent
    assert pool.waits(similar), "the beginning was looked up just before"
    pool.now += 1.0
    assert not pool.waits(similar)
    other.free()
    assert pool.waits(waiting)
    pool.now += 0.1
    turn = pool.new(4, beginning=agent.tokens[:100])
    pool.run(turn)
    turn.free()
    assert not pool.waits(waiting)


def test_no_prompt_waits_longer_than_the_limit() -> None:
    pool = Pool()
    newcomer = pool.new(100)
    for _ in range(int(MAX_PAUSE_SECONDS)):
        pool.begin_tool(200)
        pool.now += 1.0
        if not pool.waits(newcomer):
            break
        pool.begin_tool(200)
    assert pool.now >= MAX_PAUSE_SECONDS - 1
    pool.now += 1.0
    assert not pool.waits(newcomer)


def test_an_owner_that_holds_less_than_its_share_never_waits_for_others() -> None:
    pool = Pool()
    pool.begin_tool(250, scope="greedy")
    assert not pool.waits(pool.new(CAPACITY // 2, scope="modest"))
    assert pool.waits(pool.new(CAPACITY // 2 + 1, scope="modest"))
    assert pool.waits(pool.new(100, scope="greedy"))


def test_an_owner_below_its_share_waits_only_for_what_runs() -> None:
    pool = Pool()
    running = pool.new(140, scope="greedy")
    pool.run(running)
    pool.begin_tool(100, scope="greedy")
    assert not pool.waits(pool.new(110, scope="modest"))


def test_running_calls_count_towards_the_share_of_their_owner() -> None:
    pool = Pool()
    running = pool.new(100, scope="first")
    pool.run(running)
    pool.begin_tool(100, scope="second")
    small, large = pool.new(28, scope="first"), pool.new(60, scope="first")
    pool.admission.admit_fitting([small], [running])
    assert small.is_admitted
    pool.admission.admit_fitting([large], [running])
    assert not large.is_admitted, "it would exceed half of the pool, and evict KV of the other owner"


_AMOUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, CAPACITY // SIZE // 3), min_size=2)


@given(running=_AMOUNTS, protected=_AMOUNTS, prompts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(3, 40))))
def test_prompts_within_a_share_are_admitted_and_others_only_if_all_fits(
    running: dict[str, int], protected: dict[str, int], prompts: list[tuple[str, int]]
) -> None:
    """Give all amounts in blocks. Prompts below 3 blocks are small, and need not wait."""
    pool = Pool()
    owners = running.keys() | protected.keys() | {owner for owner, _ in prompts}
    share = (BLOCKS - 1) // len(owners)
    amounts, holders = Counter[str](), []
    for owner, blocks in running.items():
        if 0 < blocks <= share:
            amounts[owner] += blocks
            pool.run(holder := pool.new(blocks * SIZE, owner))
            holders.append(holder)
    for owner, blocks in protected.items():
        blocks = min(blocks, share - amounts[owner])
        if blocks:
            pool.begin_tool(blocks * SIZE, owner)
            amounts[owner] += blocks
    newcomers = [pool.new(blocks * SIZE, owner) for owner, blocks in prompts]
    pool.admission.admit_fitting(newcomers, holders)
    protects = bool(pool.cache.expected_tokens(lambda tokens, wait: True))
    for newcomer, (owner, blocks) in zip(newcomers, prompts, strict=True):
        if not newcomer.is_admitted:
            assert amounts[owner] + blocks > share
            continue
        amounts[owner] += blocks
        if protects and amounts.total() > BLOCKS - 1:
            largest_share = (BLOCKS - 1) // sum(amount > 2 for amount in amounts.values())
            exceeding = [other for other, amount in amounts.items() if amount > largest_share]
            assert exceeding != [owner], "only this prompt exceeds a share, and it does not fit beside all others"


def test_many_small_owners_hardly_reduce_the_share_of_another() -> None:
    pool = Pool()
    running = [pool.new(4, scope=f"small {number}") for number in range(7)]
    for sequence in running:
        pool.run(sequence)
    pool.begin_tool(190, scope="greedy")
    newcomer = pool.new(60, scope="modest")
    pool.admission.admit_fitting([newcomer], running)
    assert newcomer.is_admitted


def test_blocks_that_contexts_share_count_once() -> None:
    pool = Pool()
    first = pool.new(48, scope="modest")
    pool.run(first)
    running = [first]
    for _ in range(6):
        running.append(pool.new(4, scope="modest", beginning=first.tokens))
        pool.run(running[-1])
    pool.begin_tool(168, scope="greedy")
    newcomer = pool.new(48, scope="modest")
    pool.admission.admit_fitting([newcomer], running)
    assert newcomer.is_admitted, "with it, the owner has 120 of 256 tokens"


def test_a_turn_that_waits_for_its_first_step_counts_once() -> None:
    pool = Pool()
    agent = pool.begin_tool(60, scope="modest")
    pool.begin_tool(190, scope="greedy")
    turn, newcomer = pool.new(8, scope="modest", beginning=agent.tokens), pool.new(24, scope="modest")
    for _ in range(2):
        pool.admission.admit_fitting([turn, newcomer])
        assert turn.is_admitted
        assert newcomer.is_admitted, "with both, the owner has 92 of 256 tokens"
        newcomer.is_admitted = False


def test_prompts_of_one_owner_do_not_count_without_limit_for_another() -> None:
    pool = Pool()
    pool.begin_tool(80, scope="modest")
    prompts = [pool.new(8, scope="greedy") for _ in range(100)]
    newcomer = pool.new(40, scope="modest")
    pool.admission.admit_fitting([*prompts, newcomer])
    assert all(prompt.is_admitted for prompt in prompts), "they are small"
    assert newcomer.is_admitted


def test_scopes_of_one_owner_have_one_share() -> None:
    pool = Pool()
    for number in range(6):
        pool.begin_tool(40, scope=f"greedy\0salt {number}")
    assert not pool.waits(pool.new(CAPACITY // 2, scope="modest"))


def test_without_protected_kv_a_prompt_is_admitted_for_one_step_only() -> None:
    """Otherwise it would evict the KV of the call that runs now, once that call ends."""
    pool = Pool()
    pool.begin_tool(200, returns=[])
    agent, newcomer = pool.new(200), pool.new(200)
    pool.waits(agent, newcomer)
    assert agent.is_admitted
    assert newcomer.is_admitted, "the scheduler lets it wait for memory"
    pool.run(agent)
    assert not pool.waits(newcomer)
    last_block = pool.free(agent)
    assert pool.waits(newcomer)
    pool.cache.expect_reader(last_block, [])
    pool.now += 1.0
    assert not pool.waits(newcomer)


def test_a_prompt_that_begins_in_its_step_does_not_wait_again() -> None:
    pool = Pool()
    other, newcomer = pool.new(160), pool.new(140)
    pool.run(other)
    assert not pool.waits(newcomer)
    other.drop_blocks()  # the scheduler preempts it
    pool.run(newcomer)
    pool.begin_tool(100)
    newcomer.drop_blocks()
    assert not pool.waits(newcomer)


def test_a_prompt_that_only_took_cached_blocks_in_its_step_waits_again() -> None:
    pool = Pool()
    pool.begin_tool(60, returns=[])
    agent, newcomer = pool.new(120), pool.new(140, beginning=[1] * 60)
    pool.run(agent)
    assert not pool.waits(newcomer)
    newcomer.adopt_cached()
    assert newcomer.blocks
    pool.free(agent)
    assert pool.waits(newcomer)


def test_a_prompt_waits_while_a_call_that_has_ended_is_not_freed_yet() -> None:
    pool = Pool()
    agent, newcomer = pool.new(200), pool.new(140)
    pool.run(agent)
    pool.admission.admit_fitting([newcomer], [agent, newcomer])
    assert not newcomer.is_admitted
    agent.is_pausable = False  # it belongs to no program
    pool.admission.admit_fitting([newcomer], [agent, newcomer])
    assert newcomer.is_admitted


def test_kv_is_protected_as_soon_as_its_reader_is_expected() -> None:
    """Between two steps no time passes: a count of protected KV that is some milliseconds old would miss it."""
    pool = Pool()
    pool.begin_tool(40)
    agent = pool.new(100)
    pool.run(agent)
    newcomer = pool.new(140)
    assert pool.waits(newcomer)
    pool.free(agent)
    assert pool.waits(newcomer)


def test_memory_of_contexts_without_work_is_no_room_beside_protected_kv() -> None:
    """Count only cold blocks as room: the scheduler takes those of contexts without work after all cold ones."""
    pool = Pool()
    idle = pool.new(100)
    idle.is_pausable = False
    pool.run(idle)
    pool.begin_tool(100)
    newcomer = pool.new(120)
    pool.admission.admit_fitting([newcomer], [idle, newcomer])
    assert not newcomer.is_admitted


def test_prompts_of_another_owner_are_no_reason_to_wait_below_the_share() -> None:
    pool = Pool()
    pool.begin_tool(100, scope="modest")
    admitted = pool.new(140, scope="greedy")
    admitted.is_admitted = True
    newcomer = pool.new(28, scope="modest")
    pool.admission.admit_fitting([admitted, newcomer])
    assert newcomer.is_admitted
    newcomer = pool.new(100, scope="modest")
    pool.admission.admit_fitting([admitted, newcomer])
    assert not newcomer.is_admitted, "with it, the owner has more than half of the pool"


def test_prompts_that_need_not_wait_count_for_prompts_of_the_same_step() -> None:
    for length, waits in (60, False), (80, True):
        pool = Pool()
        agent = pool.begin_tool(100)
        turn, newcomer = pool.new(90, beginning=agent.tokens), pool.new(length)
        pool.waits(turn, newcomer)
        assert turn.is_admitted, "more than half of it is cached"
        assert newcomer.is_admitted is not waits, f"100 tokens are protected, the turn needs 90 more, and it {length}"


def test_prompts_that_are_admitted_together_fit_together() -> None:
    pool = Pool()
    pool.begin_tool(100)
    first, second, third = pool.new(100), pool.new(100), pool.new(50)
    pool.waits(first, second, third)
    assert [sequence.is_admitted for sequence in (first, second, third)] == [True, False, True]
    pool.waits(first, third, second)
    assert not second.is_admitted
    for sequence in (first, third):
        pool.run(sequence)
    assert pool.waits(second)
    first.free()
    assert not pool.waits(second)


def test_the_lookups_of_a_step_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.admission._LOOKUP_TOKENS", 100)
    pool = Pool()
    agent = pool.begin_tool(200)
    prompts = [pool.new(180, beginning=agent.tokens[:80]) for _ in range(6)]
    looked_up: list[int] = []
    cached_path = pool.cache.cached_path

    def counted(scope: str, tokens: Sequence[int]) -> tuple[Node, int]:
        looked_up.append(len(tokens))
        return cached_path(scope, tokens)

    monkeypatch.setattr(pool.cache, "cached_path", counted)
    counts = []
    for _ in range(4):
        looked_up.clear()
        pool.admission.admit_fitting(prompts)
        counts.append(len(looked_up))
    assert counts == [2, 2, 2, 0]
    assert not any(prompt.is_admitted for prompt in prompts)


def test_a_prompt_that_no_lookup_reaches_does_not_wait_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.admission._LOOKUP_TOKENS", 0)
    pool = Pool()
    pool.begin_tool(200)
    prompt = pool.new(100)
    assert pool.waits(prompt)
    assert not pool.waits(pool.new(8)), "it is small"
    pool.now += MAX_PAUSE_SECONDS
    pool.begin_tool(200)
    assert not pool.waits(prompt)


def test_prompts_that_are_looked_up_again_keep_out_no_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.admission._LOOKUP_TOKENS", 200)
    pool = Pool()
    agent = pool.begin_tool(200)
    prompts = [pool.new(180, beginning=agent.tokens[:80]) for _ in range(6)]
    for _ in range(3):
        pool.admission.admit_fitting(prompts)
    turn = pool.new(20, beginning=agent.tokens[:160])
    pool.now += 1.0
    pool.admission.admit_fitting([*prompts, turn])
    assert turn.is_admitted


@given(
    tools=st.lists(
        st.tuples(st.integers(4, 60), st.sampled_from("abc"), st.sampled_from([[1.0] * 8, [400.0] * 3, []])), max_size=8
    ),
    length=st.integers(1, CAPACITY),
    scope=st.sampled_from("abcd"),
)
def test_no_prompt_waits_that_fits_beside_all_kv_in_the_pool(
    tools: list[tuple[int, str, list[float]]], length: int, scope: str
) -> None:
    pool = Pool()
    for size, owner, returns in tools:
        pool.begin_tool(size, owner, returns)
    waits = pool.waits(pool.new(length, scope))
    everything = sum(size for size, _, _ in tools)
    if length + everything <= CAPACITY:
        assert not waits
    if waits:
        assert any(returns for _, _, returns in tools)
        assert length * 32 > CAPACITY
        pool.now += MAX_PAUSE_SECONDS
        assert not pool.waits(pool.sequences[-1])


class Steps:
    """Pool with a step scheduler."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.pool = Pool()
        self.scheduler = StepScheduler(self.pool.cache, 32, 8, admission=self.pool.admission)
        self._tokenizer = tokenizer

    def generate(self, sequence: TokenSequence) -> TokenSequence:
        sequence.generation = Generation(SamplingParams(), self._tokenizer, [], 100)
        return sequence

    def step(self, *sequences: TokenSequence) -> Plan:
        plan = self.scheduler.plan(sequences)
        for chunk in plan.chunks:
            chunk.sequence.commit(chunk.end)
            chunk.sequence.finish_fills()
            if chunk.samples and chunk.sequence.generation is not None:
                chunk.sequence.tokens.append(1)
                chunk.sequence.generation.push(1)
        return plan


def test_a_prompt_that_waits_delays_no_decoding(tokenizer: Tokenizer) -> None:
    steps = Steps(tokenizer)
    budget = StepBudget(decode_share=0.65, max_step_seconds=0.001)
    budget.row_seconds = 0.01  # so that one background sequence decodes beside an interactive prompt
    steps.scheduler = StepScheduler(steps.pool.cache, 32, 8, budget, admission=steps.pool.admission)
    steps.pool.begin_tool(200)
    decoders = [steps.generate(steps.pool.new(4)) for _ in range(6)]
    for decoder in decoders:
        decoder.is_interactive = False
        decoder.is_admitted = True
    while not all(decoder.is_decoding for decoder in decoders):
        steps.step(*decoders)
    newcomer = steps.generate(steps.pool.new(100))
    plan = steps.step(*decoders, newcomer)
    assert plan.decoding == 6
    assert newcomer in plan.out_of_memory
    newcomer.is_admitted = True
    assert steps.step(*decoders, newcomer).decoding < 6, "a prompt with a waiting client does"


def test_others_overtake_a_prompt_that_waits_and_an_engine_without_other_work_admits_it(tokenizer: Tokenizer) -> None:
    steps = Steps(tokenizer)
    agent = steps.pool.begin_tool(200)
    newcomer, second = steps.generate(steps.pool.new(100)), steps.generate(steps.pool.new(100))
    turn = steps.generate(steps.pool.new(20, beginning=agent.tokens))
    plan = steps.step(newcomer, second, turn)
    assert [chunk.sequence for chunk in plan.chunks] == [turn]
    assert plan.out_of_memory == [newcomer, second], "clients see that it waits for memory"
    plan = steps.step(newcomer, second, turn)
    assert [chunk.sequence for chunk in plan.chunks] == [turn]
    turn.generation = None
    steps.pool.free(turn)
    plan = steps.step(newcomer, second)
    assert [chunk.sequence for chunk in plan.chunks] == [newcomer]
    assert plan.out_of_memory == [second]


def test_without_protected_kv_no_prompt_overtakes_one_that_does_not_fit(tokenizer: Tokenizer) -> None:
    """Otherwise small prompts could take the room of a large one until its pause ends."""
    steps = Steps(tokenizer)
    running = [steps.generate(steps.pool.new(100)) for _ in range(2)]
    while not all(sequence.is_decoding for sequence in running):
        steps.step(*running)
    large, small = steps.generate(steps.pool.new(100)), steps.generate(steps.pool.new(20))
    plan = steps.step(*running, large, small)
    assert plan.out_of_memory == [large, small]
    running[0].free()
    plan = steps.step(running[1], large, small)
    assert large in [chunk.sequence for chunk in plan.chunks]
    steps.pool.begin_tool(20)
    assert large in [chunk.sequence for chunk in steps.step(running[1], large, small).chunks], "it has begun"


def test_a_less_urgent_prompt_waits_for_the_calls_that_run_and_then_for_their_kv(tokenizer: Tokenizer) -> None:
    steps = Steps(tokenizer)
    agent = steps.generate(steps.pool.new(160))
    while not agent.is_decoding:
        steps.step(agent)
    newcomer = steps.generate(steps.pool.new(140))
    for _ in range(3):
        plan = steps.step(agent, newcomer)
        assert [chunk.sequence for chunk in plan.chunks] == [agent]
        assert plan.out_of_memory == [newcomer]
    agent.generation = None  # its answer is complete
    other = steps.generate(steps.pool.new(8))
    assert steps.step(agent, newcomer, other).out_of_memory == [newcomer]
    steps.pool.free(agent)
    assert steps.step(newcomer, other).out_of_memory == [newcomer]
    assert steps.pool.cache.cached_tokens("", agent.tokens) >= 160
