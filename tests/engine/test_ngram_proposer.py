"""Tests of engine/ngram_proposer.py."""

from hypothesis import given
from hypothesis import strategies as st

from engine.ngram_proposer import MAX_MATCH, AcceptanceRate, NgramProposer


def expected_match(prediction: list[int], text: list[int]) -> tuple[int, int]:
    """Return the position after the match, and the length of the match, by a slow search."""
    tokens, best = prediction + text, (0, False, 0)
    for place in range(1, len(tokens)):
        length = 0
        while length < min(place, MAX_MATCH) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length:
            best = max(best, (length, place < len(prediction), place))
    return best[2], best[0]


few = st.lists(st.integers(0, 3), min_size=1, max_size=80)


@given(few, st.one_of(st.just([]), few), st.integers(1, 80))
def test_latest_of_the_longest_matches_is_found(tokens: list[int], prediction: list[int], known: int) -> None:
    proposer = NgramProposer(tokens[:known], prediction)
    proposer.extend(tokens)
    found = proposer.find()
    assert (proposer.match_end, proposer.match_length) == expected_match(prediction, tokens)
    assert found == (proposer.match_length > 0)
    assert proposer.is_predicted == (0 < proposer.match_end < len(prediction))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=20), st.data())
def test_draft_continues_as_the_text_did_and_repeats(tokens: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(1, len(tokens) - 1))
    text = list(tokens)
    for _ in range(25):  # as if the draft were appended token by token
        text.append(text[start + len(text) - len(tokens)])
    proposer = NgramProposer(tokens)
    proposer.match_end = start
    assert proposer.draft(25) == text[len(tokens) :]


def test_prediction_is_drafted_to_its_end() -> None:
    proposer = NgramProposer([9, 1, 2], [9, 1, 2, 3, 4])
    assert proposer.find()
    assert proposer.draft(10) == [3, 4]


def test_proposer_follows_the_text() -> None:
    tokens = [1, 2]
    proposer = NgramProposer(tokens)
    for token in range(3, 500):
        tokens.append(token)
        proposer.extend(tokens)
        assert not proposer.find()
    tokens.append(250)
    proposer.extend(tokens)
    assert proposer.find()
    assert (proposer.match_end, proposer.match_length) == (250, 1)
    assert proposer.draft(3) == [251, 252, 253]


def test_proposer_rests_and_its_rate_fades() -> None:
    proposer = NgramProposer([1, 2])
    proposer.rate.add(0, 10)
    assert not proposer.skips_step()
    proposer.rest()
    assert [proposer.skips_step() for _ in range(6)] == [True, True, True, False, False, False]
    assert 8 < proposer.rate.checked < 10


def test_old_counts_fade() -> None:
    rate = AcceptanceRate(0.0, 0.0, half_after=32.0)
    for _ in range(100):
        rate.add(4, 4)
    assert rate.accepted == rate.checked <= 32
    for _ in range(20):
        rate.add(0, 4)
    assert rate.accepted < 0.2 * rate.checked
