"""`rolecall tokens` and `whoami` as their users run them: a process of its own, its output and its exit code."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Site, wait_until
from test_cli import Finished, Workspace, error_of, only_line
from test_client_management import OpenWire, is_live, open_wire

from rolecall import credentials, keys
from rolecall.audit import AuditLog, Event
from rolecall.client import Client
from rolecall.storage import Transaction

__all__ = ["open_wire"]


@pytest.fixture
def shell(sqlite_site: Site, tmp_path: Path) -> Workspace:
    """A shell that is set up to ask a running server as its owner, and to work on its database as its operator."""
    settings = sqlite_site.settings
    return Workspace(
        tmp_path,
        {
            "ROLECALL_ADDRESS": sqlite_site.address,
            "ROLECALL_TOKEN": sqlite_site.tokens["OWNER"],
            "ROLECALL_DATABASE": settings.database,
            "ROLECALL_KEY_FILE": str(settings.key_file),
        },
    )


@pytest.fixture
def owner(sqlite_site: Site) -> Iterator[Client]:
    """The same server through the library."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


def cells(finished: Finished) -> list[list[str]]:
    """The rows of a table, the header first."""
    lines = [line for line in finished.stdout.splitlines() if line[:1] in "│┃" and line]
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]


def usage_of(finished: Finished) -> str:
    """What a command says of arguments that it can't take: exit code 2, no answer, a text of a few lines."""
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    return finished.stderr


# create


def test_created_token_is_alone_on_stdout(shell: Workspace, sqlite_site: Site) -> None:
    """The secret can be piped; what is to be known of it is said on standard error, without the secret."""
    finished = shell.run("tokens", "create", "laptop")

    secret = only_line(finished)
    assert is_live(sqlite_site.address, secret)
    assert secret not in finished.stderr
    assert re.fullmatch(
        rf"The token {secret.split('_')[1]} \(laptop, OWNER\), shown this once, works until .*Z:\n", finished.stderr
    )


def test_created_token_in_json_is_all_that_a_program_needs(shell: Workspace, sqlite_site: Site) -> None:
    """Secret, id, role, restriction, expiry and revision, as one JSON value."""
    finished = shell.run(
        "tokens", "create", "billing", "--role", "CONTRIBUTOR", "--restrict", "authorization check",
        "--restrict", "members view", "--days", "3", "--json",
    )  # fmt: skip

    made = json.loads(only_line(finished))
    token = made["token"]
    assert finished.stderr == ""
    assert is_live(sqlite_site.address, made["secret"])
    assert (token["kind"], token["name"], token["role"]) == ("organization_token", "billing", "CONTRIBUTOR")
    held = [(item["resource"], item["action"]) for item in token["restriction"]["permissions"]]
    assert held == [("authorization", "check"), ("members", "view")]
    lives = datetime.fromisoformat(token["expire_time"]) - datetime.now(UTC)
    assert timedelta(days=2, hours=23) < lives < timedelta(days=3)
    assert made["secret_lost"] is False
    assert made["revision"] > 0
    assert token["id"] == made["secret"].split("_")[1]


def test_lost_secret_is_told_with_the_command_that_helps(
    shell: Workspace, sqlite_site: Site, open_wire: OpenWire
) -> None:
    """Where the answer with the secret got lost, nothing is printed as if it were one; the way out can be pasted."""
    wire, address = open_wire(sqlite_site)
    wire.lose = 1
    shell.variables["ROLECALL_ADDRESS"] = address

    message = error_of(shell.run("tokens", "create", "laptop"))

    command = re.search(r"`rolecall (tokens rotate \w{22})`", message)
    assert command
    assert is_live(sqlite_site.address, only_line(shell.run(*command[1].split())))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", ""), "name is empty"),
        (("create", "x" * 65), "more than 64"),
        (("create", "x", "--restrict", "authorization"), "give a resource and an action"),
        (("create", "x", "--restrict", "nil nothing"), "The policy has no rule on"),
        (("create", "x", "--role", "NOBODY"), "no role `NOBODY`: choose one of"),
        (("create", "x", "--role", "OWNER"), "which no organization's token may"),
        (("rotate", "0" * 22), "There is no token"),
        (("rotate", "rcp_pasted_whole"), "between a token's two underscores"),
        (("delete", "0" * 22), "There is no token"),
    ],
)
def test_refusal_is_one_line_that_helps(shell: Workspace, arguments: tuple[str, ...], said: str) -> None:
    """What the server refuses is told in its words; nothing is on standard output, and the exit code is 2."""
    message = error_of(shell.run("tokens", *arguments))

    assert said in message
    assert "pasted_whole" not in message


@pytest.mark.parametrize(
    ("arguments", "said"),
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
        (("issue", "--organization", "acme"), "--email"),
        (("revok",), "revok"),
    ],
)
def test_mistyped_command_says_what_there_is(shell: Workspace, arguments: tuple[str, ...], said: str) -> None:
    """Missing, unknown and malformed arguments are named, with exit code 2."""
    assert said in usage_of(shell.run("tokens", *arguments))


def test_viewer_learns_what_is_missing(shell: Workspace, sqlite_site: Site) -> None:
    """Who may make no tokens is told which permission that needs."""
    shell.variables["ROLECALL_TOKEN"] = sqlite_site.tokens["VIEWER"]

    message = error_of(shell.run("tokens", "create", "laptop"))

    assert "personal-tokens" in message
    assert "create" in message


def test_without_a_token_each_command_says_how_to_set_it(shell: Workspace) -> None:
    """Without ROLECALL_TOKEN nothing is asked."""
    del shell.variables["ROLECALL_TOKEN"]

    for command in (("tokens", "list"), ("whoami",)):
        assert "set ROLECALL_TOKEN" in error_of(shell.run(*command))


# list, rotate, delete


def test_listed_tokens_show_no_secret(shell: Workspace, sqlite_site: Site, owner: Client) -> None:
    """A table for people, the same as JSON for programs; of each secret no more than its last four characters."""
    made = owner.tokens.create_organization("billing", "VIEWER", restriction=[("members", "view")])
    owner.tokens.delete(owner.tokens.create_personal("gone").token.id)

    table = shell.run("tokens", "list")
    listed = json.loads(only_line(shell.run("tokens", "list", "--state", "all", "--json")))

    header, first, *others = cells(table)
    assert table.stderr == ""
    assert header == [
        "id", "token", "name", "role", "restricted to", "holder", "created", "by", "expires", "last used", "state",
    ]  # fmt: skip
    assert first[:6] == [
        made.token.id, f"rco_…{made.secret[-4:]}", "billing", "VIEWER", "members view", "(organization)",
    ]  # fmt: skip
    assert first[7] == sqlite_site.members["OWNER"].user_id
    assert first[9:] == ["never", "live"]
    assert len(others) == 6
    assert [(token["name"], token["state"]) for token in listed[:2]] == [("gone", "deleted"), ("billing", "live")]
    assert len(listed) == 8
    assert {"id", "kind", "user_id", "created_by", "prefix", "last_four", "create_time", "expire_time", "etag"} <= set(
        listed[0]
    )
    shown = table.stdout + json.dumps(listed)
    for text in (made.secret, *sqlite_site.tokens.values()):
        assert text.rpartition("_")[2] not in shown


def test_list_is_filtered_by_its_options(shell: Workspace, sqlite_site: Site, owner: Client) -> None:
    """Kind, person and state narrow the list; an empty one is still valid JSON."""
    owner.tokens.create_organization("billing", "VIEWER")
    viewer = sqlite_site.members["VIEWER"].user_id

    of_viewer = json.loads(only_line(shell.run("tokens", "list", "--kind", "personal", "--user", viewer, "--json")))
    expired = json.loads(only_line(shell.run("tokens", "list", "--state", "expired", "--json")))

    assert {token["user_id"] for token in of_viewer} == {viewer}
    assert expired == []


def test_rotated_token_has_a_new_secret(shell: Workspace, sqlite_site: Site, owner: Client) -> None:
    """The new secret is alone on standard output; the old one works for the overlap, or not at all."""
    made = owner.tokens.create_personal("laptop")

    second = only_line(shell.run("tokens", "rotate", made.token.id, "--overlap", "0.5"))
    while_overlapping = is_live(sqlite_site.address, made.secret)
    third = json.loads(only_line(shell.run("tokens", "rotate", made.token.id, "--json")))

    assert while_overlapping
    assert third["token"]["id"] == made.token.id
    live = [is_live(sqlite_site.address, text) for text in (made.secret, second, third["secret"])]
    assert live == [False, False, True]


def test_deleted_token_opens_nothing(shell: Workspace, owner: Client) -> None:
    """Deleting says so on standard error; whoever uses the token then learns how to get another."""
    made = owner.tokens.create_personal("laptop")

    deleted = shell.run("tokens", "delete", made.token.id)
    shell.variables["ROLECALL_TOKEN"] = made.secret
    message = error_of(shell.run("whoami"))

    assert (deleted.returncode, deleted.stdout) == (0, "")
    assert deleted.stderr == f"The token {made.token.id} is dead.\n"
    assert "No valid credential was presented" in message
    assert "`rolecall tokens issue`" in message


# issue, revoke


def test_operator_issues_and_revokes(shell: Workspace, sqlite_site: Site) -> None:
    """At the database, without a token of one's own: the new secret alone on standard output, and its end on stderr."""
    del shell.variables["ROLECALL_TOKEN"]

    issued = shell.run("tokens", "issue", "--organization", "acme", "--email", "VIEWER@acme.io")
    secret = only_line(issued)
    before = is_live(sqlite_site.address, secret)
    revoked = shell.run("tokens", "revoke", "--organization", "acme", "--id", secret.split("_")[1])

    assert secret not in issued.stderr
    assert f"The token {secret.split('_')[1]} of VIEWER@acme.io, shown this once" in issued.stderr
    assert before
    assert (revoked.returncode, revoked.stdout) == (0, "")
    # Another process's change is seen within a second.
    wait_until(lambda: not is_live(sqlite_site.address, secret))


def test_operator_with_another_key_changes_nothing(shell: Workspace, owner: Client, tmp_path: Path) -> None:
    """With a key that didn't sign the log the command refuses, names both keys, and says what to do."""
    keys.create(tmp_path / "other.key")
    before = owner.organization.get().revision

    message = error_of(
        shell.run("tokens", "issue", "--organization", "acme", "--email", "ann@acme.io", "--key-file", "other.key")
    )

    assert "signed with the key" in message
    assert "restore the key file, or set ROLECALL_KEY_FILE" in message
    assert owner.organization.get().revision == before


# whoami


def test_whoami_tells_a_person_what_they_may(shell: Workspace, sqlite_site: Site) -> None:
    """Person, role, organization, credential and permissions; what should be looked after is on standard error."""
    finished = shell.run("whoami")

    said = finished.stdout.splitlines()
    user_id = sqlite_site.members["OWNER"].user_id
    assert finished.returncode == 0
    assert said[0] == f"ann@acme.io (user {user_id}), OWNER of acme (acme)"
    assert re.fullmatch(rf"personal token {sqlite_site.tokens['OWNER'].split('_')[1]}, works until .*Z", said[1])
    assert cells(finished)[0] == ["resource", "action", "effect"]
    assert ["secrets", "view", "allow"] in cells(finished)
    assert re.match(r"warning: .*single owner", finished.stderr)


def test_whoami_tells_a_program_in_json(shell: Workspace, owner: Client) -> None:
    """An organization's token is its own holder; its restriction bounds the permissions."""
    made = owner.tokens.create_organization("billing", "VIEWER", restriction=[("members", "view")])
    shell.variables["ROLECALL_TOKEN"] = made.secret

    table = shell.run("whoami")
    found = json.loads(only_line(shell.run("whoami", "--json")))

    assert table.stdout.startswith("billing, VIEWER of acme (acme)\norganization token ")
    assert (found["member"], found["token"]["name"], found["role"]) == (None, "billing", "VIEWER")
    assert found["permissions"] == [{"resource": "members", "action": "view", "effect": "allow"}]
    assert found["credential"]["id"] == made.token.id
    assert credentials.parse(made.secret) is not None
    assert made.secret.rpartition("_")[2] not in json.dumps(found)


def test_a_checkpoint_is_not_printed_with_the_secret(shell: Workspace, sqlite_site: Site) -> None:
    """The hundredth entry makes a line of the log, on standard error; the secret stays alone on standard output."""
    log = AuditLog(keys.read(sqlite_site.settings.key_file))

    def fill(tx: Transaction) -> None:
        while log.locked_head(tx, "acme").sequence < 99:
            log.record(tx, Event("acme", "operator", "Note"))

    sqlite_site.storage.write(fill)
    issued = shell.run("tokens", "issue", "--organization", "acme", "--email", "viewer@acme.io")

    assert is_live(sqlite_site.address, only_line(issued))
    assert "audit checkpoint" in issued.stderr
