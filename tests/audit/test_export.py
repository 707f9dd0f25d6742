"""Lists and exports hold each entry that passes the filter, once, in order, for callers with the right at the time."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall import Client
from rolecall.audit import AuditLog, Event, erase
from rolecall.client import audit_filter, to_dict
from rolecall.credentials import server_key
from rolecall.domain import rfc3339
from rolecall.errors import (
    InvalidField,
    MemberNotFound,
    OrganizationNotFound,
    PageToken,
    PermissionMissing,
    UnauthenticatedCredential,
)
from rolecall.services import organizations
from rolecall.v1 import audit_pb2, token_pb2
from rolecall.v1.audit_pb2_grpc import AuditServiceStub
from support.audit_logs import call, entries, head, log_of, record_events, sql, token_id
from support.sites import Site

CSV, JSON_LINES = audit_pb2.AUDIT_FORMAT_CSV, audit_pb2.AUDIT_FORMAT_JSON_LINES
OUTCOMES = {audit_pb2.AUDIT_OUTCOME_SUCCEEDED: "succeeded", audit_pb2.AUDIT_OUTCOME_DENIED: "denied"}

Line = dict[str, Any]


def line_of(entry: audit_pb2.AuditEntry) -> Line:
    """Return the values of an export's line for an entry."""
    return {
        "sequence": entry.sequence,
        "time": rfc3339(entry.time.ToMicroseconds()),
        "actor": entry.actor,
        "credential_id": entry.credential_id,
        "action": entry.action,
        "object": entry.object,
        "outcome": OUTCOMES[entry.outcome],
        "reason": entry.reason,
        "details": to_dict(entry).get("details") or {},
        "call_id": entry.call_id,
        "previous_hash": entry.previous_hash,
        "hash": entry.hash,
    }


def read(data: bytes, form: str) -> list[Line]:
    """The lines of an exported file."""
    text = data.decode()
    assert not text or text.endswith("\n")
    if form == "jsonl":
        return [json.loads(line) for line in text.split("\n")[:-1]]
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    return [{**row, "sequence": int(row["sequence"]), "details": json.loads(row["details"])} for row in rows]


def export(site: Site, form: str, wanted: audit_pb2.AuditFilter | None = None) -> list[bytes]:
    """Return the chunks of an export."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        return list(client.audit.export(form, wanted))


def pieces(
    channel: grpc.Channel, token: str, request: audit_pb2.ExportAuditEntriesRequest
) -> Iterator[audit_pb2.ExportAuditEntriesResponse]:
    """The messages of one stream, as they come."""
    metadata = (("authorization", f"Bearer {token}"),)
    yield from AuditServiceStub(channel).ExportAuditEntries(request, metadata=metadata, timeout=60)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_export_is_the_list(site: Site, form: str) -> None:
    """Thousands of entries in many pieces: joined, they are the list from the oldest to the newest."""
    record_events(site, 2600)
    parts = export(site, form)
    found = read(b"".join(parts), form)

    assert len(parts) >= 5
    assert len(found) == 2606
    assert found == [line_of(entry) for entry in entries(site)]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(("action", "count"), [("Nothing", 0), ("CreateOrganization", 1)])
def test_exports_of_few_or_no_entries(site: Site, form: str, action: str, count: int) -> None:
    """An export without entries is CSV's header alone, or an empty JSON lines file; one entry is one line."""
    data = b"".join(export(site, form, audit_filter(action=action)))

    assert len(data.splitlines()) == count + (form == "csv")
    assert read(data, form) == [line_of(entry) for entry in entries(site)[:count]]


@pytest.mark.parametrize("length", [499, 500, 501, 1000])
def test_exports_at_the_border_of_a_chunk(sqlite_site: Site, length: int) -> None:
    """A log whose entries exactly fill the pieces is exported completely."""
    record_events(sqlite_site, length - 6)

    found = read(b"".join(export(sqlite_site, "jsonl")), "jsonl")
    assert [line["sequence"] for line in found] == list(range(1, length + 1))


@pytest.mark.parametrize("form", [CSV, JSON_LINES])
def test_broken_export_can_be_continued(site: Site, form: audit_pb2.AuditFormat.ValueType) -> None:
    """A new stream from `last_sequence` after each piece gives, together, the same bytes as one stream."""
    record_events(site, 1700)
    wanted = audit_filter(outcome="succeeded")
    request = audit_pb2.ExportAuditEntriesRequest(format=form, filter=wanted)
    token = site.tokens["ADMIN"]
    with grpc.insecure_channel(site.address) as channel:
        whole = [piece.data for piece in pieces(channel, token, request)]
        joined = []
        while piece := next(pieces(channel, token, request), None):
            joined.append(piece.data)
            request.after_sequence = piece.last_sequence

    assert len(joined) >= 3
    assert b"".join(joined) == b"".join(whole)


def test_export_after_any_entry_starts_with_the_next(sqlite_site: Site) -> None:
    """`after_sequence` may be any number: what follows comes without loss or repetition, and without a header."""
    record_events(sqlite_site, 30)
    found = {}
    with grpc.insecure_channel(sqlite_site.address) as channel:
        for after in (1, 17, 35, 36, 37, 10_000, 2**63 - 1):
            request = audit_pb2.ExportAuditEntriesRequest(format=CSV, after_sequence=after)
            data = b"".join(piece.data for piece in pieces(channel, sqlite_site.tokens["ADMIN"], request))
            found[after] = [int(line.partition(",")[0]) for line in data.decode().splitlines()]

    assert found == {after: list(range(after + 1, 37)) if after < 36 else [] for after in found}


@pytest.mark.parametrize("begin", ["=", "+", "-", "@"])
def test_formulas_are_defused_in_csv(site: Site, begin: str) -> None:
    """In CSV, a cell that a spreadsheet would read as a formula begins with an apostrophe; JSON lines are unchanged."""
    text = f"{begin}cmd|'/C calc'!A0"
    event = Event("acme", text, text, text, {"name": text}, text, text, text)
    record_events(site, 1, lambda _: event)
    wanted = audit_filter(actor=text)
    (cells,) = read(b"".join(export(site, "csv", wanted)), "csv")
    (line,) = read(b"".join(export(site, "jsonl", wanted)), "jsonl")

    columns = ("actor", "action", "object", "credential_id", "call_id", "reason")
    assert {cells[column] for column in columns} == {f"'{text}"}
    assert {line[column] for column in columns} == {text}
    assert not any(str(cell).startswith(("=", "+", "-", "@")) for cell in cells.values())
    assert cells["details"] == line["details"] == {"name": text}


def test_a_formula_in_a_request_id_is_defused(site: Site) -> None:
    """An x-request-id that a spreadsheet would evaluate comes out of the CSV as text."""
    request = token_pb2.CreatePersonalTokenRequest(display_name='=1+1, "x"')
    call(site, "CreatePersonalToken", request, site.tokens["OWNER"], "=HYPERLINK(1)")
    line = read(b"".join(export(site, "csv")), "csv")[-1]

    assert line["call_id"] == "'=HYPERLINK(1)"
    assert line["details"]["after"]["display_name"] == '=1+1, "x"'


def test_unusual_text_is_exported_unchanged(site: Site) -> None:
    """Commas, quotes, line separators and every script are in the file as they are in the list."""
    text = 'a,"b"\u2028\u0085;Ä漢😀\\n\'\t<'
    record_events(site, 3, lambda number: Event("acme", text, "Strange", text, {text: [text, None, True, {"x": 1.5}]}))

    expected = [line_of(entry) for entry in entries(site)[-3:]]
    assert expected[0]["object"] == text
    for form in ("csv", "jsonl"):
        assert read(b"".join(export(site, form, audit_filter(action="Strange"))), form) == expected


@pytest.mark.parametrize("loss", ["token", "role"])
def test_export_ends_when_the_permission_is_lost(site: Site, loss: str) -> None:
    """A caller whose token is deleted, or role lowered, while the file streams, gets no further piece."""
    record_events(site, 4500, lambda number: Event("acme", "operator", "Long", "", {"text": f"{number:05}" * 200}))
    request = audit_pb2.ExportAuditEntriesRequest(format=JSON_LINES)
    with grpc.insecure_channel(site.address) as channel:
        stream = pieces(channel, site.tokens["ADMIN"], request)
        first = len(next(stream).data.splitlines())
        if loss == "token":
            with Client(site.address, site.tokens["OWNER"]) as client:
                client.tokens.delete(token_id(site.tokens["ADMIN"]))
        else:
            statement = "UPDATE members SET role = 'VIEWER' WHERE user_id = :user_id"
            sql(site, statement, user_id=site.members["ADMIN"].user_id)
        rest: list[int] = []
        with pytest.raises(grpc.RpcError) as caught:
            rest.extend(len(piece.data.splitlines()) for piece in stream)

    codes = {"token": grpc.StatusCode.UNAUTHENTICATED, "role": grpc.StatusCode.PERMISSION_DENIED}
    assert caught.value.code() is codes[loss]
    assert first + sum(rest) < 4500


def test_listing_and_exporting_need_permissions(site: Site) -> None:
    """Listing and exporting each need their own `audit-logs` permission; another organization's log isn't found."""
    with Client(site.address, site.tokens["CONTRIBUTOR"]) as client:
        with pytest.raises(PermissionMissing):
            next(client.audit.list())
        with pytest.raises(PermissionMissing):
            next(client.audit.export("csv"))
    with Client(site.address, "rcp_nobody") as client, pytest.raises(UnauthenticatedCredential):
        next(client.audit.export("csv"))
    with Client(site.address, site.tokens["OWNER"], "globex") as client:
        with pytest.raises(OrganizationNotFound):
            next(client.audit.list())
        with pytest.raises(OrganizationNotFound):
            next(client.audit.export("csv"))


def test_restriction_distinguishes_view_and_download(site: Site) -> None:
    """A credential that may only view can't download, and the other way round."""
    with Client(site.address, site.tokens["ADMIN"]) as client:
        viewing = client.tokens.create_personal("v", restriction=[("audit-logs", "view")]).secret
        downloading = client.tokens.create_personal("d", restriction=[("audit-logs", "download")]).secret
    with Client(site.address, viewing) as client:
        assert list(client.audit.list())
        with pytest.raises(PermissionMissing):
            next(client.audit.export("csv"))
    with Client(site.address, downloading) as client:
        assert b"".join(client.audit.export("csv"))
        with pytest.raises(PermissionMissing):
            next(client.audit.list())
        with pytest.raises(PermissionMissing):
            client.audit.verify()


def matches_filter(entry: audit_pb2.AuditEntry, wanted: audit_pb2.AuditFilter) -> bool:
    """Whether the entry matches the filter, computed independently."""
    at = entry.time.ToMicroseconds()
    return (
        (not wanted.HasField("start_time") or at >= wanted.start_time.ToMicroseconds())
        and (not wanted.HasField("end_time") or at < wanted.end_time.ToMicroseconds())
        and wanted.actor in ("", entry.actor)
        and wanted.action in ("", entry.action)
        and wanted.object in ("", entry.object)
        and wanted.outcome in (0, entry.outcome)
    )


def test_filters_select_the_matching_entries(site: Site) -> None:
    """With any filter, lists and both exports have exactly the matching entries."""
    record_events(site, 160)
    everything = entries(site)
    moments = st.none() | st.sampled_from([entry.time for entry in everything])
    channel = site.channel()
    stub = AuditServiceStub(channel)
    metadata = (("authorization", f"Bearer {site.tokens['ADMIN']}"),)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(
        start_time=moments,
        end_time=moments,
        actor=st.sampled_from(["", "", "user:1", "user:4", "operator", "user:", "USER:1", "%"]),
        action=st.sampled_from(["", "", "Action1", "Action6", "IssueToken", "Action"]),
        object=st.sampled_from(["", "", "token:1", "token:10", "organization:acme"]),
        outcome=st.sampled_from([0, 1, 2]),
        size=st.sampled_from([0, 3, 40, 1000]),
        form=st.sampled_from(["csv", "jsonl"]),
    )
    def check(size: int, form: str, **fields: Any) -> None:
        wanted = audit_pb2.AuditFilter(**fields)
        expected = [entry for entry in everything if matches_filter(entry, wanted)]
        request = audit_pb2.ListAuditEntriesRequest(filter=wanted, page_size=size)
        listed: list[audit_pb2.AuditEntry] = []
        while True:
            page = stub.ListAuditEntries(request, metadata=metadata, timeout=20)
            listed += page.entries
            assert len(page.entries) <= (size or 50)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        asked = audit_pb2.ExportAuditEntriesRequest(filter=wanted, format=CSV if form == "csv" else JSON_LINES)
        data = b"".join(piece.data for piece in stub.ExportAuditEntries(asked, metadata=metadata, timeout=20))

        assert listed == expected[::-1]
        assert read(data, form) == [line_of(entry) for entry in expected]

    check()


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (audit_pb2.AuditFilter(actor="a" * 129), "filter.actor"),
        (audit_pb2.AuditFilter(action="a" * 129), "filter.action"),
        (audit_pb2.AuditFilter(object="a" * 129), "filter.object"),
        (audit_pb2.AuditFilter(outcome=7), "filter.outcome"),  # type: ignore[arg-type]
    ],
)
def test_invalid_filters_are_refused(sqlite_site: Site, wanted: audit_pb2.AuditFilter, field: str) -> None:
    """Each is INVALID_FIELD and names the field, for a list and for an export."""
    with Client(sqlite_site.address, sqlite_site.tokens["ADMIN"]) as client:
        with pytest.raises(InvalidField) as listing:
            next(client.audit.list(wanted))
        with pytest.raises(InvalidField) as exporting:
            next(client.audit.export("csv", wanted))

    assert listing.value.field == exporting.value.field == field


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (audit_pb2.ExportAuditEntriesRequest(), "format"),
        (audit_pb2.ExportAuditEntriesRequest(format=9), "format"),  # type: ignore[arg-type]
        (audit_pb2.ExportAuditEntriesRequest(format=CSV, after_sequence=-1), "after_sequence"),
        (audit_pb2.ListAuditEntriesRequest(page_size=-1), "page_size"),
        (audit_pb2.VerifyAuditLogRequest(first_sequence=-1), "first_sequence"),
        (audit_pb2.VerifyAuditLogRequest(last_sequence=-1), "last_sequence"),
        (audit_pb2.VerifyAuditLogRequest(first_sequence=5, last_sequence=4), "last_sequence"),
        (audit_pb2.VerifyAuditLogRequest(known=audit_pb2.AuditMark(sequence=1, hash="xyz")), "known"),
        (audit_pb2.VerifyAuditLogRequest(known=audit_pb2.AuditMark(hash="0" * 64)), "known"),
    ],
)
def test_invalid_requests_are_refused(sqlite_site: Site, request_: Any, field: str) -> None:
    """Each is INVALID_FIELD and names the field."""
    rpc = request_.DESCRIPTOR.name.removesuffix("Request")
    with pytest.raises(InvalidField) as caught:
        call(sqlite_site, rpc, request_, sqlite_site.tokens["ADMIN"])

    assert caught.value.field == field


def page(site: Site, request: audit_pb2.ListAuditEntriesRequest, token: str = "") -> Any:
    """One page of the list."""
    return call(site, "ListAuditEntries", request, token or site.tokens["ADMIN"])


def test_pages_joined_are_the_list_while_entries_arrive(site: Site) -> None:
    """New entries, which belong before the first page, don't change the pages that follow."""
    record_events(site, 60)
    before = entries(site)[::-1]
    request = audit_pb2.ListAuditEntriesRequest(page_size=7)
    joined: list[audit_pb2.AuditEntry] = []
    while True:
        found = page(site, request)
        joined += found.entries
        if not found.next_page_token:
            break
        request.page_token = found.next_page_token
        record_events(site, 3)

    assert joined == before
    assert head(site).sequence == len(before) + 3 * 9


def test_the_last_page_has_no_token(sqlite_site: Site) -> None:
    """Where the entries exactly fill the pages, the last page has no token."""
    record_events(sqlite_site, 4)
    first = page(sqlite_site, audit_pb2.ListAuditEntriesRequest(page_size=5))
    second = page(sqlite_site, audit_pb2.ListAuditEntriesRequest(page_size=5, page_token=first.next_page_token))

    assert [entry.sequence for entry in first.entries] == [10, 9, 8, 7, 6]
    assert [entry.sequence for entry in second.entries] == [5, 4, 3, 2, 1]
    assert second.next_page_token == ""


def test_foreign_page_tokens_are_refused(site: Site) -> None:
    """A token that was changed, or is of another RPC, organization or filter, is PAGE_TOKEN."""
    record_events(site, 20)
    policy = site.server.live.in_force.policy
    founded = organizations.create(site.storage, log_of(site), policy, "globex", "gus@globex.io")
    record_events(site, 9, lambda _: Event("globex", "operator", "Note"))
    mine = page(site, audit_pb2.ListAuditEntriesRequest(page_size=2)).next_page_token
    tokens = call(site, "ListTokens", token_pb2.ListTokensRequest(page_size=2), site.tokens["ADMIN"]).next_page_token
    others = page(site, audit_pb2.ListAuditEntriesRequest(page_size=2), founded.token.text).next_page_token
    filtered = page(site, audit_pb2.ListAuditEntriesRequest(page_size=2, filter=audit_filter(actor="operator")))
    restrict = filtered.next_page_token
    swapped = mine[:-1] + ("A" if mine[-1] != "A" else "B")
    bad = [tokens, others, restrict, swapped, mine[:-2], mine + "A", "x", "*", "AAAA" * 10, "ä", mine * 2]
    for token in bad:
        assert token
        with pytest.raises(PageToken) as caught:
            page(site, audit_pb2.ListAuditEntriesRequest(page_size=2, page_token=token))
        assert caught.value.field == "page_token"
    with pytest.raises(PageToken):
        page(site, audit_pb2.ListAuditEntriesRequest(page_size=2, page_token=mine, filter=audit_filter(action="x")))
    with pytest.raises(PageToken):
        page(site, audit_pb2.ListAuditEntriesRequest(page_size=2, page_token=mine), founded.token.text)

    assert [e.sequence for e in page(site, audit_pb2.ListAuditEntriesRequest(page_token=mine)).entries] == list(
        range(24, 0, -1)
    )


@given(position=st.integers(0, 200), flip=st.integers(1, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_of_a_page_token_is_refused(sqlite_site: Site, position: int, flip: int) -> None:
    """A token with one changed character is refused: it never gives another page."""
    token = page(sqlite_site, audit_pb2.ListAuditEntriesRequest(page_size=2)).next_page_token
    at = position % len(token)
    other = chr((ord(token[at]) + flip - 32) % 95 + 32)
    if other == token[at]:
        return
    with pytest.raises(PageToken):
        page(
            sqlite_site, audit_pb2.ListAuditEntriesRequest(page_size=2, page_token=token[:at] + other + token[at + 1 :])
        )


# people


def test_entries_have_the_addresses_of_people(site: Site) -> None:
    """Members, former members and invited people have their address beside the id; erased people have none."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        (invited,) = client.invitations.create([("eve@x.io", "VIEWER")]).invitations
        viewer = site.members["VIEWER"]
        client.members.remove(viewer.user_id)
        entries = list(client.audit.list())
        about = {entry.object: entry.object_email for entry in entries}
        erase(site.storage, AuditLog(server_key.read(site.settings.key_file)), "acme", "viewer@acme.io")
        later = {entry.object: entry.object_email for entry in client.audit.list()}

    assert entries[0].actor_email == "ann@acme.io"
    assert about[f"user:{viewer.user_id}"] == "viewer@acme.io"
    assert about[f"invitation:{invited.id}"] == later[f"invitation:{invited.id}"] == "eve@x.io"
    assert later[f"user:{viewer.user_id}"] == ""
    assert about["organization:acme"] == ""


def test_entries_are_found_by_an_address(site: Site) -> None:
    """An address, in any case, finds what its present and former holders did, and what was done to them."""
    admin = site.members["ADMIN"]
    with Client(site.address, site.tokens["ADMIN"]) as client:
        client.tokens.create_personal("laptop")
    with Client(site.address, site.tokens["OWNER"]) as client:
        before = [entry.sequence for entry in client.audit.list(audit_filter(actor="Admin@ACME.io"))]
        client.members.remove(admin.user_id)
        by = list(client.audit.list(audit_filter(actor="user:admin@acme.io")))
        about = list(client.audit.list(audit_filter(object_name="admin@acme.io")))
        exported = read(b"".join(client.audit.export("jsonl", audit_filter(actor="admin@acme.io"))), "jsonl")
        with pytest.raises(MemberNotFound) as unknown:
            next(client.audit.list(audit_filter(actor="nobody@acme.io")))
        with pytest.raises(InvalidField) as malformed:
            next(client.audit.list(audit_filter(actor="ann@acme")))

    assert [entry.sequence for entry in by] == before
    assert {entry.actor for entry in by} == {f"user:{admin.user_id}"}
    assert "CreatePersonalToken" in {entry.action for entry in by}
    assert [line["sequence"] for line in exported] == before[::-1]
    assert [entry.action for entry in about][:1] == ["RemoveMember"]
    assert (unknown.value.field, malformed.value.field) == ("filter.actor", "filter.actor")


def test_addresses_are_for_those_who_see_members(site: Site) -> None:
    """A token that sees the log and no members gets ids only, and can't look for an address, present or former."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        auditor = client.tokens.create_personal("auditor", restriction=[("audit-logs", "view")]).secret
    with Client(site.address, auditor) as client:
        entries = list(client.audit.list())
        for address in ("ann@acme.io", "nobody@acme.io"):
            with pytest.raises(PermissionMissing) as caught:
                next(client.audit.list(audit_filter(actor=address)))

            assert caught.value.metadata["resource"] == "members"
            with pytest.raises(PermissionMissing) as caught:
                next(client.audit.export("csv", audit_filter(actor=address)))

            assert caught.value.metadata["action"] == "download"

    assert {(entry.actor_email, entry.object_email) for entry in entries} == {("", "")}
