"""`rolecall check`, `permissions`, `resources` and `subjects` as their users run them, against a running server."""

import json
import re
import socket

from support.commands import (
    Workspace,
    cells,
    error_of,
    only_line,
)
from support.roles import ROLES
from support.sites import Site


def test_variables_that_a_client_does_not_know_are_ignored(client_workspace: Workspace) -> None:
    """Commands that call a server work beside the variables of a newer server, and of a Kubernetes Service."""
    client_workspace.variables |= {"ROLECALL_NEW_SETTING": "x", "ROLECALL_PORT": "tcp://10.0.0.1:50051"}

    finished = client_workspace.run("check", "ann@acme.io", "view", "secrets")

    assert only_line(finished).startswith("ALLOW: ")


def test_token_is_read_from_a_file(client_workspace: Workspace) -> None:
    """ROLECALL_TOKEN_FILE names a file with the token, as a mounted Secret; the two variables exclude each other."""
    token = client_workspace.variables.pop("ROLECALL_TOKEN")
    (client_workspace.folder / "token").write_text(f"{token}\n")
    client_workspace.variables["ROLECALL_TOKEN_FILE"] = "token"

    from_file = client_workspace.run("whoami")
    client_workspace.variables["ROLECALL_TOKEN"] = token
    both = client_workspace.run("whoami")

    assert from_file.returncode == 0, from_file.stderr
    assert "ann@acme.io" in from_file.stdout
    assert error_of(both) == "ROLECALL_TOKEN and ROLECALL_TOKEN_FILE are both set: unset one of them."


def test_token_file_without_a_token_is_named(client_workspace: Workspace) -> None:
    """A file that is missing, empty or of several lines is named, and nothing of it is shown."""
    token = client_workspace.variables.pop("ROLECALL_TOKEN")
    client_workspace.variables["ROLECALL_TOKEN_FILE"] = "token"
    messages = [error_of(client_workspace.run("whoami"))]
    for content in ("", f"{token}\n{token}\n"):
        (client_workspace.folder / "token").write_text(content)
        messages.append(error_of(client_workspace.run("whoami")))

    assert messages[0] == "ROLECALL_TOKEN_FILE is wrong: the file token can't be read: No such file or directory."
    assert all("the file token doesn't hold a secret alone" in message for message in messages[1:])
    assert not any(token[4:30] in message for message in messages)


def test_check_has_exit_codes_for_allow_deny_and_error(client_workspace: Workspace) -> None:
    """The exit code is the answer: 0 for allow, 1 for deny, 2 for an error."""
    allowed = client_workspace.run("check", "ann@acme.io", "view", "secrets/billing")
    denied = client_workspace.run("check", "viewernosecrets@acme.io", "view", "secrets/billing")
    wrong = client_workspace.run("check", "ann", "view", "secrets/billing")

    assert only_line(allowed) == "ALLOW: an allow rule matches and no deny rule does (role OWNER)."
    assert (denied.returncode, denied.stdout) == (1, "DENY: no rule matches (role VIEWERNOSECRETS).\n")
    assert "subject `ann` has no known form" in error_of(wrong)


def test_name_for_an_address_is_told_from_an_id(client_workspace: Workspace) -> None:
    """Without an `@`, a user is an id: where no member has it, the answer says so, and what to write."""
    plain = client_workspace.run("check", "user:ann", "view", "secrets")
    explained = client_workspace.run("check", "user:ann", "view", "secrets", "--explain")
    mistyped = client_workspace.run("check", "ann@acme.oi", "view", "secrets")

    assert (plain.returncode, explained.returncode, mistyped.returncode) == (1, 1, 1)
    assert "`user:ann` is no address" in plain.stderr
    assert "write an address, as `user:ann@acme.io`" in plain.stderr
    assert "`ann` is neither an address nor a user id, so it is an external id" in explained.stdout
    assert "write an address, as `user:ann@acme.io`" in explained.stdout
    assert (explained.stderr, mistyped.stderr) == ("", "")


def test_check_explains_an_allow(client_workspace: Workspace) -> None:
    """The output names the rule with file and line, and the chain of roles to it."""
    finished = client_workspace.run("check", "ann@acme.io", "view", "secrets/billing", "--explain")

    assert finished.returncode == 0
    assert "through OWNER -> ADMIN -> CONTRIBUTOR -> VIEWER" in finished.stdout
    assert re.search(r"rule: p, VIEWER, secrets, view, allow  \(policy\.csv:\d+\)", finished.stdout)


def test_check_explains_a_deny_in_json(client_workspace: Workspace, sqlite_site: Site) -> None:
    """Programs get one JSON value with the nearest miss and the roles that would pass; the exit code stays."""
    finished = client_workspace.run("check", "viewernosecrets@acme.io", "view", "secrets", "--json", "--explain")

    answer = json.loads(finished.stdout)
    explanation = answer.pop("explanation")
    policy_version = sqlite_site.server.live.in_force.policy.version
    assert finished.returncode == 1
    assert answer.pop("revision") > 0
    assert answer == {
        "decision": "deny",
        "reason": "NOT_GRANTED",
        "role": "VIEWERNOSECRETS",
        "assignment_id": "",
        "policy_version": policy_version,
    }
    assert explanation["nearest_miss"] == "p, VIEWER, secrets, view, allow"
    assert explanation["roles_that_pass"] == list(ROLES[:4])


def test_check_without_a_token_says_how_to_set_it(client_workspace: Workspace) -> None:
    """Without a token no call is made, and the error says how to set it."""
    del client_workspace.variables["ROLECALL_TOKEN"]

    message = error_of(client_workspace.run("check", "ann@acme.io", "view", "secrets"))

    assert "set ROLECALL_TOKEN to one, or ROLECALL_TOKEN_FILE to its file" in message


def test_refused_token_is_not_repeated(client_workspace: Workspace) -> None:
    """A token that the server doesn't take is an error, not a deny, and isn't shown."""
    client_workspace.variables["ROLECALL_TOKEN"] = "rcp_secret_text"

    message = error_of(client_workspace.run("check", "ann@acme.io", "view", "secrets"))

    assert "No valid credential was presented" in message
    assert "rcp_secret_text" not in message


def test_missing_server_is_reported_with_its_address(client_workspace: Workspace) -> None:
    """The message says where no server was found."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    client_workspace.variables["ROLECALL_ADDRESS"] = address

    message = error_of(client_workspace.run("check", "ann@acme.io", "view", "secrets"))

    assert "is a server running there" in message
    assert address in message


def test_permissions_lists_the_rules_of_a_subject(client_workspace: Workspace) -> None:
    """The table and the JSON hold the same rules."""
    table = client_workspace.run("permissions", "role:VIEWER")
    machine = client_workspace.run("permissions", "role:VIEWER", "--json")

    rules = json.loads(only_line(machine))
    assert {"resource": "secrets", "action": "view", "effect": "allow", "condition": ""} in rules
    assert len(rules) == 6
    assert cells(table)[1:] == [[rule["resource"], rule["action"], rule["effect"]] for rule in rules]


def test_subjects_lists_the_members_who_may(client_workspace: Workspace, sqlite_site: Site) -> None:
    """The table and the JSON hold the same members, by address."""
    table = client_workspace.run("subjects", "view", "secrets/billing")
    machine = client_workspace.run("subjects", "view", "secrets/billing", "--json")

    expected = sorted((sqlite_site.members[role] for role in ROLES[:4]), key=lambda member: member.email)
    members = json.loads(only_line(machine))
    fields = ("user_id", "email", "display_name", "role", "external_id")
    assert members == [{field: getattr(member, field) for field in fields} for member in expected]
    assert cells(table)[1:] == [[m.email, m.display_name, m.role, m.user_id] for m in expected]


def test_resources_prints_the_patterns_of_a_plan(client_workspace: Workspace) -> None:
    """People get a line and a table, programs the whole plan."""
    line = only_line(client_workspace.run("resources", "role:VIEWER", "view", "secrets"))
    never = client_workspace.run("resources", "nobody@acme.io", "view", "secrets")
    machine = json.loads(client_workspace.run("resources", "role:VIEWER", "view", "secrets", "--json").stdout)
    created = client_workspace.run("tokens", "create", "narrow", "--restrict", "secrets/eu view", "--json")
    token = f"token:{json.loads(created.stdout)['token']['id']}"
    table = client_workspace.run("resources", token, "view", "secrets")

    assert line == "ALWAYS (role VIEWER)."
    assert never.stdout == "NEVER.\n"
    assert "nobody@acme.io has no permissions: there may be no such member" in never.stderr
    assert (machine["kind"], machine["resource_type"], machine["role"]) == ("always", "secrets", "VIEWER")
    assert table.stdout.startswith("CONDITIONAL (role OWNER).\n")
    assert ["include", "secrets/eu"] in cells(table)
