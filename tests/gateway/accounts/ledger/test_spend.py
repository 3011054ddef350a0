"""The spend of one call."""

from gateway.accounts.ledger.spend import FREE


def test_tokens_are_those_of_prompt_and_answer() -> None:
    assert FREE._replace(prompt=7, cached=5, completion=3, reasoning=2, lost=9).tokens == 10
