"""Logs that are long enough to have checkpoints, calls with a request id, and a hand in the database."""

from collections.abc import Callable
from typing import Any

import grpc
from conftest import Site
from sqlalchemy import text

from rolecall import Client, credentials, keys
from rolecall.audit import AuditLog, Event, Private
from rolecall.client import convert
from rolecall.storage import Transaction
from rolecall.storage.audit import Stored
from rolecall.storage.tables import metadata
from rolecall.v1 import audit_pb2
from rolecall.v1.audit_pb2_grpc import AuditServiceStub
from rolecall.v1.organization_pb2_grpc import OrganizationServiceStub
from rolecall.v1.session_pb2_grpc import SessionServiceStub
from rolecall.v1.token_pb2_grpc import TokenServiceStub

__all__ = [
    "WHOLE",
    "call",
    "dump",
    "entries",
    "grow",
    "head",
    "log_of",
    "restore",
    "revision",
    "sql",
    "stored",
    "token_id",
    "verify",
]

WHOLE = (audit_pb2.AUDIT_VERDICT_WHOLE, 0)
BATCH = 500

Dump = dict[str, list[dict[str, Any]]]


def log_of(site: Site) -> AuditLog:
    """The log of the site's server, for what an operator does."""
    return AuditLog(keys.read(site.settings.key_file))


def varied(number: int) -> Event:
    """The events of a long log: some refused, some with personal values."""
    return Event(
        "acme",
        f"user:{number % 5}",
        f"Action{number % 7}",
        f"token:{number % 11}",
        {"number": number, "who": Private(f"p{number % 3}", f"name {number}")} if number % 4 == 0 else {"n": number},
        f"credential{number % 3}",
        f"call-{number}",
        "PERMISSION_MISSING" if number % 6 == 0 else "",
    )


def grow(site: Site, count: int, event: Callable[[int], Event] = varied) -> None:
    """Record `count` events straight, numbered from 0."""
    log = log_of(site)

    def work(tx: Transaction, begin: int) -> None:
        for number in range(begin, min(begin + BATCH, count)):
            log.record(tx, event(number))

    for begin in range(0, count, BATCH):
        site.storage.write(lambda tx, begin=begin: work(tx, begin))  # type: ignore[misc]


def sql(site: Site, statement: str, **values: object) -> list[Any]:
    """Run a statement past the server."""

    def work(tx: Transaction) -> list[Any]:
        result = tx.connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []

    try:
        return site.storage.write(work)
    finally:
        site.forget()


def stored(site: Site, organization: str = "acme") -> list[Stored]:
    """The entries as they are in the table, in order."""
    columns = ", ".join(Stored._fields)
    query = f"SELECT {columns} FROM audit_entries WHERE organization = :organization ORDER BY sequence"
    rows = sql(site, query, organization=organization)
    return [Stored._make(row) for row in rows]


def head(site: Site) -> Any:
    """The row that says where the log of acme ends."""
    return sql(site, "SELECT * FROM audit_heads WHERE organization = 'acme'")[0]


def revision(site: Site, organization: str = "acme") -> int:
    """The organization's revision."""
    return int(sql(site, "SELECT revision FROM organizations WHERE id = :id", id=organization)[0][0])


def dump(site: Site) -> Dump:
    """All rows of all tables, but for when credentials were last used."""

    def work(tx: Transaction) -> Dump:
        found = {}
        for table in metadata.sorted_tables:
            rows = tx.connection.execute(table.select().order_by(*table.primary_key.columns)).mappings()
            found[table.name] = [
                {**row, "last_used_time": None} if "last_used_time" in row else {**row} for row in rows
            ]
        return found

    return site.storage.read(work)


def restore(site: Site, old: Dump) -> None:
    """Put an older copy of the whole database back."""

    def work(tx: Transaction) -> None:
        for table in reversed(metadata.sorted_tables):
            tx.connection.execute(table.delete())
        for table in metadata.sorted_tables:
            if old[table.name]:
                tx.connection.execute(table.insert(), old[table.name])

    site.storage.write(work)


def verify(
    site: Site, first: int = 0, last: int = 0, known: tuple[int, str] | None = None, token: str = ""
) -> tuple[int, int]:
    """The verdict over gRPC and the first bad sequence number."""
    with Client(site.address, token or site.tokens["ADMIN"], timeout=20) as client:
        answer = client.audit.verify(first=first, last=last, known=known)
    assert bool(answer.problem) == (answer.verdict == audit_pb2.AUDIT_VERDICT_TAMPERED)
    return answer.verdict, answer.first_bad_sequence


def entries(site: Site, wanted: audit_pb2.AuditFilter | None = None, token: str = "") -> list[audit_pb2.AuditEntry]:
    """The entries over gRPC, the oldest first."""
    with Client(site.address, token or site.tokens["ADMIN"], timeout=20) as client:
        return list(client.audit.list(wanted))[::-1]


def call(site: Site, rpc: str, request: Any, token: str, request_id: str = "") -> Any:
    """The answer to one call; of a streaming one, all of them. Raises `RolecallError`."""
    service = request.DESCRIPTOR.file.name.rpartition("/")[2].removesuffix(".proto")
    stubs: dict[str, Callable[[grpc.Channel], Any]] = {
        "audit": AuditServiceStub,
        "organization": OrganizationServiceStub,
        "session": SessionServiceStub,
        "token": TokenServiceStub,
    }
    own = [("x-request-id", request_id)] if request_id else []
    with grpc.insecure_channel(site.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        method = getattr(stubs[service](channel), rpc)
        try:
            answer = method(request, timeout=20, metadata=[("authorization", f"Bearer {token}"), *own])
            return list(answer) if hasattr(answer, "__next__") else answer
        except grpc.RpcError as error:
            raise convert.error(error, site.address) from error


def token_id(secret: str) -> str:
    """The id of the token whose text this is."""
    parsed = credentials.parse(secret)
    assert parsed
    return parsed.id
