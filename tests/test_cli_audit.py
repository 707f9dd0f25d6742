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
from conftest import Site, sqlite_file
from test_cli import PROGRAM, Workspace, error_of, only_line
from test_cli_tokens import cells, usage_of

from rolecall import keys
from rolecall.audit import AuditLog, Event
from rolecall.client import Client
from rolecall.storage import Transaction


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


def fill(site: Site, count: int) -> None:
    """Write so many entries into the log."""
    log = AuditLog(keys.read(site.settings.key_file))
    entry = Event("acme", "operator", "Test", details={"text": "x" * 200})

    def work(tx: Transaction) -> None:
        for _ in range(count):
            log.record(tx, entry)

    site.storage.mutate("acme", work)


# list


def test_entries_are_listed_the_newest_first(shell: Workspace, sqlite_site: Site, owner: Client) -> None:
    """A table for people and JSON for programs, filtered and bounded alike."""
    made = owner.tokens.create_personal("laptop")
    owner.tokens.delete(made.token.id)
    user_id = sqlite_site.members["OWNER"].user_id

    table = shell.run("audit", "list", "--limit", "2")
    listed = json.loads(
        only_line(
            shell.run(
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
                "done",
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
    assert first[2:6] == [f"user:{user_id}", "DeleteToken", f"token:{made.token.id}", "done"]
    assert "name: laptop" in first[6]
    assert second[3] == "CreatePersonalToken"
    assert int(first[0]) == int(second[0]) + 1
    (entry,) = listed
    assert str(entry["sequence"]) == second[0]
    assert (entry["outcome"], entry["reason"]) == ("done", "")
    assert entry["details"]["after"]["name"] == "laptop"
    assert entry["credential_id"] == sqlite_site.tokens["OWNER"].split("_")[1]
    assert made.secret.rpartition("_")[2] not in table.stdout + json.dumps(listed)


def test_nothing_found_is_an_empty_list(shell: Workspace) -> None:
    """No entry is an answer, not an error."""
    assert json.loads(only_line(shell.run("audit", "list", "--since", "2199-01-31T12:00:00Z", "--json"))) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--since", "yesterday"), "2027-01-31"),
        (("list", "--limit", "0"), "--limit"),
        (("list", "--outcome", "failed"), "denied"),
        (("export", "--format", "xml"), "jsonl"),
        (("verify", "--first", "-1"), "--first"),
        (("prune", "--organization", "acme", "--before", "soon"), "2027-01-31"),
        (("prune", "--organization", "acme"), "--before"),
        (("erase", "--organization", "acme"), "--person"),
    ],
)
def test_mistyped_option_says_what_to_write(shell: Workspace, arguments: tuple[str, ...], said: str) -> None:
    """Missing and malformed options are named with how they are written, with exit code 2."""
    assert said in usage_of(shell.run("audit", *arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--actor", "x" * 129), "more than 128 characters"),
        (("verify", "--known", "abc"), "no NUMBER:HASH"),
        (("verify", "--known", "3:abc"), "64 hexadecimal digits"),
        (("verify", "--first", "3", "--last", "2"), "turn them round"),
        (("erase", "--organization", "acme", "--person", "nobody@acme.io"), "no name or address of such a person"),
        (("erase", "--organization", "beta", "--person", "ann@acme.io"), "There is no organization `beta`"),
        (("prune", "--organization", "beta", "--before", "2026-01-31"), "There is no organization `beta`"),
    ],
)
def test_refusal_is_one_line_that_helps(shell: Workspace, arguments: tuple[str, ...], said: str) -> None:
    """What can't be done is told in a sentence; nothing is on standard output, and the exit code is 2."""
    assert said in error_of(shell.run("audit", *arguments))


def test_viewer_learns_what_is_missing(shell: Workspace, sqlite_site: Site) -> None:
    """Who may not see the log is told which permission that needs, for a stream too, and gets no piece of it."""
    shell.variables["ROLECALL_TOKEN"] = sqlite_site.tokens["VIEWER"]

    assert "audit-logs" in error_of(shell.run("audit", "list"))
    assert "download" in error_of(shell.run("audit", "export"))


# export


def test_export_is_a_file_in_both_forms(shell: Workspace, sqlite_site: Site, owner: Client) -> None:
    """Standard output holds the file and nothing else, the oldest entry first."""
    fill(sqlite_site, 600)
    hashes = [entry.hash for entry in owner.audit.list()][::-1]

    as_lines = shell.run("audit", "export")
    as_csv = shell.run("audit", "export", "--format", "csv", "--action", "Test")

    assert (as_lines.returncode, as_lines.stderr) == (as_csv.returncode, as_csv.stderr) == (0, "")
    assert [json.loads(line)["hash"] for line in as_lines.stdout.splitlines()] == hashes
    rows = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    assert [row["hash"] for row in rows] == hashes[-600:]
    assert {row["outcome"] for row in rows} == {"done"}


@pytest.mark.parametrize("command", ["audit export | head -1", "audit list --limit 1000 | head -1"])
def test_pipe_that_ends_early_leaves_no_traceback(shell: Workspace, sqlite_site: Site, command: str) -> None:
    """`head` takes the first line and goes; the rest isn't written, and nothing is said about it."""
    fill(sqlite_site, 600)

    finished = subprocess.run(
        f"{shlex.quote(str(PROGRAM))} {command}",
        shell=True,
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert finished.returncode == 0
    assert finished.stdout.count("\n") == 1
    assert finished.stderr == ""


# verify


def test_whole_log_is_exit_code_zero(shell: Workspace, owner: Client) -> None:
    """The answer ends with what to write down, and that is what `--known` takes."""
    first = only_line(shell.run("audit", "verify"))
    owner.tokens.create_personal("laptop")

    mark = first.rpartition(" ")[2]
    again = json.loads(only_line(shell.run("audit", "verify", "--known", mark, "--json")))

    assert first.startswith("WHOLE: ")
    assert (again["verdict"], again["first_bad_sequence"], again["problem"]) == ("whole", 0, "")
    assert again["head"]["sequence"] == int(mark.partition(":")[0]) + 1


def test_tampered_log_is_exit_code_one(shell: Workspace, sqlite_site: Site) -> None:
    """The first bad entry is named, for people and programs."""
    with closing(sqlite_file(sqlite_site.settings.database)) as connection:
        connection.execute("UPDATE audit_entries SET actor = 'user:somebody' WHERE sequence = 3")

    said = shell.run("audit", "verify")
    told = shell.run("audit", "verify", "--json")

    assert (said.returncode, told.returncode) == (1, 1)
    assert said.stdout == "TAMPERED: first bad entry 3. Entry 3 was changed.\n"
    verdict = json.loads(told.stdout)
    assert (verdict["verdict"], verdict["first_bad_sequence"]) == ("tampered", 3)


# erase, prune


def test_erased_person_is_gone_and_the_log_is_whole(shell: Workspace, sqlite_site: Site, owner: Client) -> None:
    """The address and the names of tokens go from the log; its entries stay, and it still verifies."""
    viewer = sqlite_site.members["VIEWER"]

    erased = shell.run("audit", "erase", "--organization", "acme", "--person", "VIEWER@acme.io")
    verified = shell.run("audit", "verify")
    exported = shell.run("audit", "export").stdout

    assert (erased.returncode, erased.stdout) == (0, "")
    assert erased.stderr.endswith(" values of VIEWER@acme.io are erased.\n")
    assert verified.returncode == 0
    assert "viewer@acme.io" not in exported.lower()
    assert "ann@acme.io" in exported
    assert "[erased]" in exported
    assert json.loads(exported.splitlines()[-1])["details"]["users"] == [viewer.user_id]


def test_pruned_log_is_whole(shell: Workspace, owner: Client) -> None:
    """Nothing from before goes where nothing is that old; what is pruned is said, and the rest verifies."""
    head = owner.audit.verify().head.sequence

    none = shell.run("audit", "prune", "--organization", "acme", "--before", "2020-01-31T12:00:00Z")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    too_much = error_of(shell.run("audit", "prune", "--organization", "acme", "--before", tomorrow))
    pruned = shell.run("audit", "prune", "--organization", "acme", "--before", datetime.now(UTC).isoformat())
    verified = shell.run("audit", "verify")

    assert none.stderr == "0 entries are gone; the log begins behind 0.\n"
    assert "still to come" in too_much
    assert (pruned.returncode, pruned.stdout) == (0, "")
    assert pruned.stderr == f"{head + 1} entries are gone; the log begins behind {head + 1}.\n"
    assert verified.stdout.startswith("WHOLE: 1 entries.")
    assert [entry.action for entry in owner.audit.list()] == ["PruneAuditLog"]


def test_operator_with_another_key_changes_no_log(shell: Workspace, owner: Client, tmp_path: Path) -> None:
    """Erasing and pruning leave signed entries: with another key neither is done."""
    keys.create(tmp_path / "other.key")
    before = owner.audit.verify().head

    for arguments in (("erase", "--person", "ann@acme.io"), ("prune", "--before", "2199-01-31")):
        message = error_of(shell.run("audit", *arguments, "--organization", "acme", "--key-file", "other.key"))
        assert "signed with the key" in message

    assert owner.audit.verify().head == before
