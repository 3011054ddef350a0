"""engine/ngram_proposer.py"""

from hypothesis import given
from hypothesis import strategies as st

from engine.ngram_proposer import LONGEST, NgramProposer, Rate


def obvious(prediction: list[int], text: list[int]) -> tuple[int, int]:
    """Where the text goes on as it may go on now, and by how many tokens that is found."""
    tokens, best = prediction + text, (0, False, 0)
    for place in range(1, len(tokens)):
        length = 0
        while length < min(place, LONGEST) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length:
            best = max(best, (length, place < len(prediction), place))
    return best[2], best[0]


few = st.lists(st.integers(0, 3), min_size=1, max_size=80)


@given(few, st.one_of(st.just([]), few), st.integers(1, 80))
def test_the_latest_of_the_longest_matches_is_found(tokens: list[int], prediction: list[int], known: int) -> None:
    lookup = NgramProposer(tokens[:known], prediction)
    lookup.follow(tokens)
    found = lookup.find()
    assert (lookup.start, lookup.match) == obvious(prediction, tokens)
    assert found == (lookup.match > 0)
    assert lookup.predicted == (0 < lookup.start < len(prediction))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=20), st.data())
def test_a_draft_goes_on_as_the_text_did_and_around_again(tokens: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(1, len(tokens) - 1))
    text = list(tokens)
    for _ in range(25):  # as if it went on so, token by token
        text.append(text[start + len(text) - len(tokens)])
    lookup = NgramProposer(tokens)
    lookup.start = start
    assert lookup.draft(25) == text[len(tokens) :]


def test_a_prediction_is_gone_on_with_to_its_end() -> None:
    lookup = NgramProposer([9, 1, 2], [9, 1, 2, 3, 4])
    assert lookup.find()
    assert lookup.draft(10) == [3, 4]


def test_it_grows_with_the_text() -> None:
    tokens = [1, 2]
    lookup = NgramProposer(tokens)
    for token in range(3, 500):
        tokens.append(token)
        lookup.follow(tokens)
        assert not lookup.find()
    tokens.append(250)
    lookup.follow(tokens)
    assert lookup.find()
    assert (lookup.start, lookup.match) == (250, 1)
    assert lookup.draft(3) == [251, 252, 253]


def test_it_rests_for_some_steps_and_knows_less_then() -> None:
    lookup = NgramProposer([1, 2])
    lookup.rate.add(0, 10)
    assert not lookup.resting
    lookup.rest()
    assert [lookup.resting for _ in range(6)] == [True, True, True, False, False, False]
    assert 8 < lookup.rate.tried < 10


def test_what_was_long_ago_counts_less() -> None:
    rate = Rate(0.0, 0.0, most=32.0)
    for _ in range(100):
        rate.add(4, 4)
    assert rate.right == rate.tried <= 32
    for _ in range(20):
        rate.add(0, 4)
    assert rate.right < 0.2 * rate.tried
