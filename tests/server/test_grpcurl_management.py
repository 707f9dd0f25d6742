"""Real grpcurl against tokens, session, organization and audit log: JSON as a person would write it."""

import base64
import json
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from support.grpcurl import GRPCURL, grpcurl
from support.sites import Site

pytestmark = pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")

TOKENS = "rolecall.v1.TokenService"
AUDIT = "rolecall.v1.AuditService"


def call(site: Site, method: str, request: str, token: str = "") -> subprocess.CompletedProcess[str]:
    """Call a method with JSON; as the owner, unless another token is given."""
    bearer = f"authorization: Bearer {token or site.tokens['OWNER']}"
    return grpcurl("-H", bearer, "-d", request, site.address, method)


def answer_of(site: Site, method: str, request: str = "{}", token: str = "") -> dict[str, Any]:
    """The answer as JSON."""
    finished = call(site, method, request, token)
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


def test_token_calls_with_grpcurl(sqlite_site: Site) -> None:
    """Each RPC of TokenService once: a Duration as 3600s, a Timestamp, enums by name, a nested restriction."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")

    personal = answer_of(sqlite_site, f"{TOKENS}/CreatePersonalToken", '{"display_name": "laptop", "ttl": "3600s"}')
    restriction = '{"permissions": [{"resource": "authorization", "action": "check", "effect": "EFFECT_ALLOW"}]}'
    program = answer_of(
        sqlite_site,
        f"{TOKENS}/CreateOrganizationToken",
        f'{{"display_name": "billing", "role": "CONTRIBUTOR", "expire_time": "{tomorrow}",'
        f' "restriction": {restriction},'
        ' "request_id": "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"}',
    )
    listed = answer_of(
        sqlite_site,
        f"{TOKENS}/ListTokens",
        '{"kind": "CREDENTIAL_KIND_ORGANIZATION_TOKEN", "state": "TOKEN_STATE_ACTIVE", "page_size": 10}',
    )
    rotated = answer_of(
        sqlite_site, f"{TOKENS}/RotateToken", f'{{"id": "{personal["token"]["id"]}", "overlap": "1.5s"}}'
    )
    deleted = answer_of(sqlite_site, f"{TOKENS}/DeleteToken", f'{{"id": "{personal["token"]["id"]}"}}')

    assert personal["secret"].startswith("rcp_")
    life = datetime.fromisoformat(personal["token"]["expireTime"]) - datetime.fromisoformat(
        personal["token"]["createTime"]
    )
    assert abs(life - timedelta(hours=1)) < timedelta(seconds=5)
    assert program["token"]["kind"] == "CREDENTIAL_KIND_ORGANIZATION_TOKEN"
    assert program["token"]["expireTime"] == tomorrow
    assert program["token"]["restriction"] == json.loads(restriction)
    assert [token["id"] for token in listed["tokens"]] == [program["token"]["id"]]
    assert program["secret"] not in json.dumps(listed)
    assert rotated["secret"] != personal["secret"]
    assert deleted["token"]["state"] == "TOKEN_STATE_DELETED"


def test_session_and_organization_calls_with_grpcurl(sqlite_site: Site) -> None:
    """WhoAmI, UpdateOrganization and SignOut by grpcurl."""
    borrowed = answer_of(sqlite_site, f"{TOKENS}/CreatePersonalToken", '{"display_name": "borrowed"}')["secret"]

    who = answer_of(sqlite_site, "rolecall.v1.SessionService/WhoAmI")
    before = answer_of(sqlite_site, "rolecall.v1.OrganizationService/GetOrganization")["organization"]
    renamed = answer_of(
        sqlite_site,
        "rolecall.v1.OrganizationService/UpdateOrganization",
        f'{{"organization": {{"display_name": "Acme GmbH", "etag": "{before["etag"]}"}}}}',
    )
    out = answer_of(sqlite_site, "rolecall.v1.SessionService/SignOut", token=borrowed)
    after = call(sqlite_site, "rolecall.v1.SessionService/WhoAmI", "{}", borrowed)

    assert (who["member"]["email"], who["role"], who["permissionCount"]) == ("ann@acme.io", "OWNER", 47)
    assert who["credential"]["kind"] == "CREDENTIAL_KIND_PERSONAL_TOKEN"
    assert "single owner" in before["warnings"][0]
    assert renamed["organization"]["displayName"] == "Acme GmbH"
    assert int(out["revision"]) == int(renamed["revision"]) + 1
    assert "UNAUTHENTICATED_CREDENTIAL" in after.stderr


def test_audit_calls_with_grpcurl(sqlite_site: Site) -> None:
    """Listing with a filter, a streamed export, and verifying from a known mark."""
    answer_of(sqlite_site, f"{TOKENS}/CreatePersonalToken", '{"display_name": "laptop"}')

    listed = answer_of(
        sqlite_site,
        f"{AUDIT}/ListAuditEntries",
        '{"filter": {"action": "CreatePersonalToken", "outcome": "AUDIT_OUTCOME_SUCCEEDED",'
        ' "start_time": "2020-01-31T12:00:00Z"}, "page_size": 1}',
    )
    exported = answer_of(sqlite_site, f"{AUDIT}/ExportAuditEntries", '{"format": "AUDIT_FORMAT_CSV"}')
    verified = answer_of(sqlite_site, f"{AUDIT}/VerifyAuditLog")
    head = json.dumps(verified["head"])
    again = answer_of(sqlite_site, f"{AUDIT}/VerifyAuditLog", f'{{"known": {head}}}')

    (entry,) = listed["entries"]
    assert entry["details"]["after"]["display_name"] == "laptop"
    assert entry["outcome"] == "AUDIT_OUTCOME_SUCCEEDED"
    text = base64.b64decode(exported["data"]).decode()
    assert text.startswith("sequence,time,actor,")
    assert exported["lastSequence"] == entry["sequence"] == verified["head"]["sequence"]
    assert entry["hash"] in text
    assert verified["verdict"] == again["verdict"] == "AUDIT_VERDICT_INTACT"


def test_describe_documents_the_management_services(sqlite_site: Site) -> None:
    """Comments come with services, methods, messages, fields and enums."""
    for symbol, comment in (
        (TOKENS, "Creates, lists, rotates and deletes the tokens"),
        (f"{TOKENS}.RotateToken", "Gives a token a new secret."),
        ("rolecall.v1.CreatePersonalTokenRequest", "Without it 90 days"),
        ("rolecall.v1.Restriction", "at most 100, and at least one"),
        ("rolecall.v1.SessionService", "Signs people in by mail; describes and ends the presented credential"),
        ("rolecall.v1.MemberService", "An organization always keeps a member whose role may `owners update`."),
        ("rolecall.v1.InvitationService.AcceptInvitation", "The secret works once"),
        ("rolecall.v1.OrganizationService", "Changes the fields that `update_mask` names. Needs `account manage`."),
        (f"{AUDIT}.ExportAuditEntries", "Streams entries as a file, the oldest first."),
        ("rolecall.v1.AuditOutcome", "The caller may not do this."),
        ("rolecall.v1.ErrorReason", "ETAG_MISMATCH"),
    ):
        described = grpcurl(sqlite_site.address, "describe", symbol)

        assert comment in described.stdout, described.stderr


@pytest.mark.parametrize(
    ("method", "request_", "parts"),
    [
        (
            f"{TOKENS}/CreatePersonalToken",
            '{"display_name": "laptop", "ttl": "-5s"}',
            ("InvalidArgument", "ttl is not in the future", '"field": "ttl"', "INVALID_FIELD"),
        ),
        (
            f"{TOKENS}/CreateOrganizationToken",
            '{"display_name": "billing", "role": "OWNER"}',
            ("PermissionDenied", "choose another role", "ROLE_BEYOND_CALLER", '"field": "role"'),
        ),
        (
            f"{AUDIT}/ExportAuditEntries",
            "{}",
            ("InvalidArgument", "format is not set", "AUDIT_FORMAT_CSV", '"field": "format"'),
        ),
        (
            f"{TOKENS}/RotateToken",
            '{"id": "0000000000000000000000", "overlap": "90000s"}',
            ("InvalidArgument", "overlap must be 0 to 24 hours", '"field": "overlap"'),
        ),
        (
            "rolecall.v1.MemberService/LeaveOrganization",
            "{}",
            (
                "FailedPrecondition",
                "google.rpc.PreconditionFailure",
                '"type": "LAST_OWNER"',
                '"subject": "organization:acme"',
                '"description": "Nobody else holds the role OWNER in acme',
            ),
        ),
    ],
)
def test_errors_are_readable(sqlite_site: Site, method: str, request_: str, parts: tuple[str, ...]) -> None:
    """The terminal shows status, message, reason and field."""
    finished = call(sqlite_site, method, request_)

    assert finished.returncode != 0
    for part in (*parts, "google.rpc.ErrorInfo", "call_id"):
        assert part in finished.stderr
