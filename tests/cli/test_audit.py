"""`rolecall audit` as its users run it: a process of its own, its output and its exit code."""

import csv
import io
import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rolecall.audit import AuditLog, Event
from rolecall.client import Client
from rolecall.credentials import server_key
from rolecall.storage import Transaction
from support.commands import PROGRAM, Workspace, cells, error_of, only_line, usage_of
from support.sites import Site, sqlite_file


@pytest.fixture
def server_workspace(sqlite_site: Site, tmp_path: Path) -> Workspace:
    """A workspace whose commands call a running server as its owner, and use its database as its operator."""
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
    """A client of the same server, as the owner."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        yield client


def fill(site: Site, count: int) -> None:
    """Write this number of entries into the log."""
    log = AuditLog(server_key.read(site.settings.key_file))
    entry = Event("acme", "operator", "Test", details={"text": "x" * 200})

    def work(tx: Transaction) -> None:
        for _ in range(count):
            log.record(tx, entry)

    site.storage.mutate("acme", work)


# list


def test_entries_are_listed_the_newest_first(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """The table and the JSON have the same entries, filtered and limited."""
    made = owner.tokens.create_personal("laptop")
    owner.tokens.delete(made.token.id)
    user_id = sqlite_site.members["OWNER"].user_id

    table = server_workspace.run("audit", "list", "--limit", "2")
    listed = json.loads(
        only_line(
            server_workspace.run(
                "audit",
                "list",
                "--json",
                "--actor",
                f"user:{user_id}",
                "--action",
                "CreatePersonalToken",
                "--object",
                f"token:{made.token.id}",
                "--outcome",
                "succeeded",
                "--since",
                "2020-01-01",
                "--until",
                (datetime.now(UTC) + timedelta(days=1)).date().isoformat(),
            )
        )
    )

    header, first, second = cells(table)
    assert table.stderr == ""
    assert header == ["#", "time", "actor", "action", "object", "outcome", "details"]
    assert first[2:6] == [f"user:{user_id} ann@acme.io", "DeleteToken", f"token:{made.token.id}", "succeeded"]
    assert "name: laptop" in first[6]
    assert second[3] == "CreatePersonalToken"
    assert int(first[0]) == int(second[0]) + 1
    (entry,) = listed
    assert str(entry["sequence"]) == second[0]
    assert (entry["outcome"], entry["reason"]) == ("succeeded", "")
    assert entry["details"]["after"]["display_name"] == "laptop"
    assert entry["credential_id"] == sqlite_site.tokens["OWNER"].split("_")[1]
    assert made.secret.rpartition("_")[2] not in table.stdout + json.dumps(listed)


def test_lines_of_a_piped_list_are_short(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """A pipe gets a line of tabs for each entry, not padded and of bounded length; `--json` has the whole details."""
    people = [(f"person{number}@x.io", "VIEWER") for number in range(200)]
    owner.invitations.create(people)
    owner.tokens.create_personal("laptop")
    fill(sqlite_site, 5)

    table = server_workspace.run("audit", "list")
    listed = json.loads(only_line(server_workspace.run("audit", "list", "--json", "--action", "CreateInvitations")))

    lines = table.stdout.splitlines()
    assert len(lines) > 7
    assert max(map(len, lines)) < 400
    assert not set(table.stdout) & set("│┃━─┌┐└┘")
    assert "  " not in table.stdout
    assert all(line.count("\t") == 6 for line in lines)
    assert [line.split("\t")[6][-1] for line in lines if "CreateInvitations" in line] == ["…"]
    assert [item["email"] for item in listed[0]["details"]["after"]] == [address for address, _ in people]
    assert listed[0]["actor_email"] == "ann@acme.io"


def test_entries_are_found_by_address_and_age(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """An address names its person in a filter, and in the table beside each id; times are dates, or ages."""
    viewer = sqlite_site.members["VIEWER"]
    owner.members.change_role(viewer.user_id, "ADMIN")

    by = cells(
        server_workspace.run("audit", "list", "--actor", "Ann@acme.io", "--since", "7d", "--until", "2199-01-31")
    )
    about = cells(server_workspace.run("audit", "list", "--object", "viewer@acme.io", "--since", "1h"))
    before = server_workspace.run("audit", "list", "--until", "1d")
    unknown = server_workspace.run("audit", "list", "--actor", "nobody@acme.io")

    assert {row[2] for row in by[1:]} == {f"user:{sqlite_site.members['OWNER'].user_id} ann@acme.io"}
    assert [row[3:5] for row in about[1:]][:1] == [["ChangeMemberRole", f"user:{viewer.user_id} viewer@acme.io"]]
    assert cells(before)[1:] == []
    assert "no member's" in error_of(unknown)


def test_empty_result_is_an_empty_list(server_workspace: Workspace) -> None:
    """A list without entries is no error."""
    assert (
        json.loads(only_line(server_workspace.run("audit", "list", "--since", "2199-01-31T12:00:00Z", "--json"))) == []
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("audit", "list", "--since", "yesterday"), "2027-01-31"),
        (("audit", "list", "--since", "7 days"), "7d"),
        (("audit", "list", "--since", "999999999w"), "7d"),
        (("audit", "list", "--limit", "0"), "--limit"),
        (("audit", "list", "--outcome", "failed"), "denied"),
        (("audit", "export", "--format", "xml"), "jsonl"),
        (("audit", "verify", "--first", "-1"), "--first"),
        (("operator", "audit", "prune", "--organization", "acme", "--before", "soon"), "2027-01-31"),
        (("operator", "audit", "prune", "--organization", "acme"), "--before"),
        (("operator", "audit", "erase", "--organization", "acme"), "--person"),
    ],
)
def test_mistyped_option_says_what_to_write(
    server_workspace: Workspace, arguments: tuple[str, ...], expected: str
) -> None:
    """Missing and malformed options are named with how they are written, with exit code 2."""
    assert expected in usage_of(server_workspace.run(*arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("audit", "list", "--actor", "x" * 129), "more than 128 characters"),
        (("audit", "verify", "--known", "abc"), "is not NUMBER:HASH"),
        (("audit", "verify", "--known", "3:abc"), "64 hexadecimal digits"),
        (("audit", "verify", "--first", "3", "--last", "2"), "swap them"),
        (
            ("operator", "audit", "erase", "--organization", "acme", "--person", "nobody@acme.io"),
            "no name or address of this person",
        ),
        (
            ("operator", "audit", "erase", "--organization", "beta", "--person", "ann@acme.io"),
            "There is no organization `beta`",
        ),
        (
            ("operator", "audit", "prune", "--organization", "beta", "--before", "2026-01-31"),
            "There is no organization `beta`",
        ),
    ],
)
def test_refusal_is_one_line_that_helps(server_workspace: Workspace, arguments: tuple[str, ...], expected: str) -> None:
    """A refusal is one sentence on standard error; nothing is on standard output, and the exit code is 2."""
    assert expected in error_of(server_workspace.run(*arguments))


def test_missing_permission_is_named(server_workspace: Workspace, sqlite_site: Site) -> None:
    """A viewer gets the permission that is missing, for a stream too, and no piece of the log."""
    server_workspace.variables["ROLECALL_TOKEN"] = sqlite_site.tokens["VIEWER"]

    assert "audit-logs" in error_of(server_workspace.run("audit", "list"))
    assert "download" in error_of(server_workspace.run("audit", "export"))


# export


def test_export_is_a_file_in_both_forms(server_workspace: Workspace, sqlite_site: Site, owner: Client) -> None:
    """Standard output holds the file and nothing else, the oldest entry first."""
    fill(sqlite_site, 600)
    hashes = [entry.hash for entry in owner.audit.list()][::-1]

    as_lines = server_workspace.run("audit", "export")
    as_csv = server_workspace.run("audit", "export", "--format", "csv", "--action", "Test")

    assert (as_lines.returncode, as_lines.stderr) == (as_csv.returncode, as_csv.stderr) == (0, "")
    assert [json.loads(line)["hash"] for line in as_lines.stdout.splitlines()] == hashes
    rows = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    assert [row["hash"] for row in rows] == hashes[-600:]
    assert {row["outcome"] for row in rows} == {"succeeded"}


@pytest.mark.parametrize("command", ["audit export | head -1", "audit list --limit 1000 | head -1"])
def test_pipe_that_ends_early_leaves_no_traceback(server_workspace: Workspace, sqlite_site: Site, command: str) -> None:
    """After `head` has read the first line and ended, the export ends without an error message."""
    fill(sqlite_site, 600)

    finished = subprocess.run(
        f"{shlex.quote(str(PROGRAM))} {command}",
        shell=True,
        cwd=server_workspace.folder,
        env=server_workspace.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert finished.returncode == 0
    assert finished.stdout.count("\n") == 1
    assert finished.stderr == ""


# verify


def test_intact_log_is_exit_code_zero(server_workspace: Workspace, owner: Client) -> None:
    """The output ends with the sequence number and hash to note, in the form that `--known` takes."""
    first = only_line(server_workspace.run("audit", "verify"))
    owner.tokens.create_personal("laptop")

    mark = first.rpartition(" ")[2]
    again = json.loads(only_line(server_workspace.run("audit", "verify", "--known", mark, "--json")))

    assert first.startswith("INTACT: ")
    assert (again["verdict"], again["first_bad_sequence"], again["problem"]) == ("intact", 0, "")
    assert again["head"]["sequence"] == int(mark.partition(":")[0]) + 1


def test_tampered_log_is_exit_code_one(server_workspace: Workspace, sqlite_site: Site) -> None:
    """The first bad entry is named, for people and programs."""
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        connection.execute("UPDATE audit_entries SET actor = 'user:somebody' WHERE sequence = 3")

    found = server_workspace.run("audit", "verify")
    in_json = server_workspace.run("audit", "verify", "--json")

    assert (found.returncode, in_json.returncode) == (1, 1)
    assert found.stdout == "TAMPERED: first bad entry 3. Entry 3 was changed.\n"
    verdict = json.loads(in_json.stdout)
    assert (verdict["verdict"], verdict["first_bad_sequence"]) == ("tampered", 3)


# erase, prune


def test_erased_person_is_gone_and_the_log_is_intact(
    server_workspace: Workspace, sqlite_site: Site, owner: Client
) -> None:
    """The address and the names of tokens go from the log; its entries stay, and it still verifies."""
    viewer = sqlite_site.members["VIEWER"]

    erased = server_workspace.run("operator", "audit", "erase", "--organization", "acme", "--person", "VIEWER@acme.io")
    verified = server_workspace.run("audit", "verify")
    exported = server_workspace.run("audit", "export").stdout

    assert (erased.returncode, erased.stdout) == (0, "")
    assert erased.stderr.endswith(" values of VIEWER@acme.io were erased.\n")
    assert verified.returncode == 0
    assert "viewer@acme.io" not in exported.lower()
    assert "ann@acme.io" in exported
    assert "[erased]" in exported
    assert json.loads(exported.splitlines()[-1])["details"]["users"] == [viewer.user_id]


def test_pruned_log_is_intact(server_workspace: Workspace, owner: Client) -> None:
    """Nothing is pruned where no entry is that old; the output says what was pruned, and the rest verifies."""
    head = owner.audit.verify().head.sequence

    none = server_workspace.run(
        "operator", "audit", "prune", "--organization", "acme", "--before", "2020-01-31T12:00:00Z"
    )
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    too_much = error_of(
        server_workspace.run("operator", "audit", "prune", "--organization", "acme", "--before", tomorrow)
    )
    pruned = server_workspace.run(
        "operator", "audit", "prune", "--organization", "acme", "--before", datetime.now(UTC).isoformat()
    )
    verified = server_workspace.run("audit", "verify")

    assert none.stderr == "0 entries were deleted; the log begins after entry 0.\n"
    assert "in the future" in too_much
    assert (pruned.returncode, pruned.stdout) == (0, "")
    assert pruned.stderr == f"{head + 1} entries were deleted; the log begins after entry {head + 1}.\n"
    assert verified.stdout.startswith("INTACT: 1 entries.")
    assert [entry.action for entry in owner.audit.list()] == ["PruneAuditLog"]


def test_operator_with_another_key_changes_no_log(server_workspace: Workspace, owner: Client, tmp_path: Path) -> None:
    """Erasing and pruning write signed entries: with another key, both are refused."""
    server_key.create(tmp_path / "other.key")
    before = owner.audit.verify().head

    for arguments in (("erase", "--person", "ann@acme.io"), ("prune", "--before", "2199-01-31")):
        message = error_of(
            server_workspace.run("operator", "audit", *arguments, "--organization", "acme", "--key-file", "other.key")
        )
        assert "signed with the key" in message

    assert owner.audit.verify().head == before
