"""Servers that send mails soon, several over one database, and their callers, logs and rows."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from rolecall import Client, UnauthenticatedClient
from rolecall.server import build_server
from rolecall.storage import Transaction
from rolecall.storage.tables import metadata
from rolecall.v1 import invitation_pb2 as pb
from support.sites import QUICK_LIMITS, Site

__all__ = ["QUICK_MAIL", "Logs", "accept", "another_server", "delivery", "dump", "invite", "owner", "sql"]

_owners: dict[str, Client] = {}


class Logs:
    """The log lines since the test began."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._text = ""

    @property
    def text(self) -> str:
        """The whole text."""
        captured = self._capfd.readouterr()
        self._text += captured.out + captured.err
        return self._text

    def has(self, words: str, times: int = 1) -> bool:
        """Whether these words occur this many times."""
        return self.text.count(words) >= times


# Limits with which mails are sent and retried soon.
QUICK_MAIL = replace(
    QUICK_LIMITS,
    mail_poll_seconds=0.05,
    mail_retry_seconds=0.05,
    mail_first_pause_seconds=0.05,
    mail_max_pause_seconds=0.1,
    mail_outage_pause_seconds=0.1,
)


@contextmanager
def another_server(site: Site, **settings: object) -> Iterator[Site]:
    """One more server over the database of `site`, with other settings."""
    configured = site.settings.model_copy(update={"listen": "127.0.0.1:0", **settings})
    server = build_server(configured, limits=site.limits)
    server.start()
    other = replace(site, server=server, settings=configured, channels=ExitStack())
    with other.channels:
        try:
            yield other
        finally:
            server.stop(0)


def owner(site: Site) -> Client:
    """Return a client with the owner's token, the same one for all calls."""
    if site.address not in _owners:
        _owners[site.address] = Client(site.address, site.tokens["OWNER"], timeout=20)
        site.channels.callback(lambda: _owners.pop(site.address).close())
    return _owners[site.address]


def invite(site: Site, *addresses: str, role: str = "VIEWER") -> list[pb.Invitation]:
    """Invite people to `role`, as the owner."""
    return list(owner(site).invitations.create([(address, role) for address in addresses]).invitations)


def delivery(site: Site, invitation: pb.Invitation) -> str:
    """The delivery state of an invitation's mail: QUEUED, SENT or BOUNCED."""
    found = owner(site).invitations.get(invitation.id).delivery
    return pb.DeliveryState.Name(found).removeprefix("DELIVERY_STATE_")


def accept(site: Site, secret: str, display_name: str = "") -> pb.AcceptInvitationResponse:
    """Accept an invitation."""
    with UnauthenticatedClient(site.address, timeout=20) as guest:
        return guest.accept_invitation(secret, display_name=display_name)


def sql(site: Site, statement: str, **values: object) -> list[Any]:
    """Run a statement directly in the database."""

    def work(tx: Transaction) -> list[Any]:
        result = tx.connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []

    try:
        return site.storage.write(work)
    finally:
        site.forget()


def dump(site: Site) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of all tables, without the times of last use."""

    def work(tx: Transaction) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for table in metadata.sorted_tables:
            rows = tx.connection.execute(table.select()).mappings()
            found[table.name] = [{name: row[name] for name in row if name != "last_use_time"} for row in rows]
        return found

    return site.storage.read(work)
