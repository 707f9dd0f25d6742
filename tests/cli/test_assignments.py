"""`rolecall assignments`, `teams` and `--scope` as their users run them, against a running server."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rolecall import Client
from rolecall.client import NewAssignment
from support.commands import Workspace, cells, error_of, only_line, usage_of
from support.sites import Site

BILLING = "projects/billing"
# What a CONTRIBUTOR may, and a VIEWER may not.
QUESTION = ("viewer@acme.io", "update", "parameters/db")


@pytest.fixture
def owner(sqlite_site: Site) -> Iterator[Client]:
    """A client of the same server, as the owner."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


def answer(workspace: Workspace, *arguments: str) -> Any:
    """The answer of a command, given `--json`."""
    return json.loads(only_line(workspace.run(*arguments, "--json")))


# assignments


def test_from_assignment_to_deletion(client_workspace: Workspace, sqlite_site: Site) -> None:
    """A role is assigned with one line, whose output is the id; it is checked, listed, changed and ended."""
    made = client_workspace.run(
        "assignments", "create", QUESTION[0], "CONTRIBUTOR", "--scope", BILLING, "--for", "14d", "--note", "ticket 7"
    )
    identifier = only_line(made)
    allowed = client_workspace.run("check", *QUESTION, "--scope", BILLING)
    elsewhere = client_workspace.run("check", *QUESTION, "--scope", "projects/web")
    header, row = cells(client_workspace.run("assignments", "list"))
    changed = client_workspace.run("assignments", "update", identifier, "--no-end", "--note", "")
    deleted = client_workspace.run("assignments", "delete", identifier)

    end = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ"
    assert re.fullmatch(r"\w{22}", identifier)
    assert re.fullmatch(
        rf"viewer@acme\.io is assigned CONTRIBUTOR at projects/billing until {end}\. The assignment's id:\n",
        made.stderr,
    )
    assert only_line(allowed) == (
        "ALLOW: an allow rule matches and no deny rule does (role CONTRIBUTOR, by the assignment " + identifier + ")."
    )
    assert (elsewhere.returncode, elsewhere.stdout) == (1, "DENY: no rule matches (role VIEWER).\n")
    assert header == ["id", "name", "principal", "role", "scope", "until", "note", "created", "by"]
    assert row[:5] == [
        identifier, "viewer@acme.io", f"user:{sqlite_site.members['VIEWER'].user_id}", "CONTRIBUTOR", BILLING,
    ]  # fmt: skip
    assert re.fullmatch(end, row[5])
    assert (row[6], row[8]) == ("ticket 7", f"user:{sqlite_site.members['OWNER'].user_id}")
    assert changed.stderr == "viewer@acme.io is assigned CONTRIBUTOR at projects/billing.\n"
    assert deleted.stderr == "viewer@acme.io is no longer assigned CONTRIBUTOR at projects/billing.\n"
    assert client_workspace.run("check", *QUESTION, "--scope", BILLING).returncode == 1
    assert cells(client_workspace.run("assignments", "list"))[1:] == []


def test_assignments_answer_in_json(client_workspace: Workspace) -> None:
    """Programs get the complete messages, with the revision of a change."""
    made = answer(client_workspace, "assignments", "create", QUESTION[0], "CONTRIBUTOR", "--until", "2030-01-31")
    (assignment,) = made["assignments"]
    changed = answer(
        client_workspace, "assignments", "update", assignment["id"], "--until", "2030-02-01T12:00:00+01:00"
    )
    listed = answer(client_workspace, "assignments", "list", "--role", "CONTRIBUTOR")
    none = answer(client_workspace, "assignments", "list", "--scope", BILLING)
    deleted = answer(client_workspace, "assignments", "delete", assignment["id"])

    assert list(assignment) == [
        "id", "principal", "role", "scope", "create_time", "creator", "expire_time", "note", "etag", "principal_name",
    ]  # fmt: skip
    assert assignment["expire_time"] == "2030-01-31T00:00:00.000000Z"
    assert changed["assignment"]["expire_time"] == "2030-02-01T11:00:00.000000Z"
    assert changed["revision"] == made["revision"] + 1
    assert listed == [changed["assignment"]]
    assert none == []
    assert deleted == {"assignment": changed["assignment"], "revision": changed["revision"] + 1}


def test_end_is_set_from_now_on(client_workspace: Workspace, owner: Client) -> None:
    """`--for` counts from now when an assignment is changed, too."""
    (made,) = owner.assignments.create([NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING)]).assignments

    changed = answer(client_workspace, "assignments", "update", made.id, "--for", "2h")["assignment"]

    rest = datetime.fromisoformat(changed["expire_time"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < rest <= timedelta(hours=2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create", QUESTION[0], "NOBODY"), "no role `NOBODY`"),
        (("create", QUESTION[0], "OWNER", "--scope", BILLING), "OWNER"),
        (("create", "nobody@acme.io", "VIEWER"), "nobody@acme.io"),
        (("create", "team:nobody", "VIEWER"), "nobody"),
        (("create", QUESTION[0], "VIEWER", "--scope", "projects/../x"), "scope"),
        (("create", QUESTION[0], "VIEWER", "--until", "2020-01-31"), "expire_time"),
        (("create", QUESTION[0], "VIEWER", "--for", "4000d"), "10 years"),
        (("create", QUESTION[0], "VIEWER", "--for", "1d", "--until", "2030-01-31"), "leave one out"),
        (("update", "0" * 22, "--for", "1d", "--no-end"), "leave one out"),
        (("update", "0" * 22), "give --for, --until, --no-end or --note"),
        (("update", "0" * 22, "--note", "x"), "`rolecall assignments list`"),
        (("delete", "0" * 22), "`rolecall assignments list`"),
    ],
)
def test_refusal_is_one_line_that_helps(client_workspace: Workspace, arguments: tuple[str, ...], expected: str) -> None:
    """A refusal is one line, without the place in the request; nothing is on standard output."""
    message = error_of(client_workspace.run("assignments", *arguments))

    assert expected in message
    assert "assignments[" not in message


def test_second_assignment_is_refused_with_the_id_of_the_first(client_workspace: Workspace) -> None:
    """A role that the principal has at the scope already is an error that names the assignment."""
    create = ("assignments", "create", QUESTION[0], "CONTRIBUTOR", "--scope", BILLING)
    identifier = only_line(client_workspace.run(*create))

    message = error_of(client_workspace.run(*create))

    assert message.endswith(f"change or delete the assignment `{identifier}`.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create", QUESTION[0]), "Missing argument"),
        (("create", QUESTION[0], "VIEWER", "--for", "soon"), "Write it as 30m, 12h, 14d or 4w."),
        (("create", QUESTION[0], "VIEWER", "--for", "-1d"), "Write it as 30m, 12h, 14d or 4w."),
        (("create", QUESTION[0], "VIEWER", "--for", "999999999w"), "Write it as 30m, 12h, 14d or 4w."),
        (("create", QUESTION[0], "VIEWER", "--for", "36501d"), "Write it as 30m, 12h, 14d or 4w."),
        (("create", QUESTION[0], "VIEWER", "--until", "14d"), "Write it as 2027-01-31 or 2027-01-31T12:00:00Z."),
        (("update", "0" * 22, "--until", "0001-01-01T00:00:00+10:00"), "Write it as 2027-01-31"),
        (("delete",), "Missing argument"),
    ],
)
def test_wrong_arguments_are_named(client_workspace: Workspace, arguments: tuple[str, ...], expected: str) -> None:
    """Missing and malformed arguments are named, with what to write, and exit code 2."""
    shown = " ".join(usage_of(client_workspace.run("assignments", *arguments)).split())

    assert expected in shown


# teams


def test_team_has_members_and_roles(client_workspace: Workspace, sqlite_site: Site) -> None:
    """A team is created, filled, given a role, listed, renamed, emptied and deleted."""
    created = client_workspace.run("teams", "create", "payments", "--name", "Payments")
    added = client_workspace.run("teams", "add", "payments", QUESTION[0], "contributor@acme.io")
    assigned = client_workspace.run("assignments", "create", "team:payments", "CONTRIBUTOR", "--scope", BILLING)
    allowed = client_workspace.run("check", *QUESTION, "--scope", BILLING)
    listed = cells(client_workspace.run("teams", "list"))
    members = cells(client_workspace.run("teams", "members", "payments"))
    viewer = sqlite_site.members["VIEWER"].user_id
    removed = client_workspace.run("teams", "remove", "payments", f"user:{viewer}")
    denied = client_workspace.run("check", *QUESTION, "--scope", BILLING)
    renamed = client_workspace.run("teams", "rename", "payments", "Money")
    shown = cells(client_workspace.run("teams", "show", "payments"))
    of_viewer = client_workspace.run("teams", "list", "--user", viewer)
    deleted = client_workspace.run("teams", "delete", "payments")

    assert created.stderr.startswith("The team payments is created.")
    assert added.stderr == "The team payments has 2 members now.\n"
    assert assigned.stderr.startswith("team:payments (Payments) is assigned CONTRIBUTOR at projects/billing.")
    assert (allowed.returncode, denied.returncode) == (0, 1)
    assert listed[0] == ["id", "name", "members", "since"]
    assert listed[1][:3] == ["payments", "Payments", "2"]
    assert members[0] == ["address", "name", "role", "user id"]
    assert [row[0] for row in members[1:]] == ["contributor@acme.io", "viewer@acme.io"]
    assert removed.stderr == "The team payments has 1 members now.\n"
    assert renamed.stderr == "The team payments is named Money now.\n"
    assert shown[1][:3] == ["payments", "Money", "1"]
    assert cells(of_viewer)[1:] == []
    assert deleted.stderr == "The team payments is deleted, and its role assignments have ended.\n"
    assert cells(client_workspace.run("assignments", "list"))[1:] == []


def test_teams_answer_in_json(client_workspace: Workspace) -> None:
    """Programs get the complete messages."""
    made = answer(client_workspace, "teams", "create", "payments")
    added = answer(client_workspace, "teams", "add", "payments", QUESTION[0])
    members = answer(client_workspace, "teams", "members", "payments")
    listed = answer(client_workspace, "teams", "list")
    shown = answer(client_workspace, "teams", "show", "payments")
    removed = answer(client_workspace, "teams", "remove", "payments", QUESTION[0])
    renamed = answer(client_workspace, "teams", "rename", "payments", "Money")
    deleted = answer(client_workspace, "teams", "delete", "payments")

    assert list(made["team"]) == ["id", "display_name", "create_time", "member_count", "etag"]
    assert listed == [shown] == [added["team"]]
    assert [member["email"] for member in members] == [QUESTION[0]]
    assert (removed["team"]["member_count"], renamed["team"]["display_name"]) == (0, "Money")
    assert deleted["team"] == renamed["team"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create", "Pay ments"), "lower-case"),
        (("create", "known"), "known"),
        (("show", "nobody"), "`rolecall teams list`"),
        (("rename", "known", ""), "display_name"),
        (("delete", "nobody"), "`rolecall teams list`"),
        (("add", "known", "nobody@acme.io"), "nobody@acme.io"),
        (("add", "known", "team:known"), "team:known"),
        (("members", "nobody"), "`rolecall teams list`"),
    ],
)
def test_refusal_about_a_team_helps(
    client_workspace: Workspace, owner: Client, arguments: tuple[str, ...], expected: str
) -> None:
    """A refusal is one line that names the team or the member."""
    owner.teams.create("known")

    assert expected in error_of(client_workspace.run("teams", *arguments))


# Scopes


def test_check_explains_the_roles_of_the_subject(client_workspace: Workspace, owner: Client) -> None:
    """Each role is a line, with where it is held and why it applies or doesn't; JSON has the same."""
    made = owner.assignments.create(
        [NewAssignment(QUESTION[0], "CONTRIBUTOR", scope) for scope in (BILLING, "projects/web")]
    ).assignments

    text = client_workspace.run("check", *QUESTION, "--scope", BILLING, "--explain")
    found = answer(client_workspace, "check", *QUESTION, "--scope", BILLING, "--explain")
    plain = client_workspace.run("check", "contributor@acme.io", *QUESTION[1:], "--explain")

    lines = [line for line in text.stdout.splitlines() if line.startswith("  role ")]
    assert [line.split(":")[0] for line in lines] == [
        "  role VIEWER",
        f"  role CONTRIBUTOR at projects/billing (assignment {made[0].id})",
        f"  role CONTRIBUTOR at projects/web (assignment {made[1].id})",
    ]
    assert found["assignment_id"] == made[0].id
    assert [role["reason"] for role in found["explanation"]["roles"]] == ["NOT_GRANTED", "GRANTED", None]
    assert [role["applies"] for role in found["explanation"]["roles"]] == [True, True, False]
    assert "  role " not in plain.stdout


def test_lists_take_a_scope(client_workspace: Workspace, owner: Client) -> None:
    """`permissions`, `subjects` and `resources` answer for a scope, `resources --named` for what assignments name."""
    owner.assignments.create([NewAssignment(QUESTION[0], "CONTRIBUTOR", BILLING)])
    subject, action, resource = QUESTION
    at = ("--scope", BILLING)

    rules = cells(client_workspace.run("permissions", subject, *at))
    subjects = [row[0] for row in cells(client_workspace.run("subjects", action, resource, *at))]
    plan = client_workspace.run("resources", subject, action, "parameters", *at)
    named = client_workspace.run("resources", subject, action, "projects", "--named")
    none = client_workspace.run("resources", subject, action, "templates", "--named")
    refused = client_workspace.run("resources", subject, action, "projects", "--named", *at)

    assert ["parameters", action, "allow"] in rules
    assert ["parameters", action, "allow"] not in cells(client_workspace.run("permissions", subject))
    assert subject in subjects
    assert subject not in client_workspace.run("subjects", action, resource).stdout
    assert plan.stdout == "ALWAYS (role VIEWER).\n"
    assert client_workspace.run("resources", subject, action, "parameters").stdout == "NEVER (role VIEWER).\n"
    assert named.stdout == f"{BILLING}\n"
    assert answer(client_workspace, "resources", subject, action, "projects", "--named") == [BILLING]
    assert (none.returncode, none.stdout) == (0, "")
    assert "leave --named out" in none.stderr
    assert "leave --scope out" in error_of(refused)


def test_token_is_created_for_a_scope(client_workspace: Workspace) -> None:
    """The line about a new token and the list have the scope, alone or after the permissions."""
    bound = client_workspace.run("tokens", "create", "bound", "--scope", BILLING)
    narrow = client_workspace.run("tokens", "create", "narrow", "--restrict", "parameters view", "--scope", BILLING)
    listed = {row[2]: row[4] for row in cells(client_workspace.run("tokens", "list"))}

    assert only_line(bound).startswith("rcp_")
    assert "(bound, OWNER, restricted to projects/billing)" in bound.stderr
    assert "(narrow, OWNER, restricted to parameters view at projects/billing)" in narrow.stderr
    assert listed["bound"] == BILLING
    assert listed["narrow"] == "parameters view at projects/billing"


def test_move_of_members_names_assignments(client_workspace: Workspace, owner: Client) -> None:
    """Assignments keep the old role; the command counts them and says how to list them."""
    owner.assignments.create([NewAssignment("contributor@acme.io", "VIEWER", BILLING)])

    moved = client_workspace.run("members", "move", "VIEWER", "CONTRIBUTOR")

    assert "1 role assignments are of VIEWER still" in moved.stderr
    assert "`rolecall assignments list --role VIEWER`" in moved.stderr
