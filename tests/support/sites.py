"""Running servers with an organization, and direct changes of their database."""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc

from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.credentials import server_key, token_format
from rolecall.domain import Member, now
from rolecall.errors import StorageUnavailable
from rolecall.limits import Limits, Rate
from rolecall.server.build import Server
from rolecall.server.transport.polling_server import PollingServer
from rolecall.storage import Storage, Transaction, follower
from rolecall.storage import members as member_rows
from rolecall.storage.changes import notify_followers


@dataclass
class Site:
    """A running server with the organization `acme`: a member for each role, and a token for each member."""

    server: Server
    storage: Storage
    settings: Settings
    limits: Limits
    policy_folder: Path
    members: dict[str, Member]
    tokens: dict[str, str]
    channels: ExitStack = field(default_factory=ExitStack)

    @property
    def address(self) -> str:
        """The address that it listens on."""
        return self.server.address

    @property
    def log(self) -> AuditLog:
        """The audit log, for direct changes of the database."""
        return AuditLog(server_key.read(self.settings.key_file))

    @property
    def core(self) -> Any:
        """The server's parts behind the transports."""
        return self.server._core

    @property
    def polling(self) -> PollingServer | None:
        """The server's polling transport, if that is the one that serves."""
        return self.server._polling

    def forget(self) -> None:
        """Clear the server's caches, after rows were changed directly in the database."""
        self.core.feed.cache.clear()

    def stop(self) -> None:
        """Stop the server, without waiting for the time when its change feed would look at the database again."""
        self.channels.close()
        self.core.feed._stopped.set()
        with suppress(StorageUnavailable):
            self.storage.write(notify_followers)
        with patch.object(follower, "SQLITE_SECONDS", 0):
            self.server.stop(0)

    def channel(self) -> grpc.Channel:
        """Open a channel with a connection of its own."""
        return self.channels.enter_context(grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]))

    def call(
        self, method: str, request: bytes, *authorization: str | bytes, timeout: float = 10
    ) -> tuple[bytes, grpc.Call]:
        """The raw answer to raw bytes, presenting each of `authorization`. Raises `grpc.RpcError`."""
        multicallable = self.channel().unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        metadata = tuple(("authorization", value) for value in authorization)
        response, call = multicallable.with_call(request, timeout=timeout, metadata=metadata)
        return response, call


def add_member(storage: Storage, organization: str, email: str, role: str) -> Member:
    """Add a member directly to the database."""
    at = now()
    user_id = token_format.new_id()
    member = Member(organization, user_id, email, email.partition("@")[0], role, at, at, external_id=f"idp:{user_id}")

    def work(tx: Transaction) -> Member:
        member_rows.add(tx, member, email.lower())
        return member

    return storage.mutate(organization, work)


MakeSite = Callable[..., Site]

# Policies are compared with Casbin only briefly.
QUICK_LIMITS = Limits(casbin_seconds=0.05)


def without_rates(limits: Limits) -> Limits:
    """Return `limits` with rates that are never reached."""
    unreachable: dict[str, Any] = {
        each.name: Rate(1e9, 10**9) for each in fields(limits) if isinstance(getattr(limits, each.name), Rate)
    }
    return replace(limits, **unreachable)


def sqlite_file(url: str) -> sqlite3.Connection:
    """Connect directly to an SQLite database."""
    return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
