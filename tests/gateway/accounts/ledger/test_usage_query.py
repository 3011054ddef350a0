"""gateway/accounts/ledger/usage_query.py: its columns are those of a row. test_ledger.py tests the answers."""

import re

from gateway.accounts.ledger.spend import CallSpend
from gateway.accounts.ledger.usage_query import GROUPS, SUMS, UsageSum


def test_each_sum_is_a_column_of_the_rows() -> None:
    columns = re.findall(r"sum\((\w+)\)", SUMS)
    assert columns == list(UsageSum._fields[2:])
    assert set(columns) <= set(CallSpend._fields)
    assert set(GROUPS) - {"day"} <= set(CallSpend._fields)
