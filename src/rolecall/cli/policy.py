"""`rolecall policy`: make, lint, test and explain a policy folder; show the policy that a server serves."""

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rolecall import config
from rolecall import policy as policies
from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, to_dict
from rolecall.domain import Reason
from rolecall.errors import InvalidField
from rolecall.policy import TEST_FILE, Build, Conditional, Finding, Policy, PolicyError, Severity, shipped

__all__ = ["app"]

app = Commands("Make, lint, test and explain a policy folder; show the policy that a server serves.")

Folder = Annotated[Path | None, typer.Argument(help="The policy folder; default: ROLECALL_POLICY, or `policies`.")]


class Format(StrEnum):
    """Format of a matrix."""

    TABLE = "table"
    CSV = "csv"
    TEST = "test"


@app.command()
def new(
    folder: Folder = None,
    variant: Annotated[str, typer.Option(help=f"A variant of it: {' or '.join(shipped.VARIANTS)}.")] = "",
    json: Json = False,
) -> None:
    """Write the shipped policy into a folder, to be edited. Replaces no file."""
    folder = _folder(folder)
    shipped.write(folder, variant)
    roles = _index(folder).roles
    if json:
        output.print_json({"folder": str(folder), "roles": roles})
        return
    output.say(f"The policy is in {folder}: roles {', '.join(roles)}. It is yours to edit.")


@app.command()
def lint(
    folder: Folder = None,
    full: Annotated[
        bool, typer.Option("--full", help="Compare all decisions with Casbin's, without a time limit.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the server, too, whether it would accept the policy now.")
    ] = False,
    json: Json = False,
) -> None:
    """Report the errors and warnings of a policy. Exits with 1 if a server would refuse it."""
    folder = _folder(folder)
    result = policies.build(folder, None if full else 2.0)
    refusals = _ask_server(result) if live and result.policy else []
    findings = [*result.findings, *refusals]
    would_serve = result.policy is not None and not refusals
    if json:
        output.print_json(
            {
                "served": would_serve,
                "policy_version": result.version,
                "roles": len(result.policy.roles) if result.policy else 0,
                "rules": len(result.policy.rules) if result.policy else 0,
                "tests": result.tests,
                "comparisons": result.comparisons,
                "findings": [asdict(finding) for finding in findings],
            }
        )
        raise typer.Exit(0 if would_serve else 1)
    for finding in findings:
        output.print_value(finding.in_folder(folder))
    if result.policy is None:
        output.say(f"Errors: {len(result.errors)}. A server would refuse this policy.")
        raise typer.Exit(1)
    output.say(
        f"{folder}: {len(result.policy.roles)} roles, {len(result.policy.rules)} rules, {result.tests} tests,"
        f" no error. {result.comparisons} decisions compared with Casbin's: all equal."
    )
    if refusals:
        output.say(f"Errors: {len(refusals)}. The server would refuse this policy now.")
        raise typer.Exit(1)
    if live:
        output.say(f"The server would accept it, as {result.version}.")


@app.command("test")
def run_tests(folder: Folder = None, json: Json = False) -> None:
    """Run the tests in policy_test.csv. Exits with 1 if one fails."""
    folder = _folder(folder)
    result = policies.build(folder, 0.0)
    failed = sum(finding.file == TEST_FILE for finding in result.errors)
    if json:
        findings = [asdict(finding) for finding in result.errors]
        output.print_json({"tests": result.tests, "failed": failed, "findings": findings})
        raise typer.Exit(0 if result.policy else 1)
    for finding in result.errors:
        output.print_value(finding.in_folder(folder))
    if result.policy is None:
        output.say(f"Tests: {result.tests}, failed: {failed}, other errors: {len(result.errors) - failed}.")
        raise typer.Exit(1)
    output.say(f"Tests: {result.tests}, all pass.")


@app.command()
def matrix(
    folder: Folder = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="table (the default), csv, or test: a new policy_test.csv.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the permissions of each role; `?` is one that depends on a condition."""
    output.require_no_other_format(format_ is not None, json)
    policy = _index(_folder(folder))
    permissions = list(dict.fromkeys((rule.resource, rule.action) for rule in policy.rules))
    if format_ is Format.TEST:
        asked = [(r, a) for r, a in permissions if "*" not in r + a]
        output.print_csv(
            ("role", "resource", "action", "expected", "note"),
            [(role, r, a, policy.decide(role, a, r).decision, "") for r, a in asked for role in policy.roles],
        )
        return
    if json:
        rows = [(r, a, {role: policy.decide(role, a, r).decision for role in policy.roles}) for r, a in permissions]
        output.print_json([{"resource": r, "action": a, "decisions": decisions} for r, a, decisions in rows])
        return
    marks = ("1", "0") if format_ is Format.CSV else ("✓", "·")
    table = [(r, a, *(_mark(policy, role, a, r, marks) for role in policy.roles)) for r, a in permissions]
    header = ("resource", "action", *policy.roles)
    if format_ is Format.CSV:
        output.print_csv(header, table)
    else:
        output.print_table(header, table)


@app.command()
def explain(
    role: Annotated[str, typer.Argument(help="A role of the policy.")],
    action: Annotated[str, typer.Argument(help="An action, as in view.")],
    resource: Annotated[str, typer.Argument(help="A resource, as in secrets/billing.")],
    folder: Annotated[Path | None, typer.Option("--policy", help="The policy folder.")] = None,
    json: Json = False,
) -> None:
    """Decide whether ROLE may do ACTION on RESOURCE, by which rule. Exits with 0 for allow, 1 for deny."""
    if problem := policies.request_problem("resource", resource) or policies.request_problem("action", action):
        raise InvalidField(problem)
    policy = _index(_folder(folder))
    values = {**policies.values_of(action, resource), "subject.roles": [role]}
    decision = policy.decide(role, action, resource, policy.evaluator(values))
    explanation = policies.explain(decision, values)
    if json:
        output.print_json(
            {
                "decision": decision.decision,
                "reason": decision.reason.name,
                "role": role,
                "policy_version": decision.policy.version,
                "explanation": asdict(explanation),
            }
        )
    else:
        output.print_value(f"{decision.decision.upper()}: {decision.reason.value}.")
        output.print_explanation(explanation)
    raise typer.Exit(output.ALLOW if decision.reason is Reason.GRANTED else output.DENY)


@app.command()
def show(json: Json = False) -> None:
    """Show the policy in force, since when and by whom, and which processes of the database can't serve it."""
    with open_client() as client:
        state = to_dict(client.policy())
    if json:
        output.print_json(state)
        return
    policy, ahead, refusal = state["policy"], state["ahead"], state["refusal"]
    in_force = ahead or policy
    since = output.short_time(in_force["activate_time"])
    output.print_value(f"in force: {in_force['policy_version']}, since {since}, activated by {in_force['activator']}")
    size = f"{policy['role_count']} roles, {policy['rule_count']} rules"
    served = f"{policy['policy_version']} ({size}), since {output.short_time(policy['load_time'])}"
    output.print_value(f"served by {state['process']}: {served}")
    if ahead:
        output.print_value(f"this process is behind: {ahead['problem'] or 'it is building the policy in force.'}")
    for process in state["behind"]:
        if process["process"] != state["process"]:
            served = f"{process['process']}, which serves {process['policy_version']}"
            output.print_value(f"behind: {served}: {process['problem']}")
    if refusal:
        refused = refusal["policy_version"] or "the folder"
        output.print_value(f"refused: {refused}, since {output.short_time(refusal['refuse_time'])}")
    for finding in (*(refusal["findings"] if refusal else ()), *policy["warnings"]):
        output.print_value(f"  {_finding(finding)}")


def _ask_server(built: Build) -> list[Finding]:
    """Return what keeps the server from accepting a policy that has no error of its own."""
    with open_client() as client:
        answer = to_dict(client.validate_policy(*built.files))
    # The warnings are those of the build.
    return [_finding(finding) for finding in answer["findings"] if finding["blocking"]]


def _finding(found: Mapping[str, Any]) -> Finding:
    """Convert a finding of a server, which prints as one of `lint`."""
    severity = Severity.ERROR if found["blocking"] else Severity.WARNING
    return Finding(found["file"], found["line"], found["column"], found["message"], found["fix"], severity)


def _folder(given: Path | None) -> Path:
    return config.load(policy=given).policy


def _index(folder: Path) -> Policy:
    """Return the policy of `folder`, without running its tests. Raises `PolicyError`."""
    source, policy = policies.read_and_index(folder)
    if policy is None:
        raise PolicyError(folder, tuple(source.errors))
    return policy


def _mark(policy: Policy, role: str, action: str, resource: str, marks: tuple[str, str]) -> str:
    """Return the first mark for what a role may, the second for what it may not, `?` where a condition decides."""
    reason = policy.reason(role, action, resource)
    if isinstance(reason, Conditional):
        return "?"
    return marks[0] if reason is Reason.GRANTED else marks[1]
