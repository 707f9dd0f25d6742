"""`rolecall operator tokens issue | revoke` and `operator db upgrade`, at the database."""

import re
from contextlib import closing

import pytest

from rolecall.client import Client
from rolecall.errors import UnauthenticatedCredential
from support.broken_workspaces import another_key, delete_key
from support.commands import Workspace, error_of, only_line
from support.sites import Site
from support.waiting import keep_asking

# tokens


def test_issued_token_works_until_it_is_revoked(sqlite_site: Site, empty: Workspace) -> None:
    """While the server runs, the operator issues a token and revokes it; the server refuses it within a second."""
    empty.variables["ROLECALL_DATABASE"] = sqlite_site.settings.database
    empty.variables["ROLECALL_KEY_FILE"] = str(sqlite_site.settings.key_file)

    issued = only_line(empty.run("operator", "tokens", "issue", "--organization", "acme", "--email", "VIEWER@acme.io"))
    with Client(sqlite_site.address, issued) as client:
        before = client.check("viewer@acme.io", "view", "secrets")
        revoked = empty.run("operator", "tokens", "revoke", "--organization", "acme", "--id", issued.split("_")[1])
        with pytest.raises(UnauthenticatedCredential):
            keep_asking(lambda: client.check("viewer@acme.io", "view", "secrets"))

    assert before
    assert revoked.returncode == 0
    assert revoked.stdout == ""


def test_operators_commands_are_in_the_audit_log(workspace: Workspace, token: str) -> None:
    """Tokens issued and revoked at the database leave an entry each, as the operator's, without the secret."""
    issued = only_line(
        workspace.run("operator", "tokens", "issue", "--organization", "acme", "--email", "viewer@acme.io")
    )
    workspace.run("operator", "tokens", "revoke", "--organization", "acme", "--id", token.split("_")[1])

    with closing(workspace.database()) as connection:
        query = "SELECT action, actor, object, reason FROM audit_entries ORDER BY sequence"
        entries = connection.execute(query).fetchall()
    assert entries == [
        ("CreateOrganization", "operator", "organization:acme", ""),
        ("IssueToken", "operator", f"token:{issued.split('_')[1]}", ""),
        ("RevokeToken", "operator", f"token:{token.split('_')[1]}", ""),
    ]
    assert issued.split("_")[2] not in "".join(workspace.dump())


@pytest.mark.parametrize(
    "arguments",
    [
        ("operator", "tokens", "issue", "--organization", "acme", "--email", "ann@acme.io"),
        ("operator", "tokens", "revoke", "--organization", "acme", "--id", "0" * 22),
        ("operator", "organizations", "create", "--organization", "beta", "--owner", "bob@beta.io"),
        ("init", "--organization", "beta", "--owner", "bob@beta.io"),
        ("operator", "audit", "erase", "--organization", "acme", "--person", "ann@acme.io"),
        ("operator", "audit", "prune", "--organization", "acme", "--before", "2020-01-01"),
        ("serve",),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_another_key_is_refused(workspace: Workspace, arguments: tuple[str, ...]) -> None:
    """Where the audit log was signed with another key, each command is refused: the message names both keys."""
    before = workspace.dump()
    another_key(workspace)

    message = error_of(workspace.run(*arguments))

    assert re.search(r"signed with the key \S+, this key file holds \S+: restore the key file", message), message
    assert workspace.dump() == before


@pytest.mark.parametrize("command", ["issue", "revoke"])
def test_operators_commands_need_the_key(workspace: Workspace, command: str) -> None:
    """Without the key, which signs the audit log, nothing is written."""
    before = workspace.dump()
    delete_key(workspace)
    about = ("--email", "ann@acme.io") if command == "issue" else ("--id", "0" * 22)

    message = error_of(workspace.run("operator", "tokens", command, "--organization", "acme", *about))

    assert "The key file rolecall.key does not exist" in message
    assert workspace.dump() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("issue", "--organization", "acme", "--email", "bob@acme.io"), "bob@acme.io is not a member of `acme`"),
        (("issue", "--organization", "beta", "--email", "ann@acme.io"), "There is no organization `beta`"),
        (("revoke", "--organization", "acme", "--id", "0" * 22), f"`acme` has no token `{'0' * 22}`"),
        (("revoke", "--organization", "acme", "--id", "rcp_pasted_whole"), "give the 22 characters"),
    ],
)
def test_tokens_of_unknown_members_are_refused(workspace: Workspace, arguments: tuple[str, ...], expected: str) -> None:
    """A missing member, organization or token is named, and nothing is written."""
    before = workspace.dump()

    message = error_of(workspace.run("operator", "tokens", *arguments))

    assert expected in message
    assert workspace.dump() == before


def test_token_is_revoked_once(workspace: Workspace, token: str) -> None:
    """A second `revoke` says that the token is revoked already."""
    arguments = ("operator", "tokens", "revoke", "--organization", "acme", "--id", token.split("_")[1])

    first = workspace.run(*arguments)
    second = workspace.run(*arguments)

    assert first.returncode == 0
    assert "revoked already" in error_of(second)


# db


def test_upgrade_changes_nothing_that_is_up_to_date(workspace: Workspace) -> None:
    """`db upgrade` leaves a database that is up to date alone."""
    before = workspace.dump()

    finished = workspace.run("operator", "db", "upgrade")

    assert finished.returncode == 0
    assert workspace.dump() == before


def test_upgrade_of_a_mistyped_database_creates_none(workspace: Workspace) -> None:
    """`db upgrade` creates no database."""
    message = error_of(workspace.run("operator", "db", "upgrade", "--database", "sqlite:///rolecal.db"))

    assert "The database rolecal.db does not exist" in message
    assert "rolecal.db" not in workspace.names()


def test_upgrade_creates_no_key(workspace: Workspace) -> None:
    """An upgrade creates no key: logs signed with it would be invalid with the restored one."""
    before = workspace.dump()
    delete_key(workspace)

    message = error_of(workspace.run("operator", "db", "upgrade"))

    assert "The key file rolecall.key does not exist" in message
    assert "rolecall.key" not in workspace.names()
    assert workspace.dump() == before


def test_upgrade_does_not_restart_a_removed_log(workspace: Workspace) -> None:
    """An upgrade doesn't start a new log in place of one that was removed."""
    with closing(workspace.database()) as connection, connection:
        for table in ("audit_values", "audit_entries", "audit_heads"):
            connection.execute(f"DELETE FROM {table}")
    issue = ("operator", "tokens", "issue", "--organization", "acme", "--email", "ann@acme.io")

    upgraded = workspace.run("operator", "db", "upgrade")
    refused = workspace.run(*issue)

    assert (upgraded.returncode, refused.returncode) == (0, 2)
    assert all("Somebody removed it" in each.stderr for each in (upgraded, refused))
    assert "error: The audit log of acme has no valid end" in refused.stderr
