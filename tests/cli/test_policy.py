"""`rolecall policy` as its users run it: a process of its own, its output and its exit code."""

import csv
import io
import json
import os
import re
import shutil
import socket

from support.commands import (
    Workspace,
    cells,
    error_of,
)
from support.environment import PERMISSIONS_FILE, ROOT
from support.roles import ROLES
from support.sites import Site
from support.waiting import wait_until


def test_lint_of_a_clean_policy_prints_what_it_checked(empty: Workspace) -> None:
    """The shipped policy has no finding."""
    finished = empty.run("policy", "lint")

    assert (finished.returncode, finished.stdout) == (0, "")
    assert re.search(r"policies: 5 roles, 40 rules, \d+ tests, no error\. [1-9]\d* decisions compared", finished.stderr)


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
    assert tested.stderr == f"Tests: {40 * len(ROLES)}, all pass.\n"


def test_matrix_as_table_shows_who_may(empty: Workspace) -> None:
    """The table has one row for each permission, with a tick for each role that may."""
    finished = empty.run("policy", "matrix")

    rows = cells(finished)
    assert finished.returncode == 0
    assert len(rows) == 41
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
