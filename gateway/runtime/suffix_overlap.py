"""Find out whether the end of a text may be the beginning of a mark, such as a tag, that later text completes."""


def suffix_overlap(text: str, mark: str) -> int:
    """Return the length of the longest suffix of the text that is a proper prefix of the mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0
