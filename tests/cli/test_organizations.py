"""`rolecall organizations` and `db upgrade` as the operator runs them."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from rolecall.client import Client, to_dict
from rolecall.credentials import server_key
from support.commands import Workspace, cells, error_of, only_line, usage_of
from support.environment import ROOT
from support.lossy_proxy import is_live
from support.sites import Site, sqlite_file
from support.waiting import wait_until


@pytest.fixture
def operator(sqlite_site: Site, tmp_path: Path) -> Workspace:
    """A workspace whose commands use a running server's database."""
    settings = sqlite_site.settings
    return Workspace(
        tmp_path,
        {
            "ROLECALL_DATABASE": settings.database,
            "ROLECALL_KEY_FILE": str(settings.key_file),
            "ROLECALL_POLICY": str(settings.policy),
        },
    )


def test_created_organization_is_served_at_once(operator: Workspace, sqlite_site: Site) -> None:
    """The owner's token is alone on standard output, and a server that runs already takes it."""
    finished = operator.run(
        "operator", "organizations", "create", "--organization", "globex", "--owner", "Hank@globex.io"
    )

    secret = only_line(finished)
    with Client(sqlite_site.address, secret) as hank:
        found = hank.session.who_am_i()
        verdict = hank.audit.verify()
        actions = [entry.action for entry in hank.audit.list()]
    assert secret not in finished.stderr
    assert finished.stderr.splitlines()[0] == "Hank@globex.io is OWNER of globex."
    assert "shown this once, is valid for 90 days" in finished.stderr
    assert (found.organization.id, found.member.email, found.role) == ("globex", "Hank@globex.io", "OWNER")
    assert (verdict.entry_count, actions) == (1, ["CreateOrganization"])


@pytest.mark.parametrize(
    ("organization", "owner", "expected"),
    [
        ("acme", "hank@acme.io", "The organization `acme` exists already"),
        ("Globex_2", "hank@globex.io", "lower-case letters, digits and inner hyphens"),
        ("globex", "hank", "must have an @-sign"),
    ],
)
def test_bad_organization_is_refused(
    operator: Workspace, sqlite_site: Site, organization: str, owner: str, expected: str
) -> None:
    """A bad organization is refused with a hint of what is allowed, and nothing is written."""
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        before = list(connection.iterdump())
        message = error_of(
            operator.run("operator", "organizations", "create", "--organization", organization, "--owner", owner)
        )
        after = list(connection.iterdump())

    assert expected in message
    assert after == before


def test_organizations_are_listed(operator: Workspace, sqlite_site: Site) -> None:
    """Each with its name, members, age, revision and the state of its audit log; as a table and as JSON."""
    operator.run("operator", "organizations", "create", "--organization", "globex", "--owner", "hank@globex.io")
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as ann:
        acme = ann.organization.update("Acme [b]Ltd.[/b]")

    table = cells(operator.run("operator", "organizations", "list"))
    listed = json.loads(only_line(operator.run("operator", "organizations", "list", "--json")))

    assert table[0] == ["organization", "name", "members", "created", "revision", "audit_log"]
    assert [row[:3] for row in table[1:]] == [["acme", "Acme [b]Ltd.[/b]", "5"], ["globex", "globex", "1"]]
    assert [list(item) for item in listed] == [table[0]] * 2
    assert [row[-1] for row in table[1:]] == ["COMPLETE"] * 2
    assert (listed[0]["name"], listed[0]["members"], listed[0]["revision"]) == (acme.display_name, 5, acme.revision)


def test_operator_needs_database_and_key(operator: Workspace, tmp_path: Path) -> None:
    """A missing database or key, or another key, is reported before anything is read or written."""
    server_key.create(tmp_path / "other.key")

    no_database = error_of(operator.run("operator", "organizations", "list", "--database", "sqlite:///missing.db"))
    no_key = error_of(operator.run("operator", "organizations", "list", "--key-file", "missing.key"))
    other_key = error_of(operator.run("operator", "organizations", "list", "--key-file", "other.key"))

    assert "The database missing.db does not exist" in no_database
    assert not (tmp_path / "missing.db").exists()
    assert "The key file missing.key does not exist" in no_key
    assert "signed with the key" in other_key


def test_missing_options_are_named(operator: Workspace) -> None:
    """Creating needs a name and an owner."""
    usage = usage_of(operator.run("operator", "organizations", "create", "--organization", "globex"))

    assert "--owner" in usage


# db


def test_removed_log_is_restarted_only_by_a_recorded_command(
    operator: Workspace, sqlite_site: Site, tmp_path: Path
) -> None:
    """After a log was removed, the operator's commands warn of it; the new log's first entry records its restart."""
    sqlite_site.server.stop(0)
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        for table in ("audit_values", "audit_entries", "audit_heads"):
            connection.execute(f"DELETE FROM {table}")

    restart = ("operator", "audit", "restart", "--organization", "acme", "--archive", str(tmp_path / "old.jsonl"))
    warned = [operator.run(*words) for words in (("operator", "organizations", "list"), ("operator", "db", "upgrade"))]
    (listed,) = json.loads(only_line(operator.run("operator", "organizations", "list", "--json")))
    refused = operator.run("operator", "tokens", "issue", "--organization", "acme", "--email", "ann@acme.io")
    restarted = operator.run(*restart)
    again = error_of(operator.run(*restart))
    issued = operator.run("operator", "tokens", "issue", "--organization", "acme", "--email", "ann@acme.io")
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        actions = [row[0] for row in connection.execute("SELECT action FROM audit_entries ORDER BY sequence")]

    assert all("warning: Organizations whose audit log has lost its end: 1 (acme)" in each.stderr for each in warned)
    assert all("rolecall operator audit restart --organization acme" in each.stderr for each in warned)
    assert [each.returncode for each in warned] == [0, 0]
    assert (listed["organization"], listed["audit_log"]) == ("acme", "CUT_OFF")
    assert refused.returncode == 2
    assert "error: The audit log of acme has no valid end" in refused.stderr
    assert (restarted.returncode, restarted.stdout) == (0, "")
    assert "old.jsonl can't be created: File exists" in again
    assert only_line(issued)
    assert actions == ["RestartAuditLog", "IssueToken"]


def test_upgrade_without_the_key_changes_nothing(operator: Workspace, tmp_path: Path) -> None:
    """A log can't begin without the key that signs it."""
    message = error_of(operator.run("operator", "db", "upgrade", "--key-file", str(tmp_path / "missing.key")))

    assert "does not exist" in message
    assert not os.path.lexists(tmp_path / "missing.key")


def test_tokens_issued_by_the_operator_work(operator: Workspace, sqlite_site: Site) -> None:
    """After all of the operator's commands, the earlier tokens still work."""
    operator.run("operator", "organizations", "create", "--organization", "globex", "--owner", "hank@globex.io")

    assert all(is_live(sqlite_site.address, token) for token in sqlite_site.tokens.values())


OTHER_POLICY = ROOT / "policies" / "variants" / "viewer-editor-admin"


def test_an_organization_is_created_under_the_policy_in_force(operator: Workspace) -> None:
    """The founder gets its owner role, whatever folder the command names."""
    words = ("--organization", "globex", "--owner", "gil@globex.io", "--policy", str(OTHER_POLICY))

    created = operator.run("operator", "organizations", "create", *words)

    assert created.returncode == 0, created.stderr
    assert "gil@globex.io is OWNER of globex." in created.stderr


def test_a_policy_that_drops_held_roles_is_activated_with_moves(operator: Workspace, sqlite_site: Site) -> None:
    """Without --move it is refused and nothing is changed; with it, holders get other roles, and servers follow."""
    activate = ("operator", "policy", "activate", "--policy", str(OTHER_POLICY))
    token = sqlite_site.tokens["OWNER"]
    with Client(sqlite_site.address, token) as client:
        made = client.tokens.create_organization("ci", "CONTRIBUTOR")
        client.invitations.create([("kim@x.io", "CONTRIBUTOR")])
        before = client.organization.get()

        refused = error_of(operator.run(*activate))
        unknown = error_of(operator.run(*activate, "--move", "OWNER=KING"))
        malformed = error_of(operator.run(*activate, "--move", "OWNER"))
        twice = error_of(operator.run(*activate, "--move", "OWNER=ADMIN", "--move", "OWNER=EDITOR"))
        assert client.organization.get() == before
        moves = {"OWNER": "ADMIN", "ADMIN": "EDITOR", "CONTRIBUTOR": "EDITOR", "VIEWERNOSECRETS": "VIEWER"}
        options = [part for old, new in moves.items() for part in ("--move", f"{old}={new}")]
        activated = operator.run(*activate, *options)
        assert activated.returncode == 0, activated.stderr
        # Its folder has another policy.
        wait_until(lambda: sqlite_site.server.live.in_force.refusal is not None)
        assert client.check("ann@acme.io", "update", "owners").role == "ADMIN"
        roles = {member.email: member.role for member in client.members.list()}
        entry = next(iter(client.audit.list()))
        organization_token = next(each for each in client.tokens.list() if each.id == made.token.id)
        invitation = next(iter(client.invitations.list()))

    assert "Members or tokens have the role `CONTRIBUTOR`" in refused
    assert "--move CONTRIBUTOR=ROLE" in refused
    assert "no role `KING`" in unknown
    assert "is not OLD=NEW" in malformed
    assert "the holders of OWNER two roles" in twice
    assert roles == {"ann@acme.io": "ADMIN"} | {
        member.email: moves.get(role, role) for role, member in sqlite_site.members.items() if role != "OWNER"
    }
    assert (organization_token.role, invitation.role) == ("EDITOR", "EDITOR")
    assert (entry.action, entry.actor) == ("MoveRoles", "operator")
    assert to_dict(entry)["details"]["moves"]["OWNER"] == "ADMIN"
    assert sqlite_site.server.live.in_force.activation.activator.startswith("operator at ")
