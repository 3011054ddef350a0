"""gateway/api/conversations.py: what is kept, and that it is counted right whatever is gone on with and forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from compat.openai import Message
from gateway.api.conversations import Conversations, Kept


def kept(id: str, before: Kept | None = None, length: int = 1) -> Kept:
    return Kept("", id, b"{}", [Message(role="user", content="x" * length)], before)


def reachable(conversations: Conversations) -> int:
    """Bytes of all that is held, counted from nothing."""
    seen: dict[int, int] = {}
    for one in conversations._kept.values():
        at: Kept | None = one
        while at is not None:
            seen[id(at)] = at.size
            at = at.before
    return sum(seen.values())


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.integers(0, 20), st.integers(1, 4_000)),
        st.tuples(st.just("forget"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("find"), st.integers(0, 20), st.just(0)),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_it_counts_what_it_holds(operations: list[tuple[str, int, int]]) -> None:
    conversations = Conversations(60_000)
    for number, (what, which, length) in enumerate(operations):
        match what:
            case "keep":
                before = conversations.find("", str(which))
                conversations.keep(kept(str(number), before, length))
            case "forget":
                there = conversations.find("", str(which)) is not None
                assert conversations.forget("", str(which)) == there
                assert conversations.find("", str(which)) is None
            case _:
                conversations.find("", str(which))
        assert conversations.bytes == reachable(conversations) <= conversations.max_bytes


def test_what_was_used_last_stays() -> None:
    conversations = Conversations(3 * kept("a").size)
    for id in "abc":
        conversations.keep(kept(id))
    conversations.find("", "a")
    conversations.keep(kept("d"))
    assert [id for id in "abcd" if conversations.find("", id)] == ["a", "c", "d"]


def test_what_came_before_stays_with_what_goes_on() -> None:
    conversations = Conversations(1 << 20)
    first = kept("first")
    conversations.keep(first)
    conversations.keep(kept("second", first))
    assert conversations.forget("", "first")
    second = conversations.find("", "second")
    assert second is not None
    assert len(second.conversation) == 2
    assert conversations.forget("", "second")
    assert conversations.bytes == 0


def test_what_is_too_large_by_itself_is_not_kept() -> None:
    conversations = Conversations(5_000)
    conversations.keep(kept("large", length=5_000))
    assert conversations.find("", "large") is None
    assert conversations.bytes == 0


def test_a_conversation_that_was_given_up_is_held_again_by_what_goes_on_with_it() -> None:
    conversations = Conversations(1 << 30)
    last: Kept | None = None
    for number in range(3_000):
        last = kept(str(number), last)
        conversations.keep(last)
    whole = conversations.bytes
    for number in range(3_000):
        assert conversations.forget("", str(number))
    assert conversations.bytes == 0
    conversations.keep(kept("after", last))
    assert conversations.bytes == whole + kept("after").size
    assert conversations.bytes == reachable(conversations)
