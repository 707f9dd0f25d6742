"""No credential grants more than it has: all RPCs that create credentials or grant roles, with all credential kinds."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import rolecall.v1
from rolecall.storage import tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from support.assignment_checks import ASSIGNERS, ASSIGNMENT_CHECKS
from support.grant_checks import CHECKS, CREDENTIAL_CASES, GrantChecks
from support.grants import ROLES, UNIVERSE, extra_rows, powers
from support.people import PeopleCalls, change_rows
from support.sites import QUICK_LIMITS, MakeSite, Site, without_rates

# Every RPC is in one of these sets; those of the first two are called with every credential of CREDENTIAL_CASES, or by
# mail below.
MINTS_OR_GRANTS = {
    "AcceptInvitation",
    "AddTeamMembers",
    "ChangeMemberExternalId",
    "ChangeMemberRole",
    "CreateInvitations",
    "CreateOrganizationToken",
    "CreatePersonalToken",
    "CreateRoleAssignments",
    "MoveMembers",
    "RequestSignIn",
    "ResendInvitation",
    "RotateToken",
    "SignIn",
    "UpdateInvitation",
    "UpdateRoleAssignment",
}
TAKES_AWAY = {
    "DeleteInvitation",
    "DeleteRoleAssignment",
    "DeleteTeam",
    "DeleteToken",
    "RemoveMember",
    "RemoveTeamMembers",
}
DOES_NEITHER = {
    "BatchCheck",
    "Check",
    "CreateTeam",
    "ExportAuditEntries",
    "GetInvitation",
    "GetMember",
    "GetOrganization",
    "GetPolicy",
    "GetRoleAssignment",
    "GetTeam",
    "LeaveOrganization",
    "ListAuditEntries",
    "ListInvitations",
    "ListMembers",
    "ListPermissions",
    "ListResources",
    "ListRoleAssignments",
    "ListRoles",
    "ListSubjects",
    "ListTeamMembers",
    "ListTeams",
    "ListTokens",
    "PlanResources",
    "SignOut",
    "UpdateOrganization",
    "UpdateTeam",
    "ValidatePolicy",
    "VerifyAuditLog",
    "WhoAmI",
}
# No credential is presented; a link that was mailed to the member is.
BY_MAIL = {"RequestSignIn", "SignIn"}


def all_rpcs() -> list[str]:
    """The names of all methods of all services that the protos declare."""
    modules = [name for _, name, _ in iter_modules(rolecall.v1.__path__) if name.endswith("_pb2")]
    files = [import_module(f"rolecall.v1.{name}").DESCRIPTOR for name in modules]
    services = [service for file in files for service in file.services_by_name.values()]
    return sorted(method.name for service in services for method in service.methods)


def test_every_rpc_is_listed_as_granting_or_not() -> None:
    """Every RPC must be listed as granting or not; each one that grants must be in the table of checks."""
    assert all_rpcs() == sorted([*MINTS_OR_GRANTS, *TAKES_AWAY, *DOES_NEITHER])
    assert set(CHECKS) | set(ASSIGNMENT_CHECKS) | BY_MAIL == MINTS_OR_GRANTS | TAKES_AWAY


@pytest.fixture
def more_roles(policy_folder: Path) -> Path:
    """The shipped policy with roles that deny something."""
    file = policy_folder / "policy.csv"
    file.write_text(file.read_text(encoding="utf-8") + extra_rows(), encoding="utf-8")
    return policy_folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rpc", sorted(CHECKS))
def test_each_credential_may_exactly_what_the_rules_say(
    make_site: MakeSite, sqlite_url: str, more_roles: Path, rpc: str
) -> None:
    """A credential with any restriction does what lies within it; all else is refused, and changes nothing."""
    site = make_site(sqlite_url, folder=more_roles, limits=without_rates(QUICK_LIMITS))
    checks = GrantChecks(PeopleCalls(site))
    for presenter in CREDENTIAL_CASES:
        CHECKS[rpc](checks, presenter, checks.present(presenter))

    assert checks.wrong == []
    assert min(checks.outcomes["done"], checks.outcomes["refused"]) >= 20, checks.outcomes


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rpc", sorted(ASSIGNMENT_CHECKS))
def test_nobody_assigns_or_ends_more_than_it_may_there(
    make_site: MakeSite, sqlite_url: str, more_roles: Path, rpc: str
) -> None:
    """A credential assigns and ends roles as the rules say; what others gain and lose lies within what it may there."""
    site = make_site(sqlite_url, folder=more_roles, limits=without_rates(QUICK_LIMITS))
    checks = GrantChecks(PeopleCalls(site))
    for presenter in ASSIGNERS:
        ASSIGNMENT_CHECKS[rpc](checks, presenter, checks.present(presenter))

    assert checks.wrong == []
    assert min(checks.outcomes["done"], checks.outcomes["refused"], checks.outcomes["watched"]) >= 10, checks.outcomes


def test_sign_in_link_gives_only_the_present_role(sqlite_site: Site) -> None:
    """A sign-in link gives the member's present role, and no more once that is a lower one."""
    calls = PeopleCalls(sqlite_site)
    questions = sorted(UNIVERSE)
    items = [authorization.BatchCheckItem(resource=resource, action=action) for resource, action in questions]
    for role in ROLES:
        person = sqlite_site.members[role]
        links = [calls.ask(person.email) for _ in range(2)]
        calls.deliver()
        for link, present in zip(links, (role, "VIEWERNOSECRETS"), strict=True):
            change_rows(sqlite_site, tables.members, person.user_id, role=present)
            entered = calls.send_unauthenticated(session.SignInRequest(secret=link)).session.secret
            for item in items:
                item.subject_token = entered
            asker = sqlite_site.tokens["OWNER" if role != "OWNER" else "ADMIN"]
            results = calls.send(asker, authorization.BatchCheckRequest(checks=items)).results
            allowed = [result.decision == authorization.DECISION_ALLOW for result in results]

            assert {point for point, may in zip(questions, allowed, strict=True) if may} == powers(present)
        change_rows(sqlite_site, tables.members, person.user_id, role=role)
