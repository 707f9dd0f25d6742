"""`rolecall check`, `permissions`, `subjects` and `resources`: decisions of a server."""

from dataclasses import asdict
from json import loads
from typing import Annotated

import typer

from rolecall.cli import output
from rolecall.cli.connect import Json, open_client
from rolecall.domain import CheckResult, Reason
from rolecall.errors import InvalidField

__all__ = ["check", "permissions", "resources", "subjects"]

Subject = Annotated[
    str, typer.Argument(help="user:<address>, user:<id or external id>, token:<id>, role:<name>, or an address.")
]
Action = Annotated[str, typer.Argument(help="An action in the policy's words, as in view.")]
Resource = Annotated[str, typer.Argument(help="A resource: type or type/id/..., as in secrets/billing.")]

Scope = Annotated[
    str,
    typer.Option(help="The container of the resource, as in projects/billing; roles assigned there count."),
]


def check(
    subject: Subject,
    action: Action,
    resource: Resource,
    scope: Scope = "",
    context: Annotated[
        str, typer.Option(metavar="JSON", help='Circumstances for conditions, as in {"ip": "192.0.2.7"}.')
    ] = "",
    resource_properties: Annotated[
        str, typer.Option(metavar="JSON", help="Properties of the resource, for conditions.")
    ] = "",
    action_properties: Annotated[
        str, typer.Option(metavar="JSON", help="Properties of the action, for conditions.")
    ] = "",
    subject_properties: Annotated[
        str, typer.Option(metavar="JSON", help="Properties of the subject, for conditions.")
    ] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Print what decided, and the roles that may.")] = False,
    json: Json = False,
) -> None:
    """May SUBJECT do ACTION on RESOURCE? Exits with 0 for allow, 1 for deny, 2 for an error.

    Calls the server at ROLECALL_ADDRESS with ROLECALL_TOKEN.
    """
    with open_client() as client:
        result = client.check(
            subject,
            action,
            resource,
            scope=scope,
            context=_object("--context", context),
            resource_properties=_object("--resource-properties", resource_properties),
            action_properties=_object("--action-properties", action_properties),
            subject_properties=_object("--subject-properties", subject_properties),
            explain=explain,
        )
    if json:
        output.print_json(_as_json(result))
    else:
        by = f", by the assignment {result.assignment_id}" if result.assignment_id else ""
        role = f" (role {result.role}{by})" if result.role else ""
        output.print_value(f"{result.decision.upper()}: {result.reason.value}{role}.")
        if result.explanation:
            output.print_explanation(result.explanation)
        elif result.reason is Reason.NOT_A_MEMBER and "@" not in subject:
            output.say(
                f"`{subject}` is no address, and `rolecall members list` has no such user id or external id: write an"
                " address, as `user:ann@acme.io`, or correct the id."
            )
    raise typer.Exit(output.ALLOW if result else output.DENY)


def permissions(subject: Subject, scope: Scope = "", json: Json = False) -> None:
    """List the permissions of SUBJECT. A deny overrides any allow."""
    with open_client() as client:
        found = list(client.permissions(subject, scope=scope))
    if json:
        output.print_json([asdict(permission) for permission in found])
        return
    if not found:
        output.say(_nobody(subject))
    header = ("resource", "action", "effect")
    rows = [(permission.resource, permission.action, permission.effect, permission.condition) for permission in found]
    if any(permission.condition for permission in found):
        output.print_table((*header, "condition"), rows)
    else:
        output.print_table(header, [row[:3] for row in rows])


def subjects(action: Action, resource: Resource, scope: Scope = "", json: Json = False) -> None:
    """List the members who may do ACTION on RESOURCE."""
    with open_client() as client:
        found = list(client.subjects(action, resource, scope=scope))
        sometimes = list(client.conditional_subjects(action, resource, scope=scope))
    for member, conditions in sometimes:
        output.say(f"{member.email} may only under the conditions {', '.join(conditions)}: ask `rolecall check`.")
    if json:
        output.print_json(
            [
                {
                    "user_id": member.user_id,
                    "email": member.email,
                    "display_name": member.display_name,
                    "role": member.role,
                    "external_id": member.external_id,
                }
                for member in found
            ]
        )
        return
    if not found and not sometimes:
        output.say(f"Nobody may `{resource} {action}`: see `rolecall check --explain`.")
    rows = [(member.email, member.display_name, member.role, member.user_id) for member in found]
    output.print_table(("address", "name", "role", "user id"), rows)


def resources(
    subject: Subject,
    action: Action,
    resource_type: Annotated[str, typer.Argument(metavar="TYPE", help="The first segment of resources.")],
    scope: Scope = "",
    named: Annotated[
        bool, typer.Option("--named", help="List those that rules and role assignments name, instead of patterns.")
    ] = False,
    json: Json = False,
) -> None:
    """Print on which resources of TYPE SUBJECT may do ACTION, as patterns to filter a list by."""
    if named:
        _list_named(subject, action, resource_type, scope, json)
        return
    with open_client() as client:
        plan = client.plan_resources(subject, action, resource_type, scope=scope)
    if json:
        output.print_json(asdict(plan))
        return
    role = f" (role {plan.role})" if plan.role else ""
    output.print_value(f"{plan.kind.upper()}{role}.")
    if not plan.role:
        output.say(_nobody(subject))
    if plan.include:
        rows = [("include", pattern) for pattern in plan.include] + [("exclude", pattern) for pattern in plan.exclude]
        output.print_table(("effect", "resources"), rows)
    if plan.conditions:
        output.say(f"More depends on conditions: {', '.join(plan.conditions)}. Ask by `rolecall check --context`.")


def _object(option: str, text: str) -> dict[str, object] | None:
    """Parse a JSON object; None for none. Raises `InvalidField`."""
    if not text:
        return None
    try:
        found = loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidField(f'{option} is no JSON object: write it as \'{{"ip": "192.0.2.7"}}\'.', field=option)
    return found


def _list_named(subject: str, action: str, resource_type: str, scope: str, json: bool) -> None:
    if scope:
        raise InvalidField("--named lists for no scope: leave --scope out.", field="scope")
    with open_client() as client:
        found = list(client.resources(subject, action, resource_type))
    if json:
        output.print_json(found)
        return
    if not found:
        output.say(
            f"Neither rules nor role assignments name one beneath {resource_type}: leave --named out for patterns."
        )
    for resource in found:
        output.print_value(resource)


def _nobody(subject: str) -> str:
    return f"{subject} has no permissions: there may be no such member, token or role."


def _as_json(result: CheckResult) -> dict[str, object]:
    answer: dict[str, object] = {
        "decision": result.decision,
        "reason": result.reason.name,
        "role": result.role,
        "assignment_id": result.assignment_id,
        "revision": result.revision,
        "policy_version": result.policy_version,
    }
    if result.explanation:
        roles = [
            {**asdict(role), "reason": role.reason.name if role.reason else None} for role in result.explanation.roles
        ]
        answer["explanation"] = {**asdict(result.explanation), "roles": roles}
    return answer
