"""`rolecall organizations` and `db upgrade` as the operator runs them."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT, Site, sqlite_file
from test_cli import Workspace, error_of, only_line
from test_cli_tokens import cells, usage_of
from test_client_management import is_live

from rolecall import keys
from rolecall.client import Client


@pytest.fixture
def operator(sqlite_site: Site, tmp_path: Path) -> Workspace:
    """A shell that is set up to work on a running server's database."""
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
    finished = operator.run("organizations", "create", "--organization", "globex", "--owner", "Hank@globex.io")

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
    ("organization", "owner", "said"),
    [
        ("acme", "hank@acme.io", "There is an organization `acme` already"),
        ("Globex_2", "hank@globex.io", "lower-case letters, digits and inner hyphens"),
        ("globex", "hank", "must have an @-sign"),
    ],
)
def test_bad_organization_is_refused(
    operator: Workspace, sqlite_site: Site, organization: str, owner: str, said: str
) -> None:
    """What can't be created is told with what would do, and nothing is written."""
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        before = list(connection.iterdump())
        message = error_of(operator.run("organizations", "create", "--organization", organization, "--owner", owner))
        after = list(connection.iterdump())

    assert said in message
    assert after == before


def test_organizations_are_listed(operator: Workspace, sqlite_site: Site) -> None:
    """Each with its name, members, age and revision; as a table and as JSON."""
    operator.run("organizations", "create", "--organization", "globex", "--owner", "hank@globex.io")
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as ann:
        acme = ann.organization.update("Acme [b]Ltd.[/b]")

    table = cells(operator.run("organizations", "list"))
    listed = json.loads(only_line(operator.run("organizations", "list", "--json")))

    assert table[0] == ["organization", "name", "members", "created", "revision"]
    assert [row[:3] for row in table[1:]] == [["acme", "Acme [b]Ltd.[/b]", "5"], ["globex", "globex", "1"]]
    assert [list(item) for item in listed] == [table[0]] * 2
    assert (listed[0]["name"], listed[0]["members"], listed[0]["revision"]) == (acme.display_name, 5, acme.revision)


def test_operator_needs_database_and_key(operator: Workspace, tmp_path: Path) -> None:
    """A database or key that isn't there, or another key, is told before anything is read or written."""
    keys.create(tmp_path / "other.key")

    no_database = error_of(operator.run("organizations", "list", "--database", "sqlite:///missing.db"))
    no_key = error_of(operator.run("organizations", "list", "--key-file", "missing.key"))
    other_key = error_of(operator.run("organizations", "list", "--key-file", "other.key"))

    assert "There is no database missing.db" in no_database
    assert not (tmp_path / "missing.db").exists()
    assert "no key file missing.key" in no_key
    assert "signed with the key" in other_key


def test_missing_options_are_named(operator: Workspace) -> None:
    """Creating needs a name and an owner."""
    said = usage_of(operator.run("organizations", "create", "--organization", "globex"))

    assert "--owner" in said


# db


def test_a_removed_log_begins_anew_on_the_record_only(operator: Workspace, sqlite_site: Site, tmp_path: Path) -> None:
    """Somebody wiped the log: nothing works, an upgrade signs nothing, and a restart is the new log's first entry."""
    sqlite_site.server.stop(0)
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        for table in ("audit_values", "audit_entries", "audit_heads"):
            connection.execute(f"DELETE FROM {table}")

    restart = ("audit", "restart", "--organization", "acme", "--archive", str(tmp_path / "old.jsonl"))
    refused = [error_of(operator.run(*words)) for words in (("organizations", "list"), ("db", "upgrade"))]
    restarted = operator.run(*restart)
    again = error_of(operator.run(*restart))
    issued = operator.run("tokens", "issue", "--organization", "acme", "--email", "ann@acme.io")
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        actions = [row[0] for row in connection.execute("SELECT action FROM audit_entries ORDER BY sequence")]

    assert all("whose audit log has lost its end: 1" in message for message in refused)
    assert all("rolecall audit restart --organization acme" in message for message in refused)
    assert (restarted.returncode, restarted.stdout) == (0, "")
    assert "old.jsonl can't be made: File exists" in again
    assert only_line(issued)
    assert actions == ["RestartAuditLog", "IssueToken"]


def test_upgrade_without_the_key_changes_nothing(operator: Workspace, tmp_path: Path) -> None:
    """A log can't begin without the key that signs it."""
    message = error_of(operator.run("db", "upgrade", "--key-file", str(tmp_path / "missing.key")))

    assert "no key file" in message
    assert not os.path.lexists(tmp_path / "missing.key")


def test_new_tokens_of_the_operator_are_live(operator: Workspace, sqlite_site: Site) -> None:
    """After all that the operator does, the tokens that were there still work."""
    operator.run("organizations", "create", "--organization", "globex", "--owner", "hank@globex.io")

    assert all(is_live(sqlite_site.address, token) for token in sqlite_site.tokens.values())


def test_an_organization_is_founded_on_the_servers_policy_only(operator: Workspace) -> None:
    """A policy that doesn't fit the organizations there are would keep every server from starting again."""
    before = json.loads(only_line(operator.run("organizations", "list", "--json")))
    other = str(ROOT / "policies" / "variants" / "viewer-editor-admin")
    words = ("--organization", "globex", "--owner", "gil@globex.io", "--policy", other)

    message = error_of(operator.run("organizations", "create", *words))

    assert "doesn't fit the organizations there are" in message
    assert json.loads(only_line(operator.run("organizations", "list", "--json"))) == before
