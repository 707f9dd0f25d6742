"""`--json`: answers and errors of commands, for programs."""

import json
from typing import Any

import pytest

from support.commands import Finished, Workspace, error_of
from support.sites import Site


def answer(workspace: Workspace, *arguments: str, code: int = 0) -> Any:
    """The answer of a command, given `--json`: one value on one line, and nothing on standard error."""
    finished = workspace.run(*arguments, "--json")
    assert (finished.returncode, finished.stderr) == (code, "")
    assert finished.stdout.count("\n") == 1
    return json.loads(finished.stdout)


# Answers


def test_init_answers_with_the_owner_and_its_token(empty: Workspace) -> None:
    """`init` has the members that it created, and the secret, once."""
    made = answer(empty, "init", "--organization", "acme", "--owner", "ann@acme.io", "--demo")

    assert list(made) == ["organization", "members", "token", "secret"]
    assert (made["members"][0]["email"], made["members"][0]["role"]) == ("ann@acme.io", "OWNER")
    assert len(made["members"]) == 5
    assert made["token"] == {"id": made["secret"].split("_")[1], "user_id": made["members"][0]["user_id"]}
    assert answer(empty, "operator", "db", "upgrade")["begun_audit_logs"] == []
    assert answer(empty, "operator", "policy", "activate")["moved_holders"] == 0
    assert answer(empty, "operator", "backup", "copy.db")["backup"] == "copy.db"


def test_operator_commands_answer_with_what_they_did(server_workspace: Workspace, sqlite_site: Site) -> None:
    """Each command at the database says in numbers and ids what its text says."""
    here = ("--organization", "acme")
    archive = server_workspace.folder / "old.jsonl"
    issued = answer(server_workspace, "operator", "tokens", "issue", *here, "--email", "ann@acme.io")
    revoked = answer(server_workspace, "operator", "tokens", "revoke", *here, "--id", issued["token"]["id"])
    pruned = answer(server_workspace, "operator", "audit", "prune", *here, "--before", "52w")
    restarted = answer(server_workspace, "operator", "audit", "restart", *here, "--archive", str(archive))
    viewer = sqlite_site.members["VIEWER"].user_id

    assert issued["secret"].split("_")[1] == issued["token"]["id"]
    assert revoked == {"token": {"id": issued["token"]["id"], "state": "deleted"}}
    assert pruned == {"pruned_entries": 0, "last_pruned_sequence": 0}
    assert restarted == {"archived_entries": len(archive.read_text().splitlines()), "archive": str(archive)}
    assert json_error(server_workspace, "operator", "audit", "erase", *here, "--person", viewer)["reason"]


def test_commands_of_a_policy_answer_with_what_they_found(empty: Workspace) -> None:
    """Lint, tests, matrix and explanation, of a good policy and of one with an error."""
    linted = answer(empty, "policy", "lint")
    tested = answer(empty, "policy", "test")
    matrix = {(row["resource"], row["action"]): row["decisions"] for row in answer(empty, "policy", "matrix")}
    denied = answer(empty, "policy", "explain", "VIEWER", "delete", "projects", code=1)
    empty.append("policy.csv", "q, VIEWER\n")
    refused = answer(empty, "policy", "lint", code=1)
    failed = answer(empty, "policy", "test", code=1)

    assert (linted["served"], linted["findings"], linted["roles"]) == (True, [], 5)
    assert (tested["failed"], tested["findings"]) == (0, [])
    assert matrix["secrets", "view"]["VIEWER"] == "allow"
    assert matrix["secrets", "view"]["VIEWERNOSECRETS"] == "deny"
    assert (denied["decision"], denied["reason"]) == ("deny", "NOT_GRANTED")
    assert denied["explanation"]["roles_that_pass"] == ["OWNER", "ADMIN", "CONTRIBUTOR"]
    assert (refused["served"], refused["findings"][0]["file"]) == (False, "policy.csv")
    assert failed["findings"][0]["severity"] == "error"


def test_tokens_and_exports_answer_in_json(client_workspace: Workspace) -> None:
    """A deleted token is described; an export is the same JSON lines as with `--format jsonl`."""
    made = answer(client_workspace, "tokens", "create", "laptop")
    deleted = answer(client_workspace, "tokens", "delete", made["token"]["id"])
    exported: Finished = client_workspace.run("audit", "export", "--json")
    lines = client_workspace.run("audit", "export", "--format", "jsonl")

    assert (deleted["token"]["id"], deleted["token"]["state"]) == (made["token"]["id"], "deleted")
    assert exported.stdout == lines.stdout
    assert json.loads(exported.stdout.splitlines()[0])["sequence"] == 1


def test_messages_beside_an_answer_are_json(client_workspace: Workspace) -> None:
    """Messages for a person on standard error are objects with a `message`."""
    finished = client_workspace.run("sign-in", "ann@acme.io", "--organization", "acme", "--json")

    assert finished.returncode == 0
    assert finished.stdout == ""
    assert [list(json.loads(line)) for line in finished.stderr.splitlines()] == [["message"], ["message"]]


# Errors


def json_error(workspace: Workspace, *arguments: str) -> dict[str, Any]:
    """The error of a command, given `--json`: one object on one line of standard error, of the one shape."""
    finished = workspace.run(*arguments, "--json")
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    error: dict[str, Any] = json.loads(line)
    assert list(error) == ["reason", "field", "message", "fix", "call_id", "problems"]
    for problem in error["problems"]:
        assert list(problem) == ["reason", "field", "message", "fix"]
    return error


def test_error_of_the_server_is_json(client_workspace: Workspace) -> None:
    """A refusal has its reason, its field, what to do, and the id of the call; without `--json` it is a text."""
    error = json_error(client_workspace, "members", "set-role", "viewer@acme.io", "veiwer")
    text = error_of(client_workspace.run("members", "set-role", "viewer@acme.io", "veiwer"))

    assert (error["reason"], error["field"], error["problems"]) == ("UNKNOWN_ROLE_NAME", "role", [])
    assert error["message"] == text
    assert error["fix"].startswith("did you mean `VIEWER`? Otherwise choose one of OWNER, ")
    assert error["call_id"]


def test_errors_of_a_batch_are_json(client_workspace: Workspace) -> None:
    """Each problem of a batch is listed with its reason, and what to do."""
    error = json_error(client_workspace, "invitations", "create", "ann@acme.io,x", "--role", "VIEWER")

    assert [problem["reason"] for problem in error["problems"]] == ["ALREADY_MEMBER", "INVALID_FIELD"]
    assert all(problem["message"].startswith(("ann@acme.io (", "x (")) for problem in error["problems"])


@pytest.mark.parametrize(
    ("arguments", "field", "said"),
    [
        (("audit", "list", "--since", "yesterday"), "since", "7d"),
        (("audit", "list", "--limit", "0"), "limit", "--limit"),
        (("audit", "list", "--json"), "json", "given 2 times"),
        (("audit", "list", "--nothing"), "", "No such option --nothing. Did you mean"),
        (("audit", "list", "--actr", "x"), "", "Did you mean --action or --actor? See `rolecall"),
        (("audit", "list", "x"), "", "(x). See `rolecall audit list --help`."),
        (("serve", "--log-format", "text"), "log_format", "two formats"),
        (("audit", "export", "--format", "csv"), "format", "two formats"),
        (("check", "ann@acme.io"), "action", "Missing"),
        (("membres", "list"), "", "Did you mean 'members'"),
        (("tokens", "create", "x", "--restrict", "y"), "restrict", "not a permission"),
    ],
)
def test_error_in_the_arguments_is_json(
    client_workspace: Workspace, arguments: tuple[str, ...], field: str, said: str
) -> None:
    """Errors in options and arguments have the same shape, and the option's name as their field."""
    error = json_error(client_workspace, *arguments)

    assert (error["reason"], error["field"], error["call_id"]) == ("INVALID_FIELD", field, "")
    assert said in error["message"]
    assert error["fix"]


def test_missing_setting_is_a_json_error(empty: Workspace) -> None:
    """A command that can't even start says so in JSON."""
    error = json_error(empty, "whoami")

    assert (error["reason"], error["fix"]) == (
        "CONFIG",
        "set ROLECALL_TOKEN to one, or ROLECALL_TOKEN_FILE to its file.",
    )


def test_server_that_cannot_start_says_so_in_json(empty: Workspace) -> None:
    """With `--json`, `serve` ends with an error of the one shape, as every command does."""
    error = json_error(empty, "serve")

    assert error["reason"] == "CONFIG"
    assert "key file rolecall.key does not exist" in error["message"]
    assert error["fix"].startswith("run `rolecall init`")


def test_error_of_a_policy_lists_its_findings_in_json(empty: Workspace) -> None:
    """A policy that can't be served has its findings as problems, each with its place and its fix."""
    empty.append("policy.csv", "q, VIEWER\n")

    error = json_error(empty, "policy", "matrix")

    assert error["reason"] == "POLICY_INVALID"
    (problem,) = error["problems"]
    assert problem["field"].startswith("policy.csv:")
    assert problem["message"]
    assert problem["fix"]


def test_json_after_the_end_of_options_is_an_argument(client_workspace: Workspace) -> None:
    """`-- --json` is an argument: the error is text."""
    assert error_of(client_workspace.run("members", "remove", "--", "--json"))
