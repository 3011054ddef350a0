"""Steps from a generated text to the value of a variable."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transform:
    """Steps from a generated text to the value of a variable, in the order of the fields. None or False skips a step.

    `line` counts from 0, or from the end if negative. `regex` selects `group` of the first match. `json` is a path as
    in a reference.
    """

    strip: bool = False
    line: int | None = None
    regex: str | None = None
    group: int = 0
    json: str | None = None
