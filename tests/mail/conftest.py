"""Limits of the servers that send mails."""

import pytest

from rolecall.limits import Limits
from support.mail_sites import QUICK_MAIL


@pytest.fixture
def limits() -> Limits:
    """The limits of the servers of a test, unless it passes others."""
    return QUICK_MAIL
