"""No credential makes anything stronger than itself: every RPC that mints or grants, by whatever is presented."""

from importlib import import_module
from pkgutil import iter_modules

import pytest
from conftest import Site
from grant_trials import PRESENTERS, TABLE, Trial
from grants import ROLES, UNIVERSE, powers
from people import Office, change_rows

import rolecall.v1
from rolecall.limits import Limit
from rolecall.storage import tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session

# Every RPC stands in one of these; all of the first two are tried by every presenter in the table, or by mail below.
MINTS_OR_GRANTS = {
    "AcceptInvitation",
    "ChangeMemberRole",
    "CreateInvitations",
    "CreateOrganizationToken",
    "CreatePersonalToken",
    "RequestSignIn",
    "ResendInvitation",
    "RotateToken",
    "SignIn",
}
TAKES_AWAY = {"DeleteInvitation", "DeleteToken", "RemoveMember"}
DOES_NEITHER = {
    "BatchCheck",
    "Check",
    "ExportAuditEntries",
    "GetInvitation",
    "GetMember",
    "GetOrganization",
    "GetPolicy",
    "LeaveOrganization",
    "ListAuditEntries",
    "ListInvitations",
    "ListMembers",
    "ListPermissions",
    "ListRoles",
    "ListSubjects",
    "ListTokens",
    "SignOut",
    "UpdateOrganization",
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


def test_every_rpc_is_known_to_grant_or_not() -> None:
    """A new RPC fails here until somebody says whether it mints or grants; one that does, until it is in the table."""
    assert all_rpcs() == sorted([*MINTS_OR_GRANTS, *TAKES_AWAY, *DOES_NEITHER])
    assert set(TABLE) | BY_MAIL == MINTS_OR_GRANTS | TAKES_AWAY


@pytest.mark.parametrize("rpc", sorted(TABLE))
def test_each_presenter_may_what_the_rules_say(sqlite_site: Site, monkeypatch: pytest.MonkeyPatch, rpc: str) -> None:
    """With every restriction it does what lies within it, and is refused all else, by which nothing is changed."""
    monkeypatch.setattr(Limit, "require", lambda self, key: None)
    trial = Trial(Office(sqlite_site))
    for presenter in PRESENTERS:
        TABLE[rpc](trial, presenter, trial.present(presenter))

    assert trial.wrong == []
    assert min(trial.outcomes["done"], trial.outcomes["refused"]) >= 20, trial.outcomes


def test_a_link_lets_in_with_the_present_role_alone(sqlite_site: Site) -> None:
    """Whoever signs in may what the matrix grants the member's role, and no more once that is a lower one."""
    office = Office(sqlite_site)
    questions = sorted(UNIVERSE)
    items = [authorization.BatchCheckItem(resource=resource, action=action) for resource, action in questions]
    for role in ROLES:
        person = sqlite_site.members[role]
        links = [office.ask(person.email) for _ in range(2)]
        office.deliver()
        for link, present in zip(links, (role, "VIEWERNOSECRETS"), strict=True):
            change_rows(sqlite_site, tables.members, person.user_id, role=present)
            entered = office.knock(session.SignInRequest(secret=link)).session.secret
            for item in items:
                item.subject_token = entered
            asker = sqlite_site.tokens["OWNER" if role != "OWNER" else "ADMIN"]
            results = office.send(asker, authorization.BatchCheckRequest(checks=items)).results
            allowed = [result.decision == authorization.DECISION_ALLOW for result in results]

            assert {point for point, may in zip(questions, allowed, strict=True) if may} == powers(present)
        change_rows(sqlite_site, tables.members, person.user_id, role=role)
