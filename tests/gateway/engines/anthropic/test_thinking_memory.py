"""gateway/engines/anthropic/thinking_memory.py: which answer has which thinking blocks, within bounds."""

import random

from gateway.engines.anthropic.thinking_memory import Block, ThinkingMemory, answer_key


def block(text: str) -> Block:
    return {"type": "thinking", "thinking": text, "signature": "s" * 10}


def test_an_answer_is_found_by_its_text_and_its_tool_calls() -> None:
    key = answer_key("Let me  look.\n", [("look", {"a": 1, "b": [2]})])
    assert key == answer_key(" Let me look.", [("look", {"b": [2], "a": 1})])
    others = [
        answer_key("Let me look", [("look", {"a": 1, "b": [2]})]),
        answer_key("Let me look.", [("look", {"a": 1, "b": [3]})]),
        answer_key("Let me look.", [("see", {"a": 1, "b": [2]})]),
        answer_key("Let me look.", []),
        answer_key("Let me look.", [("look", {"a": 1, "b": [2]})] * 2),
    ]
    assert len({key, *others}) == 6


def test_answers_belong_to_a_tenant() -> None:
    memory = ThinkingMemory()
    memory.remember("ann", b"1", [block("a")])
    memory.remember("bob", b"1", [block("b"), block("c")])
    assert memory.recall("ann", b"1") == [block("a")]
    assert memory.recall("bob", b"1") == [block("b"), block("c")]
    assert memory.recall("ann", b"2") == memory.recall("cid", b"1") == ()
    memory.remember("ann", b"1", [block("newer")])
    assert memory.recall("ann", b"1") == [block("newer")]


def test_the_oldest_answers_and_idle_tenants_are_forgotten() -> None:
    memory = ThinkingMemory(tenant_bytes=2_000, tenants=3)
    for number in range(100):
        memory.remember("greedy", b"%d" % number, [block("x" * 100)])
        if number == 50:
            memory.remember("other", b"1", [block("y")])
    assert memory.recall("greedy", b"99")
    assert not memory.recall("greedy", b"80")
    assert memory.recall("other", b"1"), "one tenant does not displace another's"
    memory.remember("greedy", b"huge", [block("x" * 3_000)])
    assert not memory.recall("greedy", b"huge"), "it does not fit"
    for tenant in "abc":
        memory.remember(tenant, b"1", [block("z")])
    assert not memory.recall("other", b"1")
    assert set(memory._sizes) == set(memory._blocks) == set("abc")


def test_sizes_are_counted_exactly() -> None:
    memory = ThinkingMemory(tenant_bytes=5_000, tenants=4)
    picked = random.Random(0)
    for _ in range(2_000):
        key = b"%d" % picked.randrange(30)
        memory.remember(picked.choice("abcdef"), key, [block("x" * picked.randrange(600))])
        for tenant, answers in memory._blocks.items():
            assert memory._sizes[tenant] == sum(size for _, size in answers.values()) <= 5_000
        assert len(memory._blocks) <= 4


def test_empty_blocks_have_a_size() -> None:
    memory = ThinkingMemory(tenant_bytes=10_000)
    memory.remember("ann", b"1", [{"type": "redacted_thinking", "data": ""}] * 1_000)
    assert memory.recall("ann", b"1") == ()
