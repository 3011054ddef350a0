"""Bound on the work of a check, and the exception for checks without a verdict."""


class NoVerdict(Exception):
    """The value can neither be called valid nor invalid. The message says why, for logs."""


class BudgetExceeded(NoVerdict):
    """The work budget is used up."""


class WorkBudget:
    """Budget of work, in units of about 2 µs."""

    __slots__ = ("left",)

    def __init__(self, units: int) -> None:
        self.left = units

    def spend(self, units: int) -> None:
        """Subtract units. Raises BudgetExceeded if fewer are left."""
        self.left -= units
        if self.left < 0:
            raise BudgetExceeded("the check takes too long")
