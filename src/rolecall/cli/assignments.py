"""`rolecall assignments`: assign roles at scopes and for a time, list, change and end assignments, through a server."""

from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, parse_end, parse_span, to_dict
from rolecall.errors import InvalidField, RolecallError

__all__ = ["app"]

app = Commands("Assign roles: at a scope, to a team, for a time. List, change and end assignments.")

_ONLY_ENTRY = "assignments[0]."

AssignmentId = Annotated[str, typer.Argument(metavar="ID", help="The assignment's id, as listed.")]
For = Annotated[
    timedelta | None,
    typer.Option("--for", parser=parse_span, metavar="TIME", help="End it after this time, as in 14d or 2h."),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=parse_end, metavar="TIME", help="End it at this time, as in 2027-01-31 (UTC)."),
]


@app.command()
def create(
    principal: Annotated[
        str,
        typer.Argument(help="Who gets the role: an address, user:<id or external id>, team:<id>, or token:<id>."),
    ],
    role: Annotated[str, typer.Argument(help="The role.")],
    scope: Annotated[str, typer.Option(help="Where, as in projects/billing; default: in the whole organization.")] = "",
    span: For = None,
    until: Until = None,
    note: Annotated[str, typer.Option(help="The reason or a ticket.")] = "",
    json: Json = False,
) -> None:
    """Assign ROLE to PRINCIPAL, besides the role that it has; print the assignment's id."""
    expires = _end(span, until)
    with open_client() as client:
        # Imported here because it imports grpc.
        from rolecall.client import NewAssignment

        try:
            made = to_dict(client.assignments.create([NewAssignment(principal, role, scope, expires, note)]))
        except RolecallError as error:
            # The server names the entry of the list, of which there is one.
            error.message = error.message.removeprefix(f"{error.field}: ").replace(_ONLY_ENTRY, "")
            error.field = error.field.replace(_ONLY_ENTRY, "")
            raise
    if json:
        output.print_json(made)
        return
    (assignment,) = made["assignments"]
    output.say(f"{_description(assignment)}. The assignment's id:")
    output.print_value(assignment["id"])


@app.command("list")
def list_assignments(
    principal: Annotated[str, typer.Option(help="Only those of this member, team or token, as for create.")] = "",
    role: Annotated[str, typer.Option(help="Only those of this role.")] = "",
    scope: Annotated[str, typer.Option(help="Only those at this scope and beneath it.")] = "",
    json: Json = False,
) -> None:
    """List assignments, the newest first. One that has ended is listed for up to 30 days."""
    with open_client() as client:
        listed = client.assignments.list(principal=principal, role=role, scope=scope)
        found = [to_dict(assignment) for assignment in listed]
    if json:
        output.print_json(found)
        return
    rows = [
        (
            item["id"],
            item["principal_name"],
            item["principal"],
            item["role"],
            item["scope"],
            output.short_time(item["expire_time"]),
            item["note"],
            output.day(item["create_time"]),
            item["creator"],
        )
        for item in found
    ]
    output.print_table(("id", "name", "principal", "role", "scope", "until", "note", "created", "by"), rows)


@app.command()
def update(
    assignment_id: AssignmentId,
    span: For = None,
    until: Until = None,
    no_end: Annotated[bool, typer.Option("--no-end", help="Remove its end.")] = False,
    note: Annotated[str | None, typer.Option(help="The new note; an empty one for none.")] = None,
    json: Json = False,
) -> None:
    """Change an assignment's end or note."""
    expires = _end(span, until)
    if expires is not None and no_end:
        raise InvalidField("--no-end contradicts --for and --until: leave one out.", field="no_end")
    if expires is None and not no_end and note is None:
        raise InvalidField("Nothing is to be changed: give --for, --until, --no-end or --note.", field="note")
    with open_client() as client:
        changed = to_dict(client.assignments.update(assignment_id, expires=expires, no_end=no_end, note=note))
    if json:
        output.print_json(changed)
        return
    output.say(f"{_description(changed['assignment'])}.")


@app.command()
def delete(assignment_id: AssignmentId, json: Json = False) -> None:
    """End an assignment at once."""
    with open_client() as client:
        deleted = to_dict(client.assignments.delete(assignment_id))
    if json:
        output.print_json(deleted)
        return
    assignment = deleted["assignment"]
    output.say(f"{_name(assignment)} is no longer assigned {assignment['role']}{_place(assignment)}.")


def _end(span: timedelta | None, until: datetime | None) -> datetime | timedelta | None:
    """Return the end that the options give. Raises `InvalidField` if both are given."""
    if span is not None and until is not None:
        raise InvalidField("--for and --until name two ends: leave one out.", field="until")
    return until if span is None else span


def _description(assignment: dict[str, Any]) -> str:
    end = output.short_time(assignment["expire_time"])
    until = f" until {end}" if end else ""
    return f"{_name(assignment)} is assigned {assignment['role']}{_place(assignment)}{until}"


def _name(assignment: dict[str, Any]) -> str:
    """Return a member's address; the id and the display name of a team or a token."""
    principal, name = assignment["principal"], assignment["principal_name"]
    return name if principal.startswith("user:") else f"{principal} ({name})"


def _place(assignment: dict[str, Any]) -> str:
    return f" at {assignment['scope']}" if assignment["scope"] else ""
