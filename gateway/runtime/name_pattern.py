"""Patterns of names in which `*` stands for any text."""


def matches(pattern: str, name: str) -> bool:
    """Return whether a name matches a pattern, which without `*` is the name itself. It takes linear time."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    position, end = len(first), len(name) - len(last)
    for part in middle:
        position = name.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True
