"""`rolecall tokens` and `whoami` as their users run them: a process of its own, its output and its exit code."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rolecall.audit import AuditLog, Event
from rolecall.client import Client
from rolecall.credentials import server_key, token_format
from rolecall.storage import Transaction
from support.commands import Workspace, cells, error_of, only_line, usage_of
from support.lossy_proxy import OpenProxy, is_live
from support.sites import Site
from support.waiting import wait_until


@pytest.fixture
def owner(sqlite_site: Site) -> Iterator[Client]:
    """A client of the same server, as the owner."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


# create


def test_only_the_created_token_is_on_stdout(server_workspace: Workspace, sqlite_site: Site) -> None:
    """The secret alone is on standard output, so that it can be piped; standard error describes the token."""
    finished = server_workspace.run("tokens", "create", "laptop")

    secret = only_line(finished)
    assert is_live(sqlite_site.address, secret)
    assert secret not in finished.stderr
    assert re.fullmatch(
        rf"The token {secret.split('_')[1]} \(laptop, OWNER\), shown this once, works until .*Z:\n", finished.stderr
    )


def test_created_token_in_json_is_complete(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Secret, id, role, restriction, expiry and revision, as one JSON value."""
    finished = server_workspace.run(
        "tokens", "create", "billing", "--role", "CONTRIBUTOR", "--restrict", "authorization check",
        "--restrict", "members view", "--days", "3", "--json",
    )  # fmt: skip

    made = json.loads(only_line(finished))
    token = made["token"]
    assert finished.stderr == ""
    assert is_live(sqlite_site.address, made["secret"])
    assert (token["kind"], token["display_name"], token["role"]) == ("organization_token", "billing", "CONTRIBUTOR")
    held = [(item["resource"], item["action"]) for item in token["restriction"]["permissions"]]
    assert held == [("authorization", "check"), ("members", "view")]
    lives = datetime.fromisoformat(token["expire_time"]) - datetime.now(UTC)
    assert timedelta(days=2, hours=23) < lives < timedelta(days=3)
    assert made["secret_lost"] is False
    assert made["revision"] > 0
    assert token["id"] == made["secret"].split("_")[1]


def test_lost_secret_is_reported_with_the_command_that_helps(
    server_workspace: Workspace, sqlite_site: Site, open_proxy: OpenProxy
) -> None:
    """A lost secret prints nothing on standard output; the error holds the command that helps."""
    proxy, address = open_proxy(sqlite_site)
    proxy.lose = 1
    server_workspace.variables["ROLECALL_ADDRESS"] = address

    message = error_of(server_workspace.run("tokens", "create", "laptop"))

    command = re.search(r"`rolecall (tokens rotate \w{22})`", message)
    assert command
    assert is_live(sqlite_site.address, only_line(server_workspace.run(*command[1].split())))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create", ""), "name is empty"),
        (("create", "x" * 65), "more than 64"),
        (("create", "x", "--restrict", "authorization"), "give a resource and an action"),
        (("create", "x", "--restrict", "nil nothing"), "The policy has no rule on"),
        (("create", "x", "--role", "NOBODY"), "no role `NOBODY`: choose one of"),
        (("create", "x", "--role", "OWNER"), "which no organization token may"),
        (("rotate", "0" * 22), "has no token"),
        (("rotate", "rcp_pasted_whole"), "between a token's two underscores"),
        (("delete", "0" * 22), "has no token"),
    ],
)
def test_refusal_is_one_line_that_helps(server_workspace: Workspace, arguments: tuple[str, ...], expected: str) -> None:
    """A refusal shows the server's message; nothing is on standard output, and the exit code is 2."""
    message = error_of(server_workspace.run("tokens", *arguments))

    assert expected in message
    assert "pasted_whole" not in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create",), "Missing argument"),
        (("create", "x", "--days", "soon"), "--days"),
        (("create", "x", "--days", "0"), "--days"),
        (("create", "x", "--days", "366"), "--days"),
        (("rotate", "0" * 22, "--overlap", "25"), "--overlap"),
        (("rotate", "0" * 22, "--overlap", "nan"), "--overlap"),
        (("list", "--kind", "session"), "organization"),
        (("list", "--state", "dead"), "expired"),
        (("rotate",), "Missing argument"),
        (("revok",), "revok"),
    ],
)
def test_wrong_arguments_are_named(server_workspace: Workspace, arguments: tuple[str, ...], expected: str) -> None:
    """Missing, unknown and malformed arguments are named, with exit code 2."""
    assert expected in usage_of(server_workspace.run("tokens", *arguments))


def test_missing_permission_is_named(server_workspace: Workspace, sqlite_site: Site) -> None:
    """A viewer who creates a token gets the permission that is missing."""
    server_workspace.variables["ROLECALL_TOKEN"] = sqlite_site.tokens["VIEWER"]

    message = error_of(server_workspace.run("tokens", "create", "laptop"))

    assert "personal-tokens" in message
    assert "create" in message


def test_without_a_token_each_command_says_how_to_set_it(server_workspace: Workspace) -> None:
    """Without ROLECALL_TOKEN no command makes a call, and each error says how to set it."""
    del server_workspace.variables["ROLECALL_TOKEN"]

    for command in (("tokens", "list"), ("whoami",)):
        assert "set ROLECALL_TOKEN" in error_of(server_workspace.run(*command))


# list, rotate, delete


def test_listed_tokens_show_no_secret(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """A table for people, the same as JSON for programs; of each secret no more than its last four characters."""
    made = owner.tokens.create_organization("billing", "VIEWER", restriction=[("members", "view")])
    owner.tokens.delete(owner.tokens.create_personal("gone").token.id)

    table = server_workspace.run("tokens", "list")
    listed = json.loads(only_line(server_workspace.run("tokens", "list", "--show-deleted", "--json")))

    header, first, *others = cells(table)
    assert table.stderr == ""
    assert header == [
        "id", "token", "name", "role", "restricted to", "networks", "holder", "created", "by", "expires", "last used",
        "state",
    ]  # fmt: skip
    assert first[:7] == [
        made.token.id, f"rco_…{made.secret[-4:]}", "billing", "VIEWER", "members view", "", "(organization)",
    ]  # fmt: skip
    assert first[8] == sqlite_site.members["OWNER"].user_id
    assert first[10:] == ["never", "active"]
    assert len(others) == 6
    assert [(token["display_name"], token["state"]) for token in listed[:2]] == [
        ("gone", "deleted"),
        ("billing", "active"),
    ]
    assert len(listed) == 8
    assert {"id", "kind", "user_id", "creator", "prefix", "last_four", "create_time", "expire_time", "etag"} <= set(
        listed[0]
    )
    shown = table.stdout + json.dumps(listed)
    for text in (made.secret, *sqlite_site.tokens.values()):
        assert text.rpartition("_")[2] not in shown


def test_list_is_filtered_by_its_options(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """Kind, person and state narrow the list; an empty one is still valid JSON."""
    owner.tokens.create_organization("billing", "VIEWER")
    viewer = sqlite_site.members["VIEWER"].user_id

    of_viewer = json.loads(
        only_line(server_workspace.run("tokens", "list", "--kind", "personal", "--user", viewer, "--json"))
    )
    expired = json.loads(only_line(server_workspace.run("tokens", "list", "--state", "expired", "--json")))
    soon = [
        len(json.loads(only_line(server_workspace.run("tokens", "list", "--expires-within", days, "--json"))))
        for days in ("89.5", "91")
    ]
    never = server_workspace.run("tokens", "list", "--expires-within", "0")

    assert {token["user_id"] for token in of_viewer} == {viewer}
    assert expired == []
    assert soon == [0, 7]
    assert never.returncode == 2
    assert "--expires-within must be above 0 days" in error_of(never)


def test_token_is_bound_to_networks(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """Each --network binds the token; the list and the line about a new token have them; a malformed one is named."""
    bound = server_workspace.run("tokens", "create", "a", "--network", "192.0.2.0/24", "--network", "2001:db8::/32")
    table = server_workspace.run("tokens", "list").stdout
    malformed = server_workspace.run("tokens", "create", "b", "--network", "192.0.2.1/24")

    assert not is_live(sqlite_site.address, only_line(bound))
    assert "(a, OWNER, from 192.0.2.0/24 2001:db8::/32 only), shown this once" in bound.stderr
    assert "192.0.2.0/24 2001:db8::/32" in table
    assert malformed.returncode == 2
    assert "write `192.0.2.0/24` for the network" in error_of(malformed)


def test_rotated_token_has_a_new_secret(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """The new secret is alone on standard output; the old one works for the overlap, or not at all."""
    made = owner.tokens.create_personal("laptop")

    second = only_line(server_workspace.run("tokens", "rotate", made.token.id, "--overlap", "0.5"))
    while_overlapping = is_live(sqlite_site.address, made.secret)
    third = json.loads(only_line(server_workspace.run("tokens", "rotate", made.token.id, "--json")))

    assert while_overlapping
    assert third["token"]["id"] == made.token.id
    live = [is_live(sqlite_site.address, text) for text in (made.secret, second, third["secret"])]
    assert live == [False, False, True]


def test_deleted_token_is_refused(server_workspace: Workspace, owner: Client) -> None:
    """Deleting is confirmed on standard error; using the token then fails with how to get another."""
    made = owner.tokens.create_personal("laptop")

    deleted = server_workspace.run("tokens", "delete", made.token.id)
    server_workspace.variables["ROLECALL_TOKEN"] = made.secret
    message = error_of(server_workspace.run("whoami"))

    assert (deleted.returncode, deleted.stdout) == (0, "")
    assert deleted.stderr == f"The token {made.token.id} is deleted.\n"
    assert "No valid credential was presented" in message
    assert "`rolecall operator tokens issue`" in message


# issue, revoke


def test_operator_issues_and_revokes(server_workspace: Workspace, sqlite_site: Site) -> None:
    """The operator issues without a token: the new secret alone on standard output, its expiry on stderr."""
    del server_workspace.variables["ROLECALL_TOKEN"]

    issued = server_workspace.run("operator", "tokens", "issue", "--organization", "acme", "--email", "VIEWER@acme.io")
    secret = only_line(issued)
    before = is_live(sqlite_site.address, secret)
    revoked = server_workspace.run(
        "operator", "tokens", "revoke", "--organization", "acme", "--id", secret.split("_")[1]
    )

    assert secret not in issued.stderr
    assert f"The token {secret.split('_')[1]} of VIEWER@acme.io, shown this once" in issued.stderr
    assert before
    assert (revoked.returncode, revoked.stdout) == (0, "")
    # Another process's change is seen within a second.
    wait_until(lambda: not is_live(sqlite_site.address, secret))


def test_operator_with_another_key_changes_nothing(server_workspace: Workspace, owner: Client, tmp_path: Path) -> None:
    """With a key that didn't sign the log the command refuses, names both keys, and says what to do."""
    server_key.create(tmp_path / "other.key")
    before = owner.organization.get().revision

    message = error_of(
        server_workspace.run(
            "operator", "tokens", "issue", "--organization", "acme", "--email", "ann@acme.io", "--key-file", "other.key"
        )
    )

    assert "signed with the key" in message
    assert "restore the key file, or set ROLECALL_KEY_FILE" in message
    assert owner.organization.get().revision == before


# whoami


def test_whoami_shows_the_permissions_of_a_person(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Person, role, organization, credential and permissions; what should be looked after is on standard error."""
    finished = server_workspace.run("whoami")

    lines = finished.stdout.splitlines()
    user_id = sqlite_site.members["OWNER"].user_id
    assert finished.returncode == 0
    assert lines[0] == f"ann@acme.io (user {user_id}), OWNER of acme (acme)"
    assert re.fullmatch(rf"personal token {sqlite_site.tokens['OWNER'].split('_')[1]}, works until .*Z", lines[1])
    assert cells(finished)[0] == ["resource", "action", "effect"]
    assert ["secrets", "view", "allow"] in cells(finished)
    assert re.match(r"warning: .*single owner", finished.stderr)


def test_whoami_shows_a_program_in_json(server_workspace: Workspace, owner: Client) -> None:
    """An organization's token is its own holder; its restriction bounds the permissions."""
    made = owner.tokens.create_organization("billing", "VIEWER", restriction=[("members", "view")])
    server_workspace.variables["ROLECALL_TOKEN"] = made.secret

    table = server_workspace.run("whoami")
    found = json.loads(only_line(server_workspace.run("whoami", "--json")))

    assert table.stdout.startswith("billing, VIEWER of acme (acme)\norganization token ")
    assert (found["member"], found["token"]["display_name"], found["role"]) == (None, "billing", "VIEWER")
    assert found["permissions"] == [{"resource": "members", "action": "view", "effect": "allow"}]
    assert found["credential"]["id"] == made.token.id
    assert token_format.parse(made.secret) is not None
    assert made.secret.rpartition("_")[2] not in json.dumps(found)


def test_a_checkpoint_is_not_printed_with_the_secret(server_workspace: Workspace, sqlite_site: Site) -> None:
    """The hundredth entry makes a line of the log, on standard error; the secret stays alone on standard output."""
    log = AuditLog(server_key.read(sqlite_site.settings.key_file))

    def fill(tx: Transaction) -> None:
        while log.locked_head(tx, "acme").sequence < 99:
            log.record(tx, Event("acme", "operator", "Note"))

    sqlite_site.storage.write(fill)
    issued = server_workspace.run("operator", "tokens", "issue", "--organization", "acme", "--email", "viewer@acme.io")

    assert is_live(sqlite_site.address, only_line(issued))
    assert "audit checkpoint" in issued.stderr
