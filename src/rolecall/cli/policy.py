"""`rolecall policy`: lint, test and explain a policy folder, without a server."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall import policy as policies
from rolecall.cli import output
from rolecall.domain import Reason
from rolecall.errors import InvalidField
from rolecall.policy import TEST_FILE, Policy, PolicyError

__all__ = ["app"]

app = typer.Typer(help="Lint, test and explain a policy folder.", no_args_is_help=True)

Folder = Annotated[Path | None, typer.Argument(help="The policy folder; default: ROLECALL_POLICY, or `policies`.")]


class Format(StrEnum):
    """Format of a matrix."""

    TABLE = "table"
    CSV = "csv"
    TEST = "test"


@app.command()
def lint(
    folder: Folder = None,
    full: Annotated[
        bool, typer.Option("--full", help="Compare all decisions with Casbin's, without a time limit.")
    ] = False,
) -> None:
    """Report the errors and warnings of a policy. Exits with 1 if a server would refuse it."""
    folder = _folder(folder)
    result = policies.build(folder, None if full else 2.0)
    for finding in result.findings:
        output.print_value(f"{folder}/{finding}")
    if result.policy is None:
        output.say(f"Errors: {len(result.errors)}. A server would refuse this policy.")
        raise typer.Exit(1)
    output.say(
        f"{folder}: {len(result.policy.roles)} roles, {len(result.policy.rules)} rules, {result.tests} tests,"
        f" no error. {result.comparisons} decisions compared with Casbin's: all equal."
    )


@app.command("test")
def run_tests(folder: Folder = None) -> None:
    """Run the tests in policy_test.csv. Exits with 1 if one fails."""
    folder = _folder(folder)
    result = policies.build(folder, 0.0)
    for finding in result.errors:
        output.print_value(f"{folder}/{finding}")
    if result.policy is None:
        failed = sum(finding.file == TEST_FILE for finding in result.errors)
        output.say(f"Tests: {result.tests}, failed: {failed}, other errors: {len(result.errors) - failed}.")
        raise typer.Exit(1)
    output.say(f"Tests: {result.tests}, all pass.")


@app.command()
def matrix(
    folder: Folder = None,
    format_: Annotated[
        Format, typer.Option("--format", help="table, csv, or test: a new policy_test.csv.")
    ] = Format.TABLE,
) -> None:
    """Print the permissions of each role."""
    policy = _index(_folder(folder))
    permissions = list(dict.fromkeys((rule.resource, rule.action) for rule in policy.rules))
    if format_ is Format.TEST:
        asked = [(r, a) for r, a in permissions if "*" not in r + a]
        output.print_csv(
            ("role", "resource", "action", "expected", "note"),
            [(role, r, a, policy.decide(role, a, r).decision, "") for r, a in asked for role in policy.roles],
        )
        return
    yes, no = ("1", "0") if format_ is Format.CSV else ("✓", "·")
    rows = [(r, a, *(yes if _may(policy, role, a, r) else no for role in policy.roles)) for r, a in permissions]
    header = ("resource", "action", *policy.roles)
    if format_ is Format.CSV:
        output.print_csv(header, rows)
    else:
        output.print_table(header, rows)


@app.command()
def explain(
    role: Annotated[str, typer.Argument(help="A role of the policy.")],
    action: Annotated[str, typer.Argument(help="An action, as in view.")],
    resource: Annotated[str, typer.Argument(help="A resource, as in secrets/billing.")],
    folder: Annotated[Path | None, typer.Option("--policy", help="The policy folder.")] = None,
) -> None:
    """Decide whether ROLE may do ACTION on RESOURCE, by which rule. Exits with 0 for allow, 1 for deny."""
    if problem := policies.request_problem("resource", resource) or policies.request_problem("action", action):
        raise InvalidField(problem)
    decision = _index(_folder(folder)).decide(role, action, resource)
    output.print_value(f"{decision.decision.upper()}: {decision.reason.value}.")
    output.print_explanation(policies.explain(decision))
    raise typer.Exit(output.ALLOW if decision.reason is Reason.GRANTED else output.DENY)


def _folder(given: Path | None) -> Path:
    return config.load(policy=given).policy


def _index(folder: Path) -> Policy:
    """Return the policy of `folder`, without running its tests. Raises `PolicyError`."""
    source, policy = policies.read_and_index(folder)
    if policy is None:
        raise PolicyError(folder, tuple(source.errors))
    return policy


def _may(policy: Policy, role: str, action: str, resource: str) -> bool:
    return policy.decide(role, action, resource).reason is Reason.GRANTED
