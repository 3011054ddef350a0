"""Tests of compat/openai/schemas/policy.py: what each enforcement refuses."""

import pytest

from compat.openai.schemas.policy import Enforcement, RefusalPolicy, Unenforceable


@pytest.mark.parametrize("enforcement", Enforcement)
def test_only_strict_enforcement_refuses_unsupported_keywords(enforcement: Enforcement) -> None:
    policy = RefusalPolicy(enforcement)
    if enforcement is Enforcement.STRICT:
        with pytest.raises(Unenforceable, match=r"^not is not supported$"):
            policy.refuse("not")
        with pytest.raises(Unenforceable, match=r"^pattern has a look-ahead$"):
            policy.refuse("pattern", "has a look-ahead")
    else:
        policy.refuse("not")


@pytest.mark.parametrize("enforcement", Enforcement)
def test_all_but_lenient_enforcement_refuses_numbers_that_would_become_others(enforcement: Enforcement) -> None:
    policy = RefusalPolicy(enforcement)
    if enforcement is Enforcement.LENIENT:
        policy.refuse_number("const", 2**53 + 1)
    else:
        with pytest.raises(Unenforceable, match="const: 9007199254740993 cannot be represented exactly"):
            policy.refuse_number("const", 2**53 + 1)
