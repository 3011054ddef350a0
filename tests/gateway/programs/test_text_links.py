"""gateway/programs/text_links.py: each common text of 40 characters is found, and nothing else is a link."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.programs import text_links, text_windows
from gateway.programs.text_links import MIN_CHARACTERS, TextLinks

LETTERS = st.text(st.sampled_from("ab"), max_size=200)
"""Texts that repeat themselves."""


@pytest.fixture
def compared() -> Iterator[mock.Mock]:
    """Count the comparisons of texts."""
    with mock.patch.object(text_links, "_range_around", wraps=text_links._range_around) as counted:
        yield counted


def links(max_bytes: int = 1 << 24) -> TextLinks[str]:
    return TextLinks(max_bytes)


def random_text(pick: random.Random, length: int, alphabet: str = "abcdefghijklmnopqrstuvwxyz ") -> str:
    return "".join(pick.choices(alphabet, k=length))


def has_common_text(first: str, second: str) -> bool:
    pieces = {first[i : i + MIN_CHARACTERS] for i in range(len(first) - MIN_CHARACTERS + 1)}
    return any(second[i : i + MIN_CHARACTERS] in pieces for i in range(len(second) - MIN_CHARACTERS + 1))


@settings(max_examples=300)
@given(st.integers(0, 1 << 30), st.integers(40, 600), st.data())
def test_every_part_of_40_characters_is_found(seed: int, length: int, data: st.DataObject) -> None:
    answer = random_text(random.Random(seed), length, "abcdefghij é漢🙂\n")
    answer = f"x{answer[1:-1]}x"  # white space around an answer does not count
    begin = data.draw(st.integers(0, length - MIN_CHARACTERS))
    end = data.draw(st.integers(begin + MIN_CHARACTERS, length))
    before, after = data.draw(st.text("0123456789", max_size=70)), data.draw(st.text("0123456789", max_size=70))
    index = links()
    index.add("t", "call", [answer])
    (link,) = index.find("t", [before + answer[begin:end] + after])
    assert link.source == "call"
    assert link.length == end - begin
    assert link.share == pytest.approx((end - begin) / length)


@settings(max_examples=300)
@given(LETTERS, LETTERS)
def test_a_link_is_found_exactly_if_there_is_a_common_text(answer: str, prompt: str) -> None:
    index = links()
    index.add("t", "call", [answer])
    found = index.find("t", [prompt])
    stripped = answer.strip()
    is_whole = len(stripped) >= text_links.MIN_WHOLE_CHARACTERS and stripped == prompt.strip()
    assert bool(found) == (is_whole or has_common_text(stripped, prompt))


@settings(max_examples=50)
@given(st.integers(0, 1 << 30))
def test_random_texts_have_no_links(seed: int) -> None:
    pick = random.Random(seed)
    index = links()
    for number in range(20):
        index.add("t", f"call {number}", [random_text(pick, 400)])
    assert index.find("t", [random_text(pick, 5_000)]) == []


def test_short_answers_are_links_only_as_whole_texts() -> None:
    index = links()
    index.add("t", "short", ["  the capital is Paris \n"])
    index.add("t", "shorter", ["Paris"])
    assert [link.source for link in index.find("t", ["the capital is Paris"])] == ["short"]
    assert index.find("t", ["I believe that the capital is Paris", "Paris"]) == []


def test_a_whole_prompt_inside_an_answer_is_recognised() -> None:
    prompt = "Look through the tests and list those that wait for a timeout."
    index = links()
    index.add("t", "call", [f"I start an agent. {prompt} Then I read its list."])
    (link,) = index.find("t", [prompt])
    assert link.is_prompt
    (link,) = index.find("t", [f"{prompt} And more, which the answer does not have."])
    assert not link.is_prompt


def test_text_that_an_answer_copied_from_its_prompt_is_no_link() -> None:
    template = "Rate the text above. Answer in the form: sentiment is positive, negative or neutral, and why."
    index = links()
    own = "It is negative because the writer waited for three weeks and got nothing."
    index.add("t", "call", [f"{template} {own}"], [f"A text. {template}"])
    assert index.find("t", [f"Another text. {template}"]) == []
    assert [link.source for link in index.find("t", [f"Summarise: {own}"])] == ["call"]
    index.add("t", "echo", [template], [f"A text. {template}"])
    assert index.find("t", [template]) == []


@given(st.integers(0, 1 << 30), st.integers(40, 200), st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_text_that_an_answer_copied_several_times_is_no_link(seed: int, length: int, gaps: list[int]) -> None:
    pick = random.Random(seed)
    copied = random_text(pick, length)
    answer = "".join(random_text(pick, gap, "0123456789") + copied for gap in gaps)
    index = links()
    index.add("t", "call", [answer], [f"{random_text(pick, length % 7)}{copied} Repeat it."])
    assert index.find("t", [f"Once more: {copied}"]) == []


def test_a_part_of_a_text_that_an_answer_copied_does_not_lead_to_it() -> None:
    copied = "Find every test that waits for a timeout, and say which can be made faster."
    index = links()
    index.add("t", "call", [f"You say: {copied} Which test waits for a timeout, and say which?"], [copied])
    assert index.find("t", [f"Once more: {copied}"]) == []
    own = "So I find every test that waits for a file, and then I stop."
    index.add("t", "own", [f"{copied} {own}"], [copied])
    assert [link.source for link in index.find("t", [own])] == ["own"]


@settings(max_examples=300)
@given(LETTERS, st.lists(LETTERS, max_size=3))
def test_exactly_the_common_texts_are_copied(answer: str, prompt: list[str]) -> None:
    hashes = text_windows.hash_indexed_windows(answer, len(answer))
    copied = text_links._copied(answer, hashes, prompt, [1 << 20])
    expected = bytearray(len(answer))
    for start in range(len(answer) - MIN_CHARACTERS + 1):
        if any(answer[start : start + MIN_CHARACTERS] in text for text in prompt):
            expected[start : start + MIN_CHARACTERS] = b"\1" * MIN_CHARACTERS
    assert (copied or bytes(len(answer))) == expected


def test_texts_of_one_call_are_not_common() -> None:
    text = "Find every test that waits for a timeout, and say which can be made faster."
    index: TextLinks[tuple[str, int]] = TextLinks(1 << 24, owner_of=lambda source: source[0])
    index.add("t", ("call", 1), [f"I say this to my agent: {text}", text])
    index.add("t", ("call", 2), [text, f"{text} Be brief."])
    for prompt in (text, f"A task. {text}"):
        assert {link.source: link.is_common for link in index.find("t", [prompt])} == {
            ("call", 1): False,
            ("call", 2): False,
        }
    index.add("t", ("another", 1), [f"{text} again"])
    assert {link.is_common for link in index.find("t", [f"A task. {text}"])} == {True}


def test_answers_that_several_calls_gave_are_common() -> None:
    text = "I am sorry, but the document does not say anything about this."
    index = links()
    index.add("t", "first", [text])
    assert [link.is_common for link in index.find("t", [text])] == [False]
    index.add("t", "second", [text])
    assert [link.is_common for link in index.find("t", [f"Context: {text}"])] == [True, True]


def test_a_part_that_several_answers_have_is_common() -> None:
    phrase = "this is what I have found in the documents that you gave me: "
    index = links()
    for number, own in enumerate(
        ("the harbour was built in 1902 by three brothers", "there were nineteen bridges then")
    ):
        index.add("t", f"call {number}", [phrase + own])
    assert {link.is_common for link in index.find("t", [phrase])} == {True}
    found = {link.source: link.is_common for link in index.find("t", [f"{phrase}the harbour was built in 1902"])}
    assert found == {"call 0": False, "call 1": True}


@settings(max_examples=200)
@given(st.integers(0, 1 << 30), st.integers(40, 300), st.integers(0, 60), st.integers(0, 60))
def test_a_part_is_common_wherever_it_stands_in_the_answers(seed: int, length: int, first: int, second: int) -> None:
    pick = random.Random(seed)
    part, own = random_text(pick, length), random_text(pick, 80)
    index = links()
    index.add("t", "first", [f"x{random_text(pick, first)}{part}{own}x"])
    index.add("t", "second", [f"x{random_text(pick, second, '0123456789')}{part}x"])
    prompt = f"Question. {part}."
    assert {link.source: link.is_common for link in index.find("t", [prompt])} == {"first": True, "second": True}
    found = {link.source: link.is_common for link in index.find("t", [prompt, f"And this: {own}"])}
    assert found == {"first": False, "second": True}


def test_each_text_of_a_prompt_is_searched_for_a_longer_part() -> None:
    phrase, end = "this is what I have found in the documents that you gave me: ", "nineteen bridges"
    for shift in range(25):
        index = links()
        index.add("t", "longer", [f"{'.' * shift}{phrase}{end}"])
        index.add("t", "other", [f"{phrase}nothing at all, I fear"])
        found = {link.source: link.is_common for link in index.find("t", [phrase, phrase + end])}
        assert found == {"longer": False, "other": True}


def test_a_whole_answer_that_is_part_of_another_answer_is_common() -> None:
    text = "Find every test that waits for a timeout, and say which can be made faster."
    index = links()
    index.add("t", "part", [f"I would say this: {text} And then I would stop."])
    index.add("t", "whole", [text])
    assert {link.source: link.is_common for link in index.find("t", ["first", text])} == {"part": True, "whole": True}
    index.add("t", "short", ["the capital is Paris"])
    answers = ["the capital is Paris", f"{text} And then I would stop."]
    found = {link.source: link.is_common for link in index.find("t", answers)}
    assert found == {"short": False, "part": False, "whole": True}


def test_tenants_do_not_see_each_other() -> None:
    text = "a text that is long enough to be found again in a prompt"
    index = links()
    index.add("t", "call", [text])
    assert index.find("u", [text]) == []


def test_removed_sources_are_not_found() -> None:
    texts = [f"answer number {number} of a model that likes to write long answers" for number in range(3)]
    index = links()
    for number, text in enumerate(texts):
        index.add("t", f"call {number}", [text])
    index.remove("t", "call 1")
    index.remove("t", "unknown")
    assert {link.source for link in index.find("t", texts)} == {"call 0", "call 2"}
    index.remove("t", "call 0")
    index.remove("t", "call 2")
    assert index.bytes == 0
    assert index.find("t", texts) == []


def test_an_answer_whose_twin_is_removed_is_found_and_no_longer_common() -> None:
    for text in ("the capital is Paris", "a text that is long enough to be found again in a prompt"):
        index = links()
        index.add("t", "first", [text])
        index.add("t", "second", [text])
        assert {link.is_common for link in index.find("t", [text])} == {True}
        index.remove("t", "second")
        assert [(link.source, link.is_common) for link in index.find("t", [text])] == [("first", False)]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("tuv"), st.integers(0, 9), LETTERS, st.booleans()), max_size=30))
def test_the_index_holds_exactly_what_was_not_removed(steps: list[tuple[str, int, str, bool]]) -> None:
    index, model = links(), {}
    for tenant, source, text, removes in steps:
        if removes:
            index.remove(tenant, str(source))
            model.pop((tenant, str(source)), None)
        else:
            index.add(tenant, str(source), [text])
            model.setdefault((tenant, str(source)), []).append(text.strip())
    for tenant in "tuv":
        for text in ("ab" * 60, "a" * 100, "aab" * 50):
            newest = {
                source
                for (owner, source), texts in model.items()
                if owner == tenant and any(has_common_text(found, text) for found in texts)
            }
            found = {link.source for link in index.find(tenant, [text])}
            assert found <= newest
            if len(newest) == 1:
                assert found == newest
    for tenant, source in list(model):
        index.remove(tenant, source)
    assert index.bytes == 0


@settings(max_examples=200)
@given(st.lists(st.tuples(LETTERS, LETTERS, st.integers(1, 250)), min_size=1, max_size=5))
def test_removed_answers_leave_nothing_in_the_filter(answers: list[tuple[str, str, int]]) -> None:
    index = links()
    for number, (answer, prompt, most) in enumerate(answers):
        index.add("t", str(number), [answer, prompt + answer], [prompt], most=most)
    for number in range(len(answers)):
        index.remove("t", str(number))
    assert not index._filter._counts.any()


def test_memory_is_bounded_and_shared() -> None:
    pick = random.Random(1)
    index = links(max_bytes=1 << 20)
    small = random_text(pick, 500)
    index.add("small", "call", [small])
    for number in range(400):
        index.add("large", number, [random_text(pick, 2_000)])  # type: ignore[arg-type]
        assert index.bytes <= 1 << 20
    assert [link.source for link in index.find("small", [small])] == ["call"]
    newest = random_text(pick, 2_000)
    index.add("large", "newest", [newest])
    assert [link.source for link in index.find("large", [newest[500:700]])] == ["newest"]


def test_repetitive_texts_take_bounded_work(compared: mock.Mock) -> None:
    index = links()
    for number in range(200):
        index.add("t", str(number), ["a" * 39 + f"{number:03}" + ("a" * 39 + "b") * 700])
    assert index.find("t", [("a" * 39 + "c") * 25_000]) == []
    assert 0 < compared.call_count <= text_links._MAX_COMPARISONS
    assert index.bytes < 1 << 24


def test_a_prompt_that_repeats_common_texts_is_searched_once() -> None:
    looked_up = 0

    @dataclass(frozen=True)
    class Source:
        number: int

        def __hash__(self) -> int:
            nonlocal looked_up
            looked_up += 1
            return hash(self.number)

    text = random_text(random.Random(4), 240)
    index: TextLinks[Source] = TextLinks(1 << 24)
    for number in range(8):
        index.add("t", Source(number), [text])
    looked_up = 0
    assert len(index.find("t", [text * 500])) == 8
    assert looked_up < 8 * len(text) * 2


def test_one_prompt_has_a_bounded_number_of_links() -> None:
    pick, index = random.Random(3), links()
    texts = [random_text(pick, 60) for _ in range(500)]
    for number, text in enumerate(texts):
        index.add("t", str(number), [text])
    assert len(index.find("t", [" ".join(texts)])) == text_links._MAX_LINKS


def test_long_answers_and_prompts_are_searched_up_to_their_limits() -> None:
    pick = random.Random(2)
    answer = random_text(pick, 1_000_000)
    index = links()
    index.add("t", "call", [answer])
    assert index.bytes < 1_500_000
    for part in (answer[5_000:5_100], answer[-5_000:-4_900]):
        assert [link.source for link in index.find("t", ["0" * 100_000 + part])] == ["call"]
    assert index.find("t", ["0" * 150_000, answer[5_000:5_100]]) == []
    index.add("t", "limited", ["1" * 20 + answer], most=30)
    assert {link.source for link in index.find("t", ["1" * 20 + answer[:100]])} == {"call", "limited"}
    assert {link.source for link in index.find("t", [answer[1_000:1_100]])} == {"call"}


def test_windows_at_the_end_of_repetitive_answers_cost_a_bounded_amount_of_work() -> None:
    """Count the work of a prompt whose windows all stand at the end of a long answer and never become a link."""
    index = links()
    index.add("t", "call", ["a" * 29_975 + "bacd" * 5])
    text = "a" * 39 + ("bacd" * 4 + "ccc") * 4_200
    with mock.patch.object(text_links, "_common_range", wraps=text_links._common_range) as counted:
        assert index.find("t", [text]) == []
    looked_up = sum(len(call.args[0].windows) for call in counted.call_args_list)
    assert 0 < looked_up <= text_links._MAX_COMPARISONS * text_links._CHARACTERS_PER_COMPARISON


def test_lines_of_dashes_do_not_hide_a_link() -> None:
    pick = random.Random(5)
    index = links()
    for number in range(8):
        index.add("t", str(number), ["\n".join(f"{random_text(pick, 400)}\n{'-' * 60}" for _ in range(20))])
    own = random_text(pick, 300)
    index.add("t", "own", [own])
    lines = "\n".join(f"{random_text(pick, 100)}\n|{'-' * 39}|" for _ in range(40))
    assert [link.source for link in index.find("t", [f"{lines}\n{own}"])] == ["own"]


def test_windows_with_equal_hashes_cost_work(compared: mock.Mock) -> None:
    """Count comparisons of texts that differ but have equal hashes, because their characters have the same byte."""
    other = chr(0x1FC)
    assert (
        text_windows.hash_indexed_windows(other * 40, 1)[0, 0] == text_windows.hash_indexed_windows("a" * 40, 1)[0, 0]
    )
    index = links()
    for number in range(8):
        index.add("t", str(number), [f"é{'a' * 80}{number}"])
    assert index.find("t", [other * 131_072]) == []
    assert 0 < compared.call_count <= text_links._MAX_COMPARISONS


def test_a_window_across_two_texts_is_no_link() -> None:
    copied = "Find every test that waits for a timeout, and say which can be made faster."
    for shift in range(25):
        index = links()
        index.add("t", "call", [f"{'.' * shift}{copied}\0then my own words go on for a while, and on"], [copied])
        assert index.find("t", [f"Once more, {copied}", "then my own other thing is here, and it is long"]) == []


def test_links_are_in_the_order_of_the_prompt() -> None:
    pick, index = random.Random(7), links()
    texts = [random_text(pick, 90) for _ in range(5)]
    for number in (3, 1, 4, 0, 2):
        index.add("t", str(number), [texts[number]])
    prompt = " and then ".join(texts) + "".join(texts[3] for _ in range(20))
    assert [link.source for link in index.find("t", [prompt])] == ["0", "1", "2", "3", "4"]


def test_all_texts_of_an_answer_share_the_work_of_finding_copies(compared: mock.Mock) -> None:
    texts = [("a" * 39 + "b") * 26 + str(number) for number in range(32)]
    links().add("t", "call", texts, [("a" * 39 + "c") * 1_600])
    assert 0 < compared.call_count <= text_links._MAX_COMPARISONS


def test_the_beginning_of_a_long_text_is_no_whole_prompt() -> None:
    pick, index = random.Random(9), links()
    text = random_text(pick, 500)
    index.add("t", "call", [f"An agent gets this: {text[:100]}"])
    (link,) = index.find("t", ["0" * (text_links._MAX_SEARCHED - 80), text])
    assert (link.length, link.is_prompt) == (80, False)
