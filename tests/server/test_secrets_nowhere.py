"""A token's secret is only in the answer that created it: in no file, log, error or later answer."""

import base64
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from psycopg import sql

from rolecall.v1 import audit_pb2, organization_pb2, session_pb2, shared_pb2, token_pb2
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1.audit_pb2_grpc import AuditServiceStub
from rolecall.v1.authorization_pb2_grpc import AuthorizationServiceStub
from rolecall.v1.organization_pb2_grpc import OrganizationServiceStub
from rolecall.v1.session_pb2_grpc import SessionServiceStub
from rolecall.v1.token_pb2_grpc import TokenServiceStub
from support.commands import SMALL_POLICY, SMALL_POLICY_TEST, Serving, Workspace, copy_policy, only_line

# Permissions that the requests of this test need.
RULES = """\
p, OWNER, personal-tokens, create, allow
p, OWNER, organization-tokens, create, allow
p, OWNER, organization-tokens, view, allow
p, OWNER, member-tokens, view, allow
p, OWNER, account, manage, allow
p, OWNER, audit-logs, view, allow
p, OWNER, audit-logs, download, allow
p, OWNER, authorization, explain, allow
"""
REPEATED = "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class RecordedCalls:
    """Stubs of the server, and all its answers so far."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.tokens = TokenServiceStub(channel)
        self.session = SessionServiceStub(channel)
        self.organization = OrganizationServiceStub(channel)
        self.audit = AuditServiceStub(channel)
        self.authorization = AuthorizationServiceStub(channel)
        self.answers: list[bytes] = []

    def call(self, method: Any, request: Any, token: str) -> Any:
        """Return the answer, None for an error; record either."""
        try:
            answer, call = method.with_call(request, metadata=(("authorization", f"Bearer {token}"),), timeout=10)
        except grpc.RpcError as error:
            self._keep_error(error)
            return None
        self.answers.append(answer.SerializeToString() + repr(call.trailing_metadata()).encode())
        return answer

    def stream(self, method: Any, request: Any, token: str) -> None:
        """Make a streaming call; record all its answers."""
        try:
            for answer in method(request, metadata=(("authorization", f"Bearer {token}"),), timeout=10):
                self.answers.append(answer.SerializeToString())
        except grpc.RpcError as error:
            self._keep_error(error)

    def refusal(self, method: Any, request: Any, token: str) -> tuple[str, str]:
        """Return reason and field of a call that must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            method(request, metadata=(("authorization", f"Bearer {token}"),), timeout=10)
        self._keep_error(caught.value)
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        status = rpc_status.from_call(cast("grpc.Call", caught.value))
        for detail in status.details if status else ():
            for message in (info, bad_request):
                if detail.Is(message.DESCRIPTOR):
                    detail.Unpack(message)
        return info.reason, ", ".join(violation.field for violation in bad_request.field_violations)

    def _keep_error(self, error: Any) -> None:
        trailers = b"".join(
            value if isinstance(value, bytes) else value.encode() for _, value in error.trailing_metadata() or ()
        )
        self.answers.append(f"{error.code()} {error.details()} {error.debug_error_string()}".encode() + trailers)


def forms_of(secret: str) -> Iterator[bytes]:
    """The forms that a leaked secret could have: its text and its bytes, plain, in hex and in base64."""
    # Without the checksum: a text without its end discloses as much.
    tail = secret.rpartition("_")[2][:43]
    number = 0
    for digit in tail:
        number = number * 62 + DIGITS.index(digit)
    for raw in (tail.encode(), number.to_bytes(32, "big")):
        yield raw
        yield raw.hex().encode()
        yield raw.hex().upper().encode()
        for shift in range(3):
            # The middle of its base64 is one of three, depending on the length of the text before it.
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                yield encode(b"\0" * shift + raw)[4:40]


def found_in(content: bytes, secret: str) -> bool:
    """Whether any form of the secret is there."""
    return any(form in content for form in forms_of(secret))


def stored(database_url: str, folder: Path) -> bytes:
    """All that the database holds: SQLite's files as they are, and every table's rows."""
    if database_url.startswith("sqlite"):
        path = folder / "rolecall.db"
        files = b"".join(file.read_bytes() for file in folder.glob("rolecall.db*"))
        with closing(sqlite3.connect(path)) as connection:
            return files + "\n".join(connection.iterdump()).encode()
    with psycopg.connect(database_url) as database:
        names = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return b"\n".join(
            str(row).encode()
            for (name,) in names
            for row in database.execute(sql.SQL("SELECT t.*, t::text FROM {} t").format(sql.Identifier(name)))
        )


def send_in_wrong_fields(calls: RecordedCalls, owner: str, secret: str) -> None:
    """Send the secret in fields that are for something else: each is refused, or finds nothing."""
    identifier = owner.split("_")[1]
    for method, request in (
        (calls.tokens.CreatePersonalToken, token_pb2.CreatePersonalTokenRequest(display_name=secret)),
        (calls.tokens.CreatePersonalToken, token_pb2.CreatePersonalTokenRequest(display_name="x", request_id=secret)),
        (calls.tokens.CreatePersonalToken, token_pb2.CreatePersonalTokenRequest(display_name="x", organization=secret)),
        (calls.tokens.CreateOrganizationToken, token_pb2.CreateOrganizationTokenRequest(display_name="x", role=secret)),
        (calls.tokens.ListTokens, token_pb2.ListTokensRequest(page_token=secret)),
        (calls.tokens.ListTokens, token_pb2.ListTokensRequest(user_id=secret)),
        (calls.tokens.RotateToken, token_pb2.RotateTokenRequest(id=secret)),
        (calls.tokens.RotateToken, token_pb2.RotateTokenRequest(id=identifier, etag=secret)),
        (calls.tokens.DeleteToken, token_pb2.DeleteTokenRequest(id=secret)),
        (calls.session.WhoAmI, session_pb2.WhoAmIRequest(organization=secret)),
        (
            calls.organization.UpdateOrganization,
            organization_pb2.UpdateOrganizationRequest(organization=organization_pb2.Organization(display_name=secret)),
        ),
        (calls.audit.ListAuditEntries, audit_pb2.ListAuditEntriesRequest(filter=audit_pb2.AuditFilter(actor=secret))),
        (
            calls.audit.VerifyAuditLog,
            audit_pb2.VerifyAuditLogRequest(known=audit_pb2.AuditMark(sequence=1, hash=secret)),
        ),
        (calls.authorization.Check, pb.CheckRequest(subject=secret + "*", action="view", resource="secrets")),
        (calls.authorization.Check, pb.CheckRequest(subject=secret, action="view", resource="secrets")),
        (calls.authorization.Check, pb.CheckRequest(subject=f"token:{secret}", action="view", resource="secrets")),
        (calls.authorization.Check, pb.CheckRequest(subject=f"user:{secret}", action="view", resource="secrets")),
        (
            calls.authorization.BatchCheck,
            pb.BatchCheckRequest(
                checks=[pb.BatchCheckItem(subject=f"token:{secret}", action="view", resource="secrets")]
            ),
        ),
        (calls.authorization.ListPermissions, pb.ListPermissionsRequest(subject="role:VIEWER", page_token=secret)),
    ):
        calls.call(method, request, owner)
    calls.call(calls.session.WhoAmI, session_pb2.WhoAmIRequest(), f"{secret}x")
    calls.call(calls.session.WhoAmI, session_pb2.WhoAmIRequest(), secret[:-1])


def name_in_questions(calls: RecordedCalls, owner: str, text: str) -> None:
    """Send a text with a secret as action, resource and subject: each is refused for that field."""
    reader = "user:ann@acme.io"
    for field, action, resource in (("action", text, "secrets"), ("resource", "view", text)):
        words: dict[str, Any] = {"action": action, "resource": resource}
        for explain in (False, True):
            check = pb.CheckRequest(subject=reader, explain=explain, **words)
            assert calls.refusal(calls.authorization.Check, check, owner) == ("INVALID_FIELD", field), words
        item = pb.BatchCheckItem(subject=reader, **words)
        answer = calls.call(calls.authorization.BatchCheck, pb.BatchCheckRequest(checks=[item]), owner)
        assert answer.results[0].error.field.rpartition(".")[2] == field, answer
        plan = pb.PlanResourcesRequest(subject=reader, action=action, resource_type=resource)
        place = ("INVALID_FIELD", "action" if field == "action" else "resource_type")
        assert calls.refusal(calls.authorization.PlanResources, plan, owner) == place, words
        subjects = pb.ListSubjectsRequest(**words)
        assert calls.refusal(calls.authorization.ListSubjects, subjects, owner) == ("INVALID_FIELD", field), words
        only = shared_pb2.Restriction(permissions=[shared_pb2.Permission(**words)])
        for method, request in (
            (
                calls.tokens.CreatePersonalToken,
                token_pb2.CreatePersonalTokenRequest(display_name="x", restriction=only),
            ),
            (
                calls.tokens.CreateOrganizationToken,
                token_pb2.CreateOrganizationTokenRequest(display_name="x", role="VIEWER", restriction=only),
            ),
        ):
            reason, where = calls.refusal(method, request, owner)
            assert reason == "INVALID_FIELD", words
            assert where == f"restriction.permissions[0].{field}", words
    asked = pb.CheckRequest(subject=f"token:{text}", action="view", resource="secrets", explain=True)
    assert calls.refusal(calls.authorization.Check, asked, owner) == ("INVALID_FIELD", "subject")


def present_everywhere(calls: RecordedCalls, owner: str, secret: str) -> None:
    """Present the secret in every possible way."""
    calls.call(calls.session.WhoAmI, session_pb2.WhoAmIRequest(), secret)
    check = pb.CheckRequest(subject_token=secret, action="view", resource="secrets", explain=True)
    calls.call(calls.authorization.Check, check, owner)
    calls.call(calls.authorization.Check, pb.CheckRequest(subject_token=f"{secret}0", action="v", resource="x"), owner)
    plan = pb.PlanResourcesRequest(subject_token=secret, action="view", resource_type="secrets")
    calls.call(calls.authorization.PlanResources, plan, owner)
    item = pb.BatchCheckItem(subject_token=secret, action="view", resource="secrets")
    wrong = pb.BatchCheckItem(subject_token=secret, action="*", resource="secrets")
    calls.call(calls.authorization.BatchCheck, pb.BatchCheckRequest(checks=[item, wrong]), owner)
    calls.call(calls.tokens.ListTokens, token_pb2.ListTokensRequest(), owner)
    calls.call(calls.audit.ListAuditEntries, audit_pb2.ListAuditEntriesRequest(), secret)
    for form in (audit_pb2.AUDIT_FORMAT_JSON_LINES, audit_pb2.AUDIT_FORMAT_CSV):
        calls.stream(calls.audit.ExportAuditEntries, audit_pb2.ExportAuditEntriesRequest(format=form), owner)


def test_token_secret_is_only_in_the_answer_that_created_it(database_url: str, tmp_path: Path) -> None:
    """Tokens are created, presented, repeated and sent in wrong fields, with all logs at their most detailed level."""
    folder = tmp_path / "work"
    folder.mkdir()
    copy_policy(folder)
    (folder / "policies" / "policy.csv").write_text(SMALL_POLICY + RULES)
    (folder / "policies" / "policy_test.csv").write_text(SMALL_POLICY_TEST)
    url = "sqlite:///rolecall.db" if database_url.startswith("sqlite") else database_url
    workspace = Workspace(folder, {"ROLECALL_DATABASE": url})
    commands = [workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io")]
    commands += [workspace.run("operator", "tokens", "issue", "--organization", "acme", "--email", "ann@acme.io")]
    owner, issued = (only_line(finished) for finished in commands)
    serving = Serving(workspace, "--log-level", "debug", "--decision-log", "all")
    try:
        with grpc.insecure_channel(serving.address) as channel:
            calls = RecordedCalls(channel)
            repeated = token_pb2.CreatePersonalTokenRequest(display_name="laptop", request_id=REPEATED)
            personal = calls.call(calls.tokens.CreatePersonalToken, repeated, owner)
            program = calls.call(
                calls.tokens.CreateOrganizationToken,
                token_pb2.CreateOrganizationTokenRequest(
                    display_name="billing",
                    role="VIEWER",
                    restriction=shared_pb2.Restriction(
                        permissions=[shared_pb2.Permission(resource="secrets", action="view")]
                    ),
                    request_id=REPEATED,
                ),
                owner,
            )
            rotation = token_pb2.RotateTokenRequest(id=personal.token.id, request_id=REPEATED)
            present_everywhere(calls, owner, personal.secret)
            rotated = calls.call(calls.tokens.RotateToken, rotation, owner)
            again = [
                calls.call(calls.tokens.CreatePersonalToken, repeated, owner),
                calls.call(calls.tokens.RotateToken, rotation, owner),
            ]
            minted = [personal.secret, program.secret, rotated.secret]
            for secret in (owner, issued, *minted):
                # A copied token may lack some of its end, or have other characters around it.
                for text in (secret, *(secret[:-missing] for missing in range(1, 7))):
                    send_in_wrong_fields(calls, owner, text)
                    name_in_questions(calls, owner, text)
                for text in (f"x/{secret}", f"{secret}*", f"({secret})", f"{secret} "):
                    name_in_questions(calls, owner, text)
                present_everywhere(calls, owner, secret)
            calls.call(calls.tokens.DeleteToken, token_pb2.DeleteTokenRequest(id=program.token.id), owner)
            calls.call(calls.session.SignOut, session_pb2.SignOutRequest(), rotated.secret)
            for secret in minted:
                present_everywhere(calls, owner, secret)
            running = stored(database_url, folder) if url == database_url else stored(url, folder)
    finally:
        serving.process.terminate()
        serving.process.wait(timeout=20)

    logs = {name: (folder / name).read_bytes() for name in ("serve.log", "decisions.jsonl")}
    places = {"database": running, "database afterwards": stored(url, folder), **logs}
    places |= {"standard error": "".join(finished.stderr for finished in commands).encode()}
    assert [answer.secret_lost for answer in again] == [True, True]
    assert b"refused" in logs["serve.log"]
    assert logs["decisions.jsonl"].count(b"\n") == 27
    for secret in (owner, issued, *minted):
        assert [name for name, content in places.items() if found_in(content, secret)] == []
        assert secret.split("_")[1].encode() in running
        answered = [answer for answer in calls.answers if found_in(answer, secret)]
        assert len(answered) == (secret in minted), answered
