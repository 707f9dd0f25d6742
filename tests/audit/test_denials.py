"""Refused calls are recorded with a count, at most once a minute for each actor, action and reason."""

import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from rolecall import Client
from rolecall.audit import Denials, Event
from rolecall.client import to_dict
from rolecall.errors import PermissionMissing, RolecallError, UnauthenticatedCredential
from rolecall.limits import Limits
from rolecall.server import build_server
from rolecall.services import organizations
from rolecall.storage import Storage
from rolecall.v1 import audit_pb2, organization_pb2, token_pb2
from support.audit_logs import INTACT, call, dump, entries, head, log_of, revision, sql, token_id, verify
from support.sites import MakeSite, Site
from support.waiting import wait_until

DENIED = audit_pb2.AuditFilter(outcome=audit_pb2.AUDIT_OUTCOME_DENIED)


def denied(site: Site) -> list[audit_pb2.AuditEntry]:
    """The entries of refusals."""
    return entries(site, DENIED)


def counts(site: Site) -> list[int]:
    """Return the number of refusals in each entry."""
    return [int(to_dict(entry)["details"]["count"]) for entry in denied(site)]


def refuse(site: Site, times: int, role: str = "VIEWER", address: str = "") -> None:
    """Have a member request a token this many times, which is refused."""
    with Client(address or site.address, site.tokens[role], timeout=20) as client:
        for _ in range(times):
            with pytest.raises(PermissionMissing):
                client.tokens.create_personal("x")


def refusal(action: str = "DeleteToken", reason: str = "PERMISSION_MISSING", actor: str = "user:1") -> Event:
    """A refused attempt."""
    return Event("acme", actor, action, reason=reason)


def test_a_refused_call_is_recorded(site: Site) -> None:
    """One entry records a denied call: actor, credential, action, call, reason, count; the revision doesn't change."""
    at, length = revision(site), head(site).sequence
    request = organization_pb2.UpdateOrganizationRequest(organization=organization_pb2.Organization(display_name="x"))
    with pytest.raises(PermissionMissing):
        call(site, "UpdateOrganization", request, site.tokens["VIEWER"], "call=2")
    wait_until(lambda: head(site).sequence > length)

    (entry,) = denied(site)
    assert entry.sequence == length + 1
    assert entry.actor == f"user:{site.members['VIEWER'].user_id}"
    assert entry.credential_id == token_id(site.tokens["VIEWER"])
    assert entry.action == "UpdateOrganization"
    assert entry.object == ""
    assert entry.outcome == audit_pb2.AUDIT_OUTCOME_DENIED
    assert entry.reason == "PERMISSION_MISSING"
    assert to_dict(entry)["details"] == {"action": "manage", "resource": "account", "count": 1}
    assert entry.call_id == "call=2"
    assert revision(site) == at
    assert verify(site) == INTACT


def test_a_hundred_refusals_are_two_entries_at_most(site: Site) -> None:
    """The first denial is recorded at once, others of the same minute when the server stops; none is lost."""
    refuse(site, 3)
    wait_until(lambda: len(denied(site)) == 1)
    first = counts(site)
    refuse(site, 97)
    before = counts(site)
    site.server.stop(0)

    rows = sql(site, "SELECT details, call_id FROM audit_entries WHERE reason != '' ORDER BY sequence")
    assert before == first
    assert len(rows) == 2
    assert f'"count":{100 - first[0]}' in rows[1].details
    assert rows[0].call_id != rows[1].call_id


def test_refusals_after_the_quiet_minute_are_recorded(make_site: MakeSite, database_url: str) -> None:
    """After the minute, here half a second, the denials within it are recorded as one entry."""
    site = make_site(database_url, limits=Limits(denial_seconds=0.5))
    refuse(site, 1)
    wait_until(lambda: counts(site) == [1])
    refuse(site, 4)
    wait_until(lambda: sum(counts(site)) == 5)

    assert len(counts(site)) <= 3
    assert verify(site) == INTACT


def test_kinds_of_refusals_have_entries_of_their_own(site: Site) -> None:
    """Another actor, action or reason is another entry."""
    noted = [
        refusal(),
        refusal("RotateToken"),
        refusal(reason="PERSON_ONLY"),
        refusal(actor="user:2"),
        refusal(actor="token:1"),
    ]
    log = Denials(site.storage, log_of(site))
    for event in noted * 10:
        log.note(event)
    log.flush()
    log.flush()

    assert [(entry.action, entry.reason, entry.actor) for entry in denied(site)] == [
        (event.action, event.reason, event.actor) for event in noted
    ]
    assert counts(site) == [10] * 5


def test_two_processes_record_one_entry(site: Site) -> None:
    """A refusal that another process recorded within the minute isn't recorded again, but counted for later."""
    storage = Storage(site.settings.database)
    one, other = Denials(site.storage, log_of(site)), Denials(storage, log_of(site))
    for _ in range(1000):
        one.note(refusal())
        other.note(refusal())
    one.flush()
    other.flush()
    one.flush()
    other.flush()
    together = counts(site)
    other.flush(closing=True)
    storage.close()

    assert together == [1000]
    assert counts(site) == [1000, 1000]
    assert verify(site) == INTACT


def test_each_process_records_its_refusals_in_turn(site: Site) -> None:
    """Two processes with denials all the time: entries are at least the quiet time apart, and no denial is lost."""
    quiet = 0.6
    storage, limits = Storage(site.settings.database), Limits(denial_seconds=quiet)
    logs = [Denials(each, log_of(site), limits) for each in (site.storage, storage)]
    noted = 0

    def note_and_flush() -> bool:
        nonlocal noted
        for log in logs:
            log.note(refusal())
            noted += 1
            log.flush()
        return len(denied(site)) >= 3

    wait_until(note_and_flush)
    times = [entry.time.ToMicroseconds() for entry in denied(site)]
    for log in logs:
        log.flush(closing=True)
    storage.close()

    assert all(later - earlier >= quiet * 1_000_000 for earlier, later in pairwise(times))
    assert sum(counts(site)) == noted


def test_two_servers_record_one_entry(site: Site) -> None:
    """A member who is refused at two servers of one database is in the log once a minute."""
    other = build_server(site.settings)
    other.start()
    refuse(site, 5)
    wait_until(lambda: len(counts(site)) == 1)
    refuse(site, 5, address=other.address)
    marker = organization_pb2.UpdateOrganizationRequest(organization=organization_pb2.Organization(display_name="x"))
    with Client(other.address, site.tokens["ADMIN"], timeout=20) as client, pytest.raises(PermissionMissing):
        client.organization.update(marker.organization.display_name)
    wait_until(lambda: any(entry.action == "UpdateOrganization" for entry in denied(site)))
    seen = [entry.action for entry in denied(site)]
    other.stop(0)
    site.server.stop(0)

    rows = sql(site, "SELECT details FROM audit_entries WHERE reason != '' AND action = 'CreatePersonalToken'")
    assert sorted(seen) == ["CreatePersonalToken", "UpdateOrganization"]
    assert sum(int(row.details.partition('"count":')[2].partition(",")[0].rstrip("}")) for row in rows) == 10


def test_refusals_from_many_threads_are_all_counted(site: Site) -> None:
    """Denials noted and flushed by many threads at once are all counted."""
    log = Denials(site.storage, log_of(site))
    barrier = threading.Barrier(5)

    def note() -> None:
        barrier.wait()
        for _ in range(2000):
            log.note(refusal())

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    while any(thread.is_alive() for thread in threads):
        log.flush()
    for thread in threads:
        thread.join()
    log.flush(closing=True)

    assert sum(counts(site)) == 8000
    assert len(counts(site)) <= 2


def test_kinds_above_the_maximum_share_an_entry(sqlite_site: Site) -> None:
    """Up to the maximum of kinds for one organization, each has an entry; all others share one entry."""
    log = Denials(sqlite_site.storage, log_of(sqlite_site), Limits(denial_kinds=3))
    for number in range(8):
        log.note(refusal(actor=f"user:{number}"))
    log.flush()

    assert [(entry.actor, to_dict(entry)["details"]["count"]) for entry in denied(sqlite_site)] == [
        ("user:0", 1),
        ("user:1", 1),
        ("user:2", 1),
        ("others", 5),
    ]


def test_refusals_that_cannot_be_recorded_are_kept(site: Site) -> None:
    """A database that doesn't take an entry: the count stays, and is recorded when it does."""
    log = Denials(site.storage, log_of(site))
    log.note(refusal())
    signature = bytes(head(site).signature)
    sql(site, "UPDATE audit_heads SET signature = :junk", junk=bytes(32))
    log.flush()
    log.note(refusal())
    sql(site, "UPDATE audit_heads SET signature = :signature", signature=signature)
    log.flush(closing=True)

    assert counts(site) == [2]


def test_refused_checks_are_not_recorded(site: Site) -> None:
    """A Check, allowed or refused, is in no audit log; only management is."""
    before = dump(site)
    with Client(site.address, site.tokens["VIEWER"], timeout=20) as client:
        for ask in (
            lambda: client.check("ann@acme.io", "view", "members"),
            lambda: client.batch_check([("ann@acme.io", "view", "members")]),
            lambda: list(client.permissions("ann@acme.io")),
            lambda: list(client.subjects("view", "members")),
        ):
            with pytest.raises(PermissionMissing):
                ask()
        client.check(f"user:{site.members['VIEWER'].user_id}", "update", "owners")
    unchanged = dump(site) == before
    refuse(site, 1)
    wait_until(lambda: len(denied(site)) > 0)

    assert unchanged
    assert [entry.action for entry in denied(site)] == ["CreatePersonalToken"]


def test_refused_reads_are_recorded(site: Site) -> None:
    """A refused attempt to read the log is recorded in it."""
    with Client(site.address, site.tokens["VIEWER"], timeout=20) as client:
        for attempt in (
            lambda: list(client.audit.list()),
            lambda: list(client.audit.export("csv")),
            client.audit.verify,
            lambda: list(client.tokens.list(kind="organization")),
        ):
            with pytest.raises(PermissionMissing):
                attempt()
    wait_until(lambda: len(denied(site)) >= 4)

    assert sorted(entry.action for entry in denied(site)) == [
        "ExportAuditEntries",
        "ListAuditEntries",
        "ListTokens",
        "VerifyAuditLog",
    ]


def test_other_failures_are_not_recorded(site: Site) -> None:
    """Unauthenticated calls, bad input and missing things are not refusals of an actor."""
    before = dump(site)
    attempts = [
        ("DeleteToken", token_pb2.DeleteTokenRequest(id="a" * 22), site.tokens["OWNER"]),
        ("CreatePersonalToken", token_pb2.CreatePersonalTokenRequest(), site.tokens["OWNER"]),
        ("CreatePersonalToken", token_pb2.CreatePersonalTokenRequest(display_name="x"), "rcp_nobody"),
    ]
    for rpc, request, token in attempts:
        with pytest.raises(RolecallError):
            call(site, rpc, request, token)
    site.server.stop(0)

    assert dump(site) == before


def test_an_old_secret_is_recorded(site: Site) -> None:
    """An old secret after its rotation is refused and recorded with its token; the new one still works."""
    created = call(
        site,
        "CreatePersonalToken",
        token_pb2.CreatePersonalTokenRequest(display_name="laptop"),
        site.tokens["CONTRIBUTOR"],
    )
    request = token_pb2.RotateTokenRequest(id=created.token.id, overlap=Duration())
    rotated = call(site, "RotateToken", request, site.tokens["CONTRIBUTOR"])
    at = revision(site)
    for _ in range(3):
        with pytest.raises(UnauthenticatedCredential), Client(site.address, created.secret) as client:
            client.session.who_am_i()
    wait_until(lambda: len(denied(site)) > 0)

    (entry,) = denied(site)
    assert entry.action == "PresentRotatedSecret"
    assert entry.actor == f"user:{site.members['CONTRIBUTOR'].user_id}"
    assert entry.credential_id == created.token.id
    assert entry.object == f"token:{created.token.id}"
    assert entry.reason == "UNAUTHENTICATED_CREDENTIAL"
    assert revision(site) == at
    assert created.secret not in str(dump(site))
    with Client(site.address, rotated.secret) as client:
        assert client.session.who_am_i().credential.id == created.token.id


def test_a_secret_within_its_overlap_is_not_recorded(site: Site) -> None:
    """Use of an old secret within its overlap is not recorded, nor is a wrong secret."""
    created = call(
        site,
        "CreatePersonalToken",
        token_pb2.CreatePersonalTokenRequest(display_name="laptop"),
        site.tokens["CONTRIBUTOR"],
    )
    request = token_pb2.RotateTokenRequest(id=created.token.id, overlap=Duration(seconds=600))
    call(site, "RotateToken", request, site.tokens["CONTRIBUTOR"])
    with Client(site.address, created.secret) as client:
        client.session.who_am_i()
    site.server.stop(0)

    assert sql(site, "SELECT 1 FROM audit_entries WHERE action = 'PresentRotatedSecret'") == []


def test_broken_log_of_one_organization_affects_no_other(sqlite_site: Site) -> None:
    """After the head of one organization's log is forged, others' denials are still recorded, and the server stops."""
    storage, log = sqlite_site.server.storage, log_of(sqlite_site)
    organizations.create(storage, log, sqlite_site.server.live.in_force.policy, "globex", "gil@globex.io")
    kept = Denials(storage, log)
    kept.note(refusal())
    kept.note(replace(refusal(), organization="globex"))
    sql(sqlite_site, "UPDATE audit_heads SET signature = :junk WHERE organization = 'acme'", junk=b"j" * 32)

    kept.flush()

    recorded = sql(sqlite_site, "SELECT organization FROM audit_entries WHERE reason = 'PERMISSION_MISSING'")
    assert [row[0] for row in recorded] == ["globex"]
    sqlite_site.core.denials.note(refusal())
    sqlite_site.server.stop(0)


def test_flushing_from_two_threads_counts_each_refusal_once(sqlite_site: Site) -> None:
    """The background and a stop may flush at the same time."""
    kept = Denials(sqlite_site.server.storage, log_of(sqlite_site))
    for number in range(50):
        kept.note(refusal(actor=f"user:{number}"))
    threads = [threading.Thread(target=kept.flush, kwargs={"closing": True}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counts(sqlite_site) == [1] * 50


def test_refusal_names_the_object(sqlite_site: Site) -> None:
    """The entry of a refused DeleteToken names the token that it was about."""
    owned = token_id(sqlite_site.tokens["OWNER"])
    with pytest.raises(PermissionMissing):
        call(sqlite_site, "DeleteToken", token_pb2.DeleteTokenRequest(id=owned), sqlite_site.tokens["ADMIN"])
    wait_until(lambda: len(denied(sqlite_site)) > 0)

    assert [entry.object for entry in denied(sqlite_site)] == [f"token:{owned}"]


def test_a_rotated_secret_in_a_question_is_recorded(site: Site) -> None:
    """An old secret in a Check is no live token; the entry names the token and its holder."""
    with Client(site.address, site.tokens["OWNER"], timeout=20) as client:
        made = client.tokens.create_personal("relayed")
        client.tokens.rotate(made.token.id)
        answer = client.check_token(made.secret, "view", "secrets")
    wait_until(lambda: len(denied(site)) > 0)

    (entry,) = denied(site)
    assert answer.reason.name == "TOKEN_INVALID"
    assert (entry.action, entry.object) == ("PresentRotatedSecret", f"token:{made.token.id}")
    assert entry.actor == f"user:{site.members['OWNER'].user_id}"


def test_another_process_waits_for_the_minute_without_writing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that another process has just recorded costs no transaction that writes, until its minute is over."""
    first, second = Denials(site.server.storage, log_of(site)), Denials(site.storage, log_of(site))
    for kept in (first, second):
        kept.note(refusal())
    first.flush()
    writes: list[object] = []
    monkeypatch.setattr(site.storage, "write", writes.append)
    for _ in range(3):
        second.flush()

    assert writes == []
    assert counts(site) == [1]


def test_entry_is_about_the_denials_that_it_counts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denial that comes while the first is written doesn't get into its entry, but has one of its own."""
    storage = site.server.storage
    kept, write = Denials(storage, log_of(site)), storage.write

    def interrupted(work: Any) -> Any:
        if not kept._pending[kept._key(refusal())].count:
            kept.note(replace(refusal(), call_id="second"))
        return write(work)

    monkeypatch.setattr(storage, "write", interrupted)
    kept.note(replace(refusal(), call_id="first"))
    kept.flush()
    monkeypatch.undo()
    kept.flush(closing=True)

    assert [entry.call_id for entry in denied(site)] == ["first", "second"]
    assert counts(site) == [1, 1]
