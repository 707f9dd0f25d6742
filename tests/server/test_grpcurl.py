"""Real grpcurl: how people debug the service."""

import json
import subprocess

import pytest
from grpc_reflection.v1alpha import reflection_pb2
from sqlalchemy import select

from rolecall import Client, UnauthenticatedClient
from rolecall.client.assignments import NewAssignment
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import LinkKind
from rolecall.services import operator_tokens
from rolecall.storage import Transaction
from rolecall.storage.tables import sign_ins
from rolecall.v1 import (
    assignment_pb2,
    audit_pb2,
    authorization_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    team_pb2,
    token_pb2,
)
from support.environment import CI
from support.grpcurl import GRPCURL, grpcurl
from support.sites import Site
from support.waiting import wait_until

SERVICE = "rolecall.v1.AuthorizationService"
MEMBERS = "rolecall.v1.MemberService"
TEAMS = "rolecall.v1.TeamService"
ASSIGNMENTS = "rolecall.v1.AssignmentService"
INVITATIONS = "rolecall.v1.InvitationService"
MODULES = (
    *(assignment_pb2, audit_pb2, authorization_pb2, invitation_pb2, member_pb2, organization_pb2, policy_pb2),
    *(session_pb2, team_pb2, token_pb2),
)
SERVICES = {service.full_name: service for m in MODULES for service in m.DESCRIPTOR.services_by_name.values()}

assert GRPCURL or not CI, "CI must test with grpcurl"
pytestmark = pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")


def check(site: Site, request: dict[str, object], role: str = "OWNER") -> subprocess.CompletedProcess[str]:
    """Check as a member with that role."""
    bearer = f"authorization: Bearer {site.tokens[role]}"
    return grpcurl("-H", bearer, "-d", json.dumps(request), site.address, f"{SERVICE}/Check")


def test_list_names_the_services(sqlite_site: Site) -> None:
    """Reflection lists the services."""
    listed = grpcurl(sqlite_site.address, "list")

    assert listed.returncode == 0, listed.stderr
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(listed.stdout.split())


def test_describe_documents_the_api(sqlite_site: Site) -> None:
    """Comments of the protos come with the descriptors: of services, methods and messages."""
    for symbol, comment in (
        (SERVICE, "Answers "),
        (f"{SERVICE}.Check", "Decides one question."),
        ("rolecall.v1.CheckRequest", "Names the subject. Required."),
        ("rolecall.v1.Reason", "A deny rule matches; it beats any allow rule."),
        ("rolecall.v1.ErrorReason", "UNAVAILABLE: the database can't be reached."),
    ):
        described = grpcurl(sqlite_site.address, "describe", symbol)

        assert comment in described.stdout, described.stderr


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_are_served(sqlite_site: Site, version: str) -> None:
    """Both versions of reflection give the same answers."""
    stub = sqlite_site.channel().stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = list(stub(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10))

    assert SERVICE in {service.name for service in answers[0].list_services_response.service}


def test_check_answers_an_allow(sqlite_site: Site) -> None:
    """A Check by grpcurl is answered."""
    answer = check(sqlite_site, {"subject": "ann@acme.io", "action": "view", "resource": "secrets/billing"})

    assert answer.returncode == 0, answer.stderr
    response = json.loads(answer.stdout)
    assert (response["decision"], response["reason"], response["role"]) == ("DECISION_ALLOW", "REASON_GRANTED", "OWNER")


def test_a_denied_check_is_explained(sqlite_site: Site) -> None:
    """A denial is an answer, not an error; it says what would pass."""
    request = {"subject": "viewernosecrets@acme.io", "action": "view", "resource": "secrets", "explain": True}
    answer = check(sqlite_site, request)

    assert answer.returncode == 0, answer.stderr
    response = json.loads(answer.stdout)
    assert (response["decision"], response["reason"]) == ("DECISION_DENY", "REASON_NOT_GRANTED")
    assert response["explanation"]["nearestMiss"] == "p, VIEWER, secrets, view, allow"
    assert response["explanation"]["rolesThatPass"] == ["OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER"]


def test_an_error_shows_its_details(sqlite_site: Site) -> None:
    """The reason, the field and the way out are readable in the terminal."""
    answer = check(sqlite_site, {"subject": "ann@acme.io", "action": "view", "resource": "secrets//x"})

    assert answer.returncode != 0
    for part in ("InvalidArgument", "google.rpc.ErrorInfo", "INVALID_FIELD", '"field": "resource"', "write `type/id`"):
        assert part in answer.stderr


def test_call_without_a_token_says_how_to_send_one(sqlite_site: Site) -> None:
    """The error without a token says how to send one."""
    answer = grpcurl("-d", "{}", sqlite_site.address, f"{SERVICE}/Check")

    assert "authorization: Bearer TOKEN" in answer.stderr
    assert "UNAUTHENTICATED_CREDENTIAL" in answer.stderr


def test_the_other_rpcs_answer_too(sqlite_site: Site) -> None:
    """Each RPC once, as typed in a terminal; the RPCs that end the credential come last."""
    own = operator_tokens.issue(sqlite_site.storage, sqlite_site.log, "acme", "ann@acme.io")
    spare = sqlite_site.tokens["OWNER"].split("_")[1]
    bearer = f"authorization: Bearer {own.text}"
    viewer = sqlite_site.members["VIEWER"].user_id
    links = MailedSecrets(server_key.read(sqlite_site.settings.key_file))
    invitation, withdrawn = _invited(sqlite_site)
    link = _mailed_link(sqlite_site, links)
    viewer_subject = f"user:{viewer}"
    with Client(sqlite_site.address, own.text) as client:
        created = client.assignments.create([NewAssignment("admin@acme.io", "VIEWER", "projects/pay")])
        assigned = created.assignments[0].id
    batch = {"checks": [{"subject": "ann@acme.io", "action": "view", "resource": "secrets"}, {"subject": "x"}]}
    asked = {
        f"{SERVICE}/BatchCheck": batch,
        f"{SERVICE}/ListPermissions": {"subject": "role:VIEWER", "page_size": 2},
        f"{SERVICE}/ListSubjects": {"action": "manage", "resource": "account"},
        f"{SERVICE}/PlanResources": {"subject": "role:VIEWERNOSECRETS", "action": "view", "resource_type": "secrets"},
        "rolecall.v1.PolicyService/GetPolicy": {},
        "rolecall.v1.PolicyService/ValidatePolicy": {"model": "[x]", "policy": "p", "tests": "role"},
        "rolecall.v1.PolicyService/ListRoles": {"page_size": 1},
        "rolecall.v1.TokenService/CreatePersonalToken": {"display_name": "laptop", "ttl": "3600s"},
        "rolecall.v1.TokenService/CreateOrganizationToken": {
            "display_name": "ci",
            "role": "VIEWER",
            "restriction": {"permissions": [{"resource": "members", "action": "view"}]},
        },
        "rolecall.v1.TokenService/ListTokens": {"page_size": 2},
        "rolecall.v1.TokenService/RotateToken": {"id": spare, "overlap": "60s"},
        "rolecall.v1.TokenService/DeleteToken": {"id": spare},
        "rolecall.v1.OrganizationService/GetOrganization": {},
        "rolecall.v1.OrganizationService/UpdateOrganization": {"organization": {"display_name": "Acme"}},
        "rolecall.v1.AuditService/ListAuditEntries": {"page_size": 1},
        "rolecall.v1.AuditService/VerifyAuditLog": {},
        "rolecall.v1.AuditService/ExportAuditEntries": {"format": "AUDIT_FORMAT_JSON_LINES"},
        f"{MEMBERS}/ListMembers": {"role": "VIEWER", "order": "MEMBER_ORDER_NEWEST"},
        f"{MEMBERS}/GetMember": {"user_id": viewer},
        f"{MEMBERS}/ChangeMemberRole": {"user_id": viewer, "role": "CONTRIBUTOR"},
        f"{MEMBERS}/ChangeMemberExternalId": {"user_id": viewer, "external_id": "auth0|1"},
        f"{MEMBERS}/MoveMembers": {"from_role": "CONTRIBUTOR", "to_role": "VIEWER", "validate_only": True},
        f"{TEAMS}/CreateTeam": {"id": "payments"},
        f"{TEAMS}/AddTeamMembers": {"id": "payments", "members": ["admin@acme.io", viewer_subject]},
        f"{TEAMS}/RemoveTeamMembers": {"id": "payments", "members": ["admin@acme.io"]},
        f"{TEAMS}/UpdateTeam": {"team": {"id": "payments", "display_name": "Payments"}},
        f"{TEAMS}/GetTeam": {"id": "payments"},
        f"{TEAMS}/ListTeams": {"user_id": viewer},
        f"{TEAMS}/ListTeamMembers": {"id": "payments"},
        f"{ASSIGNMENTS}/CreateRoleAssignments": {
            "assignments": [{"principal": "team:payments", "role": "ADMIN", "scope": "projects/pay", "ttl": "3600s"}]
        },
        f"{SERVICE}/ListResources": {"subject": viewer_subject, "action": "update", "resource_type": "projects"},
        f"{ASSIGNMENTS}/ListRoleAssignments": {"scope": "projects"},
        f"{ASSIGNMENTS}/GetRoleAssignment": {"id": assigned},
        f"{ASSIGNMENTS}/UpdateRoleAssignment": {"assignment": {"id": assigned, "note": "T-1"}},
        f"{ASSIGNMENTS}/DeleteRoleAssignment": {"id": assigned},
        f"{TEAMS}/DeleteTeam": {"id": "payments"},
        f"{MEMBERS}/RemoveMember": {"user_id": viewer},
        f"{INVITATIONS}/CreateInvitations": {"invitations": [{"email": "x@acme.io", "role": "OWNER"}]},
        f"{INVITATIONS}/ListInvitations": {"state": "INVITATION_STATE_PENDING", "page_size": 1},
        f"{INVITATIONS}/GetInvitation": {"id": invitation.id},
        f"{INVITATIONS}/UpdateInvitation": {"invitation": {"id": withdrawn.id, "role": "ADMIN"}},
        f"{INVITATIONS}/ResendInvitation": {"id": invitation.id},
        f"{INVITATIONS}/AcceptInvitation": {"secret": links.secret(LinkKind.INVITATION, invitation.id, 2)},
        f"{INVITATIONS}/DeleteInvitation": {"id": withdrawn.id},
        "rolecall.v1.SessionService/RequestSignIn": {"organization": "acme", "email": "admin@acme.io"},
        "rolecall.v1.SessionService/SignIn": {"secret": link},
        "rolecall.v1.SessionService/WhoAmI": {},
        f"{MEMBERS}/LeaveOrganization": {},
    }
    answers = {}
    for method, request in asked.items():
        answer = grpcurl("-H", bearer, "-d", json.dumps(request), sqlite_site.address, method)
        assert answer.returncode == 0, answer.stderr
        answers[method.rpartition("/")[2]] = json.loads(answer.stdout)

    assert [item["decision"] for item in answers["BatchCheck"]["results"]] == ["DECISION_ALLOW", "DECISION_DENY"]
    assert answers["BatchCheck"]["results"][1]["error"]["field"] == "subject"
    assert len(answers["ListPermissions"]["permissions"]) == 2
    assert answers["ListPermissions"]["nextPageToken"]
    assert [member["email"] for member in answers["ListSubjects"]["members"]] == ["ann@acme.io"]
    assert answers["PlanResources"]["kind"] == "PLAN_KIND_NEVER"
    assert answers["GetPolicy"]["policy"]["ruleCount"] == 47
    assert answers["ListRoles"]["roles"][0]["updatesOwners"] is True
    assert answers["CreatePersonalToken"]["secret"].startswith("rcp_")
    assert answers["CreateOrganizationToken"]["secret"].startswith("rco_")
    assert [token["displayName"] for token in answers["ListTokens"]["tokens"]] == ["ci", "laptop"]
    assert answers["RotateToken"]["token"]["id"] == answers["DeleteToken"]["token"]["id"] == spare
    assert answers["DeleteToken"]["token"]["state"] == "TOKEN_STATE_DELETED"
    assert answers["GetOrganization"]["organization"]["displayName"] == "acme"
    assert answers["UpdateOrganization"]["organization"]["displayName"] == "Acme"
    assert answers["ListAuditEntries"]["entries"][0]["action"] == "UpdateOrganization"
    assert answers["VerifyAuditLog"]["verdict"] == "AUDIT_VERDICT_INTACT"
    assert answers["ExportAuditEntries"]["data"]
    assert answers["WhoAmI"]["role"] == "OWNER"
    assert [member["role"] for member in answers["ListMembers"]["members"]] == ["VIEWER"]
    assert answers["GetMember"]["member"]["email"] == "viewer@acme.io"
    assert answers["ChangeMemberRole"]["member"]["role"] == "CONTRIBUTOR"
    assert answers["ChangeMemberExternalId"]["member"]["externalId"] == "auth0|1"
    assert answers["CreateTeam"]["team"]["id"] == "payments"
    assert answers["AddTeamMembers"]["team"]["memberCount"] == 2
    assert answers["RemoveTeamMembers"]["team"]["memberCount"] == 1
    assert answers["UpdateTeam"]["team"]["displayName"] == answers["GetTeam"]["team"]["displayName"] == "Payments"
    assert [team["id"] for team in answers["ListTeams"]["teams"]] == ["payments"]
    assert [member["email"] for member in answers["ListTeamMembers"]["members"]] == ["viewer@acme.io"]
    assert answers["CreateRoleAssignments"]["assignments"][0]["principalName"] == "Payments"
    assert answers["ListResources"]["resources"] == ["projects", "projects/pay"]
    assert len(answers["ListRoleAssignments"]["assignments"]) == 2
    assert answers["GetRoleAssignment"]["assignment"]["principalName"] == "admin@acme.io"
    assert answers["UpdateRoleAssignment"]["assignment"]["note"] == "T-1"
    assert answers["DeleteRoleAssignment"]["assignment"]["id"] == assigned
    assert answers["DeleteTeam"]["team"]["id"] == "payments"
    assert answers["RemoveMember"]["member"]["userId"] == viewer
    assert answers["CreateInvitations"]["invitations"][0]["state"] == "INVITATION_STATE_PENDING"
    assert answers["ListInvitations"]["invitations"][0]["email"] == "x@acme.io"
    assert answers["GetInvitation"]["invitation"]["id"] == invitation.id
    assert answers["UpdateInvitation"]["invitation"]["role"] == "ADMIN"
    assert answers["ResendInvitation"]["invitation"]["delivery"] == "DELIVERY_STATE_QUEUED"
    assert answers["AcceptInvitation"]["session"]["secret"].startswith("rcs_")
    assert answers["AcceptInvitation"]["member"]["displayName"] == "new"
    assert answers["DeleteInvitation"]["invitation"]["state"] == "INVITATION_STATE_DELETED"
    assert answers["RequestSignIn"] == {}
    assert answers["SignIn"]["member"]["email"] == "ann@acme.io"
    left = grpcurl("-H", bearer, sqlite_site.address, "rolecall.v1.SessionService/WhoAmI")
    assert "UNAUTHENTICATED_CREDENTIAL" in left.stderr
    signed_out = grpcurl(
        "-H",
        f"authorization: Bearer {answers['AcceptInvitation']['session']['secret']}",
        sqlite_site.address,
        "rolecall.v1.SessionService/SignOut",
    )
    assert json.loads(signed_out.stdout)["revision"]
    asked["rolecall.v1.SessionService/SignOut"] = {}
    every = {f"{name}/{method.name}" for name, service in SERVICES.items() for method in service.methods}
    assert asked.keys() == every - {f"{SERVICE}/Check"}


def _invited(site: Site) -> tuple[invitation_pb2.Invitation, invitation_pb2.Invitation]:
    """Two invitations, the first to the top role, so that its owner isn't the last."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        made = client.invitations.create([("new@acme.io", "OWNER"), ("old@acme.io", "VIEWER")])
    return made.invitations[0], made.invitations[1]


def _mailed_link(site: Site, links: MailedSecrets) -> str:
    """The secret of a link to sign in that was mailed to the owner."""
    with UnauthenticatedClient(site.address, "acme") as guest:
        guest.request_sign_in("ann@acme.io")

    def named(tx: Transaction) -> str | None:
        row = tx.connection.execute(select(sign_ins.c.id).where(sign_ins.c.user_id.is_not(None))).first()
        return row.id if row else None

    wait_until(lambda: site.storage.read(named) is not None)
    return links.secret(LinkKind.SIGN_IN, site.storage.read(named) or "", 1)


def test_health_is_open(sqlite_site: Site) -> None:
    """Health checks of the server and of each service are answered without a credential."""
    for service in ("", *SERVICES):
        request = json.dumps({"service": service})
        answer = grpcurl("-d", request, sqlite_site.address, "grpc.health.v1.Health/Check")

        assert json.loads(answer.stdout) == {"status": "SERVING"}
    assert "NotFound" in grpcurl("-d", '{"service":"x"}', sqlite_site.address, "grpc.health.v1.Health/Check").stderr
