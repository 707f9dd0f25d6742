"""A change isn't made after its caller has cancelled the call."""

import time
from typing import cast

import grpc
import pytest
from sqlalchemy import text

from rolecall.storage import Transaction
from rolecall.v1 import token_pb2
from rolecall.v1.token_pb2_grpc import TokenServiceStub
from support.sites import Site, sqlite_file

# Whichever way calls come in.
pytestmark = pytest.mark.usefixtures("each_transport")


def _create(site: Site, name: str, timeout: float) -> token_pb2.CreatePersonalTokenResponse:
    return TokenServiceStub(site.channel()).CreatePersonalToken(
        token_pb2.CreatePersonalTokenRequest(display_name=name),
        timeout=timeout,
        metadata=(("authorization", f"Bearer {site.tokens['OWNER']}"),),
    )


def _names(site: Site) -> set[str]:
    def work(tx: Transaction) -> set[str]:
        return set(tx.connection.scalars(text("SELECT display_name FROM credentials")))

    return site.storage.read(work)


def test_change_behind_a_lock_is_not_made_after_the_deadline(sqlite_site: Site) -> None:
    """A creation that had to wait for another writer until its caller's deadline was over leaves no token behind."""
    _create(sqlite_site, "before", 5)
    other = sqlite_file(sqlite_site.settings.database)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(grpc.RpcError) as failed:
        _create(sqlite_site, "too late", 0.3)
    other.execute("COMMIT")
    time.sleep(1.0)
    _create(sqlite_site, "afterwards", 5)

    assert cast("grpc.Call", failed.value).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert {"before", "afterwards"} <= _names(sqlite_site)
    assert "too late" not in _names(sqlite_site)
