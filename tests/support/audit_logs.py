"""Audit logs that are long enough to have checkpoints, calls with a call id, and direct access to the database."""

from collections.abc import Callable
from typing import Any

import grpc
from sqlalchemy import text

from rolecall import Client
from rolecall.audit import AuditLog, Event, Private
from rolecall.client import convert
from rolecall.client.channel import find_endpoint
from rolecall.credentials import server_key, token_format
from rolecall.storage import Transaction
from rolecall.storage.audit import StoredEntry
from rolecall.storage.tables import metadata
from rolecall.v1 import audit_pb2
from rolecall.v1.assignment_pb2_grpc import AssignmentServiceStub
from rolecall.v1.audit_pb2_grpc import AuditServiceStub
from rolecall.v1.invitation_pb2_grpc import InvitationServiceStub
from rolecall.v1.member_pb2_grpc import MemberServiceStub
from rolecall.v1.organization_pb2_grpc import OrganizationServiceStub
from rolecall.v1.session_pb2_grpc import SessionServiceStub
from rolecall.v1.team_pb2_grpc import TeamServiceStub
from rolecall.v1.token_pb2_grpc import TokenServiceStub
from support.sites import Site

__all__ = [
    "INTACT",
    "call",
    "dump",
    "entries",
    "head",
    "log_of",
    "record_events",
    "restore",
    "revision",
    "sql",
    "stored",
    "token_id",
    "verify",
]

INTACT = (audit_pb2.AUDIT_VERDICT_INTACT, 0)
BATCH = 500

Dump = dict[str, list[dict[str, Any]]]


def log_of(site: Site) -> AuditLog:
    """Return the audit log of the site's server, as operator commands use it."""
    return AuditLog(server_key.read(site.settings.key_file))


def varied(number: int) -> Event:
    """Return the event `number` of a long log: some are refused, some have personal values."""
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


def record_events(site: Site, count: int, event: Callable[[int], Event] = varied) -> None:
    """Record `count` events in the database, numbered from 0."""
    log = log_of(site)

    def work(tx: Transaction, begin: int) -> None:
        for number in range(begin, min(begin + BATCH, count)):
            log.record(tx, event(number))

    for begin in range(0, count, BATCH):
        site.storage.write(lambda tx, begin=begin: work(tx, begin))  # type: ignore[misc]


def sql(site: Site, statement: str, **values: object) -> list[Any]:
    """Run a statement directly in the database."""

    def work(tx: Transaction) -> list[Any]:
        result = tx.connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []

    try:
        return site.storage.write(work)
    finally:
        site.forget()


def stored(site: Site, organization: str = "acme") -> list[StoredEntry]:
    """The entries as they are in the table, in order."""
    columns = ", ".join(StoredEntry._fields)
    query = f"SELECT {columns} FROM audit_entries WHERE organization = :organization ORDER BY sequence"
    rows = sql(site, query, organization=organization)
    return [StoredEntry._make(row) for row in rows]


def head(site: Site) -> Any:
    """Return the row of the head of acme's log."""
    return sql(site, "SELECT * FROM audit_heads WHERE organization = 'acme'")[0]


def revision(site: Site, organization: str = "acme") -> int:
    """The organization's revision."""
    return int(sql(site, "SELECT revision FROM organizations WHERE id = :id", id=organization)[0][0])


def dump(site: Site) -> Dump:
    """Return all rows of all tables, without the times of last use."""

    def work(tx: Transaction) -> Dump:
        found = {}
        for table in metadata.sorted_tables:
            rows = tx.connection.execute(table.select().order_by(*table.primary_key.columns)).mappings()
            found[table.name] = [{**row, "last_use_time": None} if "last_use_time" in row else {**row} for row in rows]
        return found

    return site.storage.read(work)


def restore(site: Site, old: Dump) -> None:
    """Restore an older copy of the database."""

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
    """Verify the log over gRPC; return the verdict and the first bad sequence number."""
    with Client(site.address, token or site.tokens["ADMIN"], timeout=20) as client:
        answer = client.audit.verify(first=first, last=last, known=known)
    assert bool(answer.problem) == (answer.verdict == audit_pb2.AUDIT_VERDICT_TAMPERED)
    return answer.verdict, answer.first_bad_sequence


def entries(site: Site, wanted: audit_pb2.AuditFilter | None = None, token: str = "") -> list[audit_pb2.AuditEntry]:
    """The entries over gRPC, the oldest first."""
    with Client(site.address, token or site.tokens["ADMIN"], timeout=20) as client:
        return list(client.audit.list(wanted))[::-1]


def call(site: Site, rpc: str, request: Any, token: str, request_id: str = "") -> Any:
    """Make one call; return the answer, or all answers of a streaming call. Raises `RolecallError`."""
    service = request.DESCRIPTOR.file.name.rpartition("/")[2].removesuffix(".proto")
    stubs: dict[str, Callable[[grpc.Channel], Any]] = {
        "assignment": AssignmentServiceStub,
        "audit": AuditServiceStub,
        "invitation": InvitationServiceStub,
        "member": MemberServiceStub,
        "organization": OrganizationServiceStub,
        "session": SessionServiceStub,
        "team": TeamServiceStub,
        "token": TokenServiceStub,
    }
    own = [("x-request-id", request_id)] if request_id else []
    with grpc.insecure_channel(site.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        method = getattr(stubs[service](channel), rpc)
        try:
            answer = method(request, timeout=20, metadata=[("authorization", f"Bearer {token}"), *own])
            return list(answer) if hasattr(answer, "__next__") else answer
        except grpc.RpcError as error:
            raise convert.error(error, find_endpoint(site.address, None, plaintext=True)) from error


def token_id(secret: str) -> str:
    """Return the id in a token's text."""
    parsed = token_format.parse(secret)
    assert parsed
    return parsed.id
