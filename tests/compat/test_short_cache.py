"""Cache of results for short texts."""

from compat.short_cache import cache_short


def test_only_results_for_short_texts_are_cached() -> None:
    computed: list[tuple[str, int]] = []

    @cache_short(2, 3)
    def compute(text: str, number: int) -> str:
        computed.append((text, number))
        return text * number

    for _ in range(2):
        assert [compute("abc", 2), compute("abcd", 2), compute("abc", 1)] == ["abcabc", "abcdabcd", "abc"]
    assert computed == [("abc", 2), ("abcd", 2), ("abc", 1), ("abcd", 2)]
    for text in ("x", "y", "z", "x"):
        compute(text, 1)
    assert computed[-1] == ("x", 1), "the cache has two entries"
