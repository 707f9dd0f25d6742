"""Limits that a program passes: those with which a server could do nothing are refused."""

from dataclasses import fields, replace
from typing import Any

import pytest

from rolecall.limits import DEFAULT_LIMITS, Limits, Rate


@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
def test_limit_below_its_least_is_refused(name: str) -> None:
    """A number of 0, as of queued keys, and a negative time are refused where they are given; a time of 0 is fine."""
    default = getattr(DEFAULT_LIMITS, name)
    if isinstance(default, Rate):
        for rate in ((0.0, 1), (1.0, 0)):
            with pytest.raises(ValueError, match="rate"):
                Rate(*rate)
        return
    wrong: Any = {name: 0 if isinstance(default, int) else -0.1}
    least: Any = {name: 1 if isinstance(default, int) else 0.0}
    with pytest.raises(ValueError, match=f"{name} is {wrong[name]}"):
        replace(DEFAULT_LIMITS, **wrong)

    assert getattr(replace(DEFAULT_LIMITS, **least), name) == least[name]
