"""Role assignments, teams and scopes through the client library: changes, complete lists, decisions, errors."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from rolecall import Client
from rolecall.client import NewAssignment, to_dict
from rolecall.domain import PlanKind, Reason
from rolecall.errors import (
    AssignmentExists,
    AssignmentNotFound,
    EtagMismatch,
    InvalidField,
    MemberNotFound,
    PermissionMissing,
    RoleBeyondCaller,
    TeamExists,
    TeamNotFound,
    UnknownRoleName,
)
from support.sites import Site, add_member

BILLING = "projects/billing"
# What a CONTRIBUTOR may, and a VIEWER may not.
QUESTION = ("viewer@acme.io", "update", "parameters/db")


@pytest.fixture
def owner(sqlite_site: Site) -> Iterator[Client]:
    """The owner's connection."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


# Assignments


def test_role_is_assigned_at_a_scope_and_for_a_time(owner: Client, sqlite_site: Site) -> None:
    """The role counts at its scope and beneath it, and nowhere else; the answer names the assignment."""
    wanted = NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING, timedelta(days=14), "ticket 7")
    made = owner.assignments.create([wanted])
    (assignment,) = made.assignments

    at_scope = owner.check(*QUESTION, scope=BILLING)
    beneath = owner.check(*QUESTION, scope=f"{BILLING}/eu")
    beside = owner.check(*QUESTION, scope="projects/billing2")
    everywhere = owner.check(*QUESTION)

    plain = to_dict(assignment)
    lives = datetime.fromisoformat(plain["expire_time"]) - datetime.now(UTC)
    assert timedelta(days=13, hours=23) < lives <= timedelta(days=14)
    assert plain["principal"] == f"user:{sqlite_site.members['VIEWER'].user_id}"
    assert plain["creator"] == f"user:{sqlite_site.members['OWNER'].user_id}"
    assert [plain[name] for name in ("principal_name", "role", "scope", "note")] == [
        "viewer@acme.io",
        "CONTRIBUTOR",
        BILLING,
        "ticket 7",
    ]
    assert at_scope
    assert beneath
    assert (at_scope.role, at_scope.assignment_id) == ("CONTRIBUTOR", assignment.id)
    assert at_scope.revision == made.revision
    assert not beside
    assert (everywhere.decision, everywhere.role, everywhere.assignment_id) == ("deny", "VIEWER", "")


def test_role_without_scope_and_end_counts_everywhere(owner: Client) -> None:
    """A (principal, role) is assigned in the whole organization and doesn't end by itself."""
    (assignment,) = owner.assignments.create([(QUESTION[0], "CONTRIBUTOR")]).assignments

    result = owner.check(*QUESTION)

    assert to_dict(assignment)["expire_time"] is None
    assert (assignment.scope, assignment.note) == ("", "")
    assert (result.role, result.assignment_id) == ("CONTRIBUTOR", assignment.id)


def test_every_bad_assignment_is_in_the_error(owner: Client) -> None:
    """`all` has one error for each, of the class that the server meant, with its field; nothing is assigned."""
    wanted = [
        NewAssignment("viewer@acme.io", "CONTRIBUTOR", BILLING),
        NewAssignment("viewer@acme.io", "NOPE", BILLING),
        NewAssignment("nobody@acme.io", "VIEWER", BILLING),
        NewAssignment("viewer@acme.io", "VIEWER", BILLING, datetime(2020, 1, 1, tzinfo=UTC)),
    ]

    with pytest.raises(UnknownRoleName, match="2 more") as caught:
        owner.assignments.create(wanted)

    assert [(type(error), error.field) for error in caught.value.all] == [
        (UnknownRoleName, "assignments[1].role"),
        (MemberNotFound, "assignments[2].principal"),
        (InvalidField, "assignments[3].expire_time"),
    ]
    assert list(owner.assignments.list()) == []


def test_validation_assigns_nothing(owner: Client) -> None:
    """`validate_only` describes what would be assigned."""
    (checked,) = owner.assignments.create([(QUESTION[0], "CONTRIBUTOR")], validate_only=True).assignments

    assert (checked.principal_name, checked.role) == (QUESTION[0], "CONTRIBUTOR")
    assert list(owner.assignments.list()) == []
    assert not owner.check(*QUESTION)


def test_second_assignment_of_the_same_role_is_refused(owner: Client) -> None:
    """The error has the id of the first one; another scope is another assignment."""
    wanted = NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING)
    (first,) = owner.assignments.create([wanted]).assignments

    with pytest.raises(AssignmentExists) as caught:
        owner.assignments.create([wanted])
    owner.assignments.create([wanted._replace(scope="projects/web")])

    assert caught.value.metadata["id"] == first.id
    assert [assignment.scope for assignment in owner.assignments.list()] == ["projects/web", BILLING]


def test_end_and_note_are_changed(owner: Client) -> None:
    """Only what is given is changed; a stale etag fails, and so do a call that gives nothing and one with two ends."""
    (made,) = owner.assignments.create(
        [NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING, timedelta(days=1), "ticket 7")]
    ).assignments
    until = datetime(2027, 1, 31, tzinfo=UTC)
    later = datetime.now(UTC) + timedelta(days=30)

    fixed = owner.assignments.update(made.id, expires=later, etag=made.etag).assignment
    with pytest.raises(EtagMismatch):
        owner.assignments.update(made.id, note="x", etag=made.etag)
    extended = owner.assignments.update(made.id, expires=timedelta(days=60), note="").assignment
    endless = owner.assignments.update(made.id, no_end=True).assignment
    with pytest.raises(InvalidField, match="contradict"):
        owner.assignments.update(made.id, expires=until, no_end=True)

    assert fixed.expire_time.ToDatetime(UTC) == later
    assert fixed.note == "ticket 7"
    assert timedelta(days=59) < extended.expire_time.ToDatetime(UTC) - datetime.now(UTC) <= timedelta(days=60)
    assert extended.note == ""
    assert to_dict(endless)["expire_time"] is None
    assert owner.assignments.get(made.id) == endless


def test_deleted_assignment_has_no_effect(owner: Client) -> None:
    """A check that begins after the answer doesn't pass by it; a second deletion finds nothing."""
    (made,) = owner.assignments.create([NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING)]).assignments
    before = owner.check(*QUESTION, scope=BILLING)

    deleted = owner.assignments.delete(made.id, etag=made.etag)

    assert before
    assert deleted.assignment == made
    assert not owner.check(*QUESTION, scope=BILLING)
    with pytest.raises(AssignmentNotFound):
        owner.assignments.delete(made.id)
    with pytest.raises(AssignmentNotFound):
        owner.assignments.get(made.id)
    with pytest.raises(AssignmentNotFound):
        owner.assignments.update(made.id, note="x")


def test_assignments_come_through_all_pages_and_filters(owner: Client, sqlite_site: Site) -> None:
    """The newest comes first, each once for any page size; principal, role and scope narrow the list."""
    scopes = [BILLING, f"{BILLING}/eu", "projects/billing2", "projects/web", ""]
    for scope in scopes:
        owner.assignments.create([NewAssignment("viewer@acme.io", "CONTRIBUTOR", scope)])
    owner.assignments.create([NewAssignment("contributor@acme.io", "ADMIN", BILLING)])

    whole = list(owner.assignments.list())
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], page_size=2) as client:
        pages = list(client.assignments.list())
    of_viewer = [found.scope for found in owner.assignments.list(principal="viewer@acme.io")]
    admins = [found.principal_name for found in owner.assignments.list(role="ADMIN")]
    beneath = {found.scope for found in owner.assignments.list(role="CONTRIBUTOR", scope=BILLING)}

    assert [found.scope for found in whole] == [BILLING, *reversed(scopes)]
    assert pages == whole
    assert of_viewer == list(reversed(scopes))
    assert admins == ["contributor@acme.io"]
    assert beneath == {BILLING, f"{BILLING}/eu"}


def test_assigning_is_bounded_by_what_the_caller_may(owner: Client, sqlite_site: Site) -> None:
    """Callers without the permission are refused, and so are roles beyond the caller's; one's own are seen."""
    viewer = sqlite_site.members["VIEWER"].user_id
    owner.assignments.create([NewAssignment(f"user:{viewer}", "CONTRIBUTOR", BILLING)])

    with Client(sqlite_site.address, sqlite_site.tokens["VIEWER"]) as client:
        with pytest.raises(PermissionMissing):
            client.assignments.create([("contributor@acme.io", "VIEWER")])
        with pytest.raises(PermissionMissing):
            list(client.assignments.list())
        own = list(client.assignments.list(principal=f"user:{viewer}"))
    with (
        Client(sqlite_site.address, sqlite_site.tokens["ADMIN"]) as client,
        pytest.raises(RoleBeyondCaller),
    ):
        client.assignments.create([("viewer@acme.io", "OWNER")])

    assert [found.role for found in own] == ["CONTRIBUTOR"]


# Teams


def test_role_of_a_team_holds_for_its_members(owner: Client) -> None:
    """A member may what the team may, as long as it is in the team."""
    owner.teams.create("payments", display_name="Payments")
    (made,) = owner.assignments.create([NewAssignment("team:payments", "CONTRIBUTOR", BILLING)]).assignments

    added = owner.teams.add_members("payments", [QUESTION[0], "contributor@acme.io"])
    while_member = owner.check(*QUESTION, scope=BILLING)
    removed = owner.teams.remove_members("payments", [QUESTION[0]])
    after = owner.check(*QUESTION, scope=BILLING)

    assert (made.principal, made.principal_name) == ("team:payments", "Payments")
    assert (added.team.member_count, removed.team.member_count) == (2, 1)
    assert removed.revision == added.revision + 1
    assert while_member
    assert (while_member.role, while_member.assignment_id) == ("CONTRIBUTOR", made.id)
    assert not after


def test_team_is_renamed_and_deleted(owner: Client) -> None:
    """The id stays; a stale etag fails; with the team, what was assigned to it is gone."""
    made = owner.teams.create("payments").team
    owner.teams.add_members("payments", [QUESTION[0]])
    owner.assignments.create([NewAssignment("team:payments", "CONTRIBUTOR")])

    renamed = owner.teams.update("payments", "Money").team
    with pytest.raises(EtagMismatch):
        owner.teams.delete("payments", etag=made.etag)
    with pytest.raises(TeamExists):
        owner.teams.create("payments")
    found = owner.teams.get("payments")
    owner.teams.delete("payments", etag=renamed.etag)

    assert (made.display_name, renamed.display_name, renamed.id) == ("payments", "Money", "payments")
    assert found == renamed
    assert list(owner.teams.list()) == []
    assert list(owner.assignments.list()) == []
    assert not owner.check(*QUESTION)
    for call in (owner.teams.get, owner.teams.delete):
        with pytest.raises(TeamNotFound):
            call("payments")


def test_teams_and_their_members_come_through_all_pages(owner: Client, sqlite_site: Site) -> None:
    """Teams are listed by id, members by address, each once for any page size; teams of one member too."""
    people = [add_member(sqlite_site.storage, "acme", f"person{number}@acme.io", "VIEWER") for number in range(3)]
    for name in ("c", "a", "b"):
        owner.teams.create(name)
    owner.teams.add_members("b", [person.email for person in people])
    owner.teams.add_members("c", [f"user:{people[0].user_id}"])

    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "acme", page_size=2) as client:
        teams = [(team.id, team.member_count) for team in client.teams.list()]
        members = list(client.teams.members("b"))
    own = [team.id for team in owner.teams.list(user_id=people[0].user_id)]

    assert teams == [("a", 0), ("b", 3), ("c", 1)]
    assert members == people
    assert own == ["b", "c"]


# Scopes


def test_scope_counts_in_every_question(owner: Client) -> None:
    """Batches, lists and plans take a scope; a check of a batch may have one of its own."""
    owner.assignments.create([NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING)])
    subject, action, resource = QUESTION

    batch = owner.batch_check([QUESTION, (*QUESTION, "projects/web"), (*QUESTION, BILLING)], scope=BILLING)
    alone = owner.batch_check([QUESTION, (*QUESTION, BILLING)])
    listed = {
        scope: "parameters"
        in {rule.resource for rule in owner.permissions(subject, scope=scope) if rule.action == action}
        for scope in ("", BILLING)
    }
    subjects = {
        scope: subject in {member.email for member in owner.subjects(action, resource, scope=scope)}
        for scope in ("", BILLING)
    }
    plans = {scope: owner.plan_resources(subject, action, "parameters", scope=scope).kind for scope in ("", BILLING)}

    assert [bool(result) for result in batch] == [True, False, True]
    assert [bool(result) for result in alone] == [False, True]
    assert listed == {"": False, BILLING: True}
    assert subjects == {"": False, BILLING: True}
    assert plans == {"": PlanKind.NEVER, BILLING: PlanKind.ALWAYS}


def test_named_resources_come_through_all_pages(owner: Client, sqlite_site: Site) -> None:
    """The resources that assignments name are listed in order, for any page size."""
    scopes = ["projects/c", "projects/a", "projects/b"]
    owner.assignments.create([NewAssignment(QUESTION[0], "CONTRIBUTOR", scope) for scope in scopes])

    whole = list(owner.resources(QUESTION[0], "update", "projects"))
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], page_size=1) as client:
        pages = list(client.resources(QUESTION[0], "update", "projects"))

    assert whole == sorted(scopes)
    assert pages == whole
    assert list(owner.resources(QUESTION[0], "update", "templates")) == []


def test_token_is_restricted_to_a_scope(owner: Client) -> None:
    """A token with a scope acts only there; without permissions, it may all that its role may there."""
    bound = owner.tokens.create_organization("bound", "CONTRIBUTOR", restriction_scope=BILLING)
    narrow = owner.tokens.create_organization(
        "narrow", "CONTRIBUTOR", restriction=[("parameters", "view")], restriction_scope=BILLING
    )
    action, resource = QUESTION[1:]

    def ask(secret: str, action: str, scope: str) -> tuple[bool, Reason, PlanKind]:
        result = owner.check_token(secret, action, resource, scope=scope)
        plan = owner.plan_token_resources(secret, action, "parameters", scope=scope)
        return bool(result), result.reason, plan.kind

    assert to_dict(bound.token)["restriction"] == {"permissions": [], "scope": BILLING}
    assert narrow.token.restriction.scope == BILLING
    assert ask(bound.secret, action, BILLING) == (True, Reason.GRANTED, PlanKind.ALWAYS)
    assert ask(bound.secret, action, "projects/web") == (False, Reason.TOKEN_SCOPE, PlanKind.NEVER)
    assert ask(bound.secret, action, "") == (False, Reason.TOKEN_SCOPE, PlanKind.NEVER)
    assert ask(narrow.secret, "view", BILLING) == (True, Reason.GRANTED, PlanKind.ALWAYS)
    assert ask(narrow.secret, action, BILLING) == (False, Reason.TOKEN_SCOPE, PlanKind.NEVER)


def test_explanation_has_every_role_of_the_subject(owner: Client) -> None:
    """The role that holds everywhere comes first, then those that are assigned, and whether each applies."""
    made = owner.assignments.create(
        [
            NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING),
            NewAssignment(QUESTION[0], "CONTRIBUTOR", "projects/web"),
        ]
    ).assignments

    explanation = owner.check(*QUESTION, scope=BILLING, explain=True).explanation

    assert explanation is not None
    assert [(role.role, role.assignment_id, role.scope, role.applies) for role in explanation.roles] == [
        ("VIEWER", "", "", True),
        ("CONTRIBUTOR", made[0].id, BILLING, True),
        ("CONTRIBUTOR", made[1].id, "projects/web", False),
    ]
    assert [role.reason for role in explanation.roles] == [Reason.NOT_GRANTED, Reason.GRANTED, None]
    assert all(role.summary for role in explanation.roles)
