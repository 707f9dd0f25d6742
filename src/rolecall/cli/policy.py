"""`rolecall policy`: look at a policy folder, without a server."""

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

app = typer.Typer(help="Check a policy folder, and see what it says.", no_args_is_help=True)

Folder = Annotated[Path | None, typer.Argument(help="The policy folder; ROLECALL_POLICY, or policies, without it.")]


class Format(StrEnum):
    """How a matrix is printed."""

    TABLE = "table"
    CSV = "csv"
    TEST = "test"


@app.command()
def lint(
    folder: Folder = None,
    full: Annotated[
        bool, typer.Option("--full", help="Compare all answers with Casbin's, however long it takes.")
    ] = False,
) -> None:
    """Say what is wrong with a policy, where, and what to do. Exits with 1 where it could not go live."""
    folder = _folder(folder)
    result = policies.build(folder, None if full else 2.0)
    for finding in result.findings:
        output.print_value(f"{folder}/{finding}")
    if result.policy is None:
        output.say(f"Errors: {len(result.errors)}. This policy would not go live.")
        raise typer.Exit(1)
    output.say(
        f"{folder}: {len(result.policy.roles)} roles, {len(result.policy.rules)} rules, {result.tested} tests,"
        f" no error. Compared {result.compared} answers with Casbin's: all the same."
    )


@app.command("test")
def run_tests(folder: Folder = None) -> None:
    """Hold a policy against its policy_test.csv. Exits with 1 where it answers otherwise."""
    folder = _folder(folder)
    result = policies.build(folder, 0.0)
    for finding in result.errors:
        output.print_value(f"{folder}/{finding}")
    if result.policy is None:
        failed = sum(finding.file == TEST_FILE for finding in result.errors)
        output.say(f"Tests: {result.tested}, failed: {failed}, other errors: {len(result.errors) - failed}.")
        raise typer.Exit(1)
    output.say(f"Tests: {result.tested}, all pass.")


@app.command()
def matrix(
    folder: Folder = None,
    format_: Annotated[Format, typer.Option("--format", help="test: as a new policy_test.csv.")] = Format.TABLE,
) -> None:
    """Show which role may do what."""
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
    """Say whether ROLE may do ACTION on RESOURCE, and which rule says so. Exits with 0 for allow, 1 for deny."""
    if problem := policies.asked_problem("resource", resource) or policies.asked_problem("action", action):
        raise InvalidField(problem)
    decision = _index(_folder(folder)).decide(role, action, resource)
    output.print_value(f"{decision.decision.upper()}: {decision.reason.value}.")
    output.print_explanation(policies.explain(decision))
    raise typer.Exit(output.ALLOW if decision.reason is Reason.GRANTED else output.DENY)


def _folder(given: Path | None) -> Path:
    return config.load(policy=given).policy


def _index(folder: Path) -> Policy:
    """The policy of `folder`, tested or not. Raises `PolicyError`."""
    source, policy = policies.index(folder)
    if policy is None:
        raise PolicyError(folder, tuple(source.errors))
    return policy


def _may(policy: Policy, role: str, action: str, resource: str) -> bool:
    return policy.decide(role, action, resource).reason is Reason.GRANTED
