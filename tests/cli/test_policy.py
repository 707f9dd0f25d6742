"""`rolecall policy` as its users run it: a process of its own, its output and its exit code."""

import csv
import io
import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from rolecall.policy import shipped
from support.commands import (
    Workspace,
    cells,
    error_of,
)
from support.environment import PERMISSIONS_FILE, ROOT
from support.roles import ROLES
from support.sites import Site
from support.waiting import wait_until


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a policy folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("variant", ["", *shipped.VARIANTS])
def test_new_writes_the_shipped_policy_or_a_variant(tmp_path: Path, variant: str) -> None:
    """In an empty folder it writes the files of the repository, which a server would serve."""
    workspace = Workspace(tmp_path)
    source = ROOT / "policies" / "variants" / variant if variant else ROOT / "policies"

    finished = workspace.run("policy", "new", *(["--variant", variant] if variant else []))

    assert (finished.returncode, finished.stdout) == (0, "")
    assert contents(tmp_path / "policies") == contents(source)
    assert workspace.run("policy", "lint").returncode == 0


def test_every_variant_of_the_repository_can_be_written() -> None:
    """The names that the command takes are the folders of the variants."""
    assert set(shipped.VARIANTS) == {path.name for path in (ROOT / "policies" / "variants").iterdir()}


def test_new_takes_a_folder_and_creates_it(tmp_path: Path) -> None:
    """The folder may be given, with folders above it that don't exist; ROLECALL_POLICY is the default."""
    given = Workspace(tmp_path).run("policy", "new", "deep/er")
    named = Workspace(tmp_path, {"ROLECALL_POLICY": "named"}).run("policy", "new")

    assert (given.returncode, named.returncode) == (0, 0)
    assert contents(tmp_path / "deep" / "er") == contents(tmp_path / "named") == contents(ROOT / "policies")


@pytest.mark.parametrize("name", ["model.conf", "policy.csv", "policy_test.csv"])
def test_new_replaces_no_file(tmp_path: Path, name: str) -> None:
    """A folder with any file of a policy, be it a link to nowhere, stays as it is."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / name).symlink_to("gone")

    message = error_of(Workspace(tmp_path).run("policy", "new"))

    assert message == "policies holds a policy already: name another folder, or move its files away."
    assert [path.name for path in (tmp_path / "policies").iterdir()] == [name]


def test_new_names_the_variants(tmp_path: Path) -> None:
    """A mistyped variant is an error that lists all, and nothing is written."""
    message = error_of(Workspace(tmp_path).run("policy", "new", "--variant", "owner-manged"))

    assert message == f"There is no variant `owner-manged`: choose one of {', '.join(shipped.VARIANTS)}."
    assert list(tmp_path.iterdir()) == []


def test_new_says_where_it_can_not_write(tmp_path: Path) -> None:
    """A path that can't be a folder is an error of one line."""
    (tmp_path / "taken").touch()

    message = error_of(Workspace(tmp_path).run("policy", "new", "taken/policies"))

    assert message == "The policy can't be written to taken/policies: Not a directory."


def test_missing_folder_names_the_command_that_makes_one(tmp_path: Path) -> None:
    """The finding of a folder that doesn't exist says how to make one."""
    finished = Workspace(tmp_path).run("policy", "lint")

    assert finished.returncode == 1
    assert "`rolecall policy new`" in finished.stdout


def test_lint_of_a_clean_policy_prints_what_it_checked(empty: Workspace) -> None:
    """The shipped policy has no finding."""
    finished = empty.run("policy", "lint")

    assert (finished.returncode, finished.stdout) == (0, "")
    assert re.search(r"policies: 5 roles, 47 rules, \d+ tests, no error\. [1-9]\d* decisions compared", finished.stderr)


def test_lint_says_where_the_errors_are(empty: Workspace) -> None:
    """Every finding has file:line:column and a fix on its own line; the folder may be given."""
    lines = len((empty.folder / "policies" / "policy.csv").read_text().splitlines())
    empty.append("policy.csv", "p, VIEWER, secrets, view, alow\nq, VIEWER, secrets\n")
    folder = empty.folder / "policies"

    finished = empty.run("policy", "lint", str(folder))

    findings = finished.stdout.splitlines()
    assert finished.returncode == 1
    assert len(findings) == 2
    assert findings[0].startswith(f"{folder}/policy.csv:{lines + 1}:27: error: The effect `alow` is unknown")
    assert findings[1].startswith(f"{folder}/policy.csv:{lines + 2}:1: error: The row type `q` is unknown")
    assert all(" Fix: " in finding for finding in findings)


@pytest.mark.parametrize("command", ["lint", "test"])
@pytest.mark.parametrize("folder", ["policies", "nowhere"])
def test_missing_folder_is_named_once(empty: Workspace, command: str, folder: str) -> None:
    """A folder that is missing is named as it was given, the default one too, and not as a folder in itself."""
    (empty.folder / "policies").rename(empty.folder / "elsewhere")

    finished = empty.run("policy", command, *([] if folder == "policies" else [folder]))

    assert finished.returncode == 1
    assert finished.stdout.startswith(f"{folder}: error: The policy folder doesn't exist, or is not a folder. Fix: ")
    assert finished.stdout.count("\n") == 1


def test_policy_test_names_the_expectation_that_fails(empty: Workspace) -> None:
    """A policy that answers otherwise exits with 1, with the row of policy_test.csv and the rule."""
    lines = len((empty.folder / "policies" / "policy_test.csv").read_text().splitlines())
    empty.append("policy_test.csv", "VIEWER,secrets,view,deny,\n")

    finished = empty.run("policy", "test")

    assert finished.returncode == 1
    assert finished.stdout.startswith(f"policies/policy_test.csv:{lines + 1}:1: error: `VIEWER` `secrets view`")
    assert f"Tests: {lines}, failed: 1," in finished.stderr


def test_matrix_as_csv_is_the_permission_matrix(empty: Workspace) -> None:
    """The CSV of the shipped policy equals the permission matrix, cell by cell."""
    with PERMISSIONS_FILE.open(newline="", encoding="utf-8") as file:
        expected = {(row["resource"], row["action"]): [row[role] for role in ROLES] for row in csv.DictReader(file)}

    finished = empty.run("policy", "matrix", "--format", "csv")

    rows = list(csv.DictReader(io.StringIO(finished.stdout)))
    assert finished.returncode == 0
    assert finished.stdout.splitlines()[0] == ",".join(["resource", "action", *ROLES])
    assert len(rows) == len(expected)
    assert {(row["resource"], row["action"]): [row[role] for role in ROLES] for row in rows} == expected


def test_matrix_as_test_is_a_policy_test(empty: Workspace) -> None:
    """The output of `--format test` is a valid policy_test.csv, and holds every cell."""
    finished = empty.run("policy", "matrix", "--format", "test")
    (empty.folder / "policies" / "policy_test.csv").write_text(finished.stdout)
    tested = empty.run("policy", "test")

    assert finished.returncode == 0
    assert finished.stdout.startswith("role,resource,action,expected,note\n")
    assert tested.returncode == 0, tested.stdout
    assert tested.stderr == f"Tests: {47 * len(ROLES)}, all pass.\n"


def test_matrix_as_table_shows_who_may(empty: Workspace) -> None:
    """The table has one row for each permission, with a tick for each role that may."""
    finished = empty.run("policy", "matrix")

    rows = cells(finished)
    assert finished.returncode == 0
    assert len(rows) == 48
    assert ["secrets", "view", "✓", "✓", "✓", "✓", "·"] in rows


def test_policy_explain_answers_without_a_server(empty: Workspace) -> None:
    """The exit code is the decision; the output names the rule that decided, or what is missing."""
    allowed = empty.run("policy", "explain", "ADMIN", "view", "secrets/billing")
    denied = empty.run("policy", "explain", "VIEWERNOSECRETS", "view", "secrets", "--policy", str(ROOT / "policies"))

    assert allowed.returncode == 0
    assert re.search(r"^ALLOW: .*\n.*ADMIN -> CONTRIBUTOR -> VIEWER: policy\.csv:\d+ allows it", allowed.stdout)
    assert denied.returncode == 1
    assert re.search(r"^DENY: .*\n.*Roles that may: OWNER, ADMIN, CONTRIBUTOR, VIEWER\.", denied.stdout)


def test_policy_explain_of_a_broken_policy_is_an_error(empty: Workspace) -> None:
    """Nothing is said about a policy that can't be read."""
    empty.append("policy.csv", "p, VIEWER, secrets, view, alow\n")

    message = error_of(empty.run("policy", "explain", "VIEWER", "view", "secrets"))

    assert re.search(r"policy\.csv:\d+:27: error", message)


def test_show_names_the_policy_in_force(server_workspace: Workspace, sqlite_site: Site) -> None:
    """The version, since when, by whom, which process serves it, and why the folder isn't in force."""
    in_force = sqlite_site.server.live.in_force
    with (sqlite_site.policy_folder / "policy.csv").open("a") as file:
        file.write("p, VIEWER, secrets, view, alow\n")
    wait_until(lambda: sqlite_site.server.live.in_force.refusal is not None)

    shown = server_workspace.run("policy", "show")
    as_json = json.loads(server_workspace.run("policy", "show", "--json").stdout)

    lines = shown.stdout.splitlines()
    assert shown.returncode == 0, shown.stderr
    assert lines[0].startswith(f"in force: {in_force.policy.version}, since 20")
    assert lines[0].endswith(f"activated by {in_force.activation.activator}")
    assert lines[1].startswith(f"served by {socket.gethostname()}/{os.getpid()}: {in_force.policy.version} (5 roles")
    assert lines[2].startswith("refused: ")
    assert "policy.csv:" in lines[3]
    assert "Fix: Write `allow` or `deny`" in lines[3]
    assert as_json["policy"]["policy_version"] == in_force.policy.version


def test_lint_asks_the_running_server(server_workspace: Workspace, sqlite_site: Site) -> None:
    """A folder without errors of its own is refused where the server's members hold a role that it drops."""
    folder = server_workspace.folder / "edited"
    shutil.copytree(sqlite_site.policy_folder, folder)
    accepted = server_workspace.run("policy", "lint", str(folder), "--live")
    for name in ("policy.csv", "policy_test.csv"):
        (folder / name).write_text((folder / name).read_text().replace("CONTRIBUTOR", "EDITOR"))

    alone = server_workspace.run("policy", "lint", str(folder))
    refused = server_workspace.run("policy", "lint", str(folder), "--live")

    as_json = json.loads(server_workspace.run("policy", "lint", str(folder), "--live", "--json").stdout)

    version = sqlite_site.server.live.in_force.policy.version
    assert accepted.returncode == 0, accepted.stderr
    assert (as_json["served"], len(as_json["findings"])) == (False, 1)
    assert f"The server would accept it, as {version}." in accepted.stderr
    assert alone.returncode == 0
    assert refused.returncode == 1
    assert refused.stdout.startswith(f"{folder}/policy.csv: error: Members or tokens have the role `CONTRIBUTOR`")
    assert "Errors: 1. The server would refuse this policy now." in refused.stderr
