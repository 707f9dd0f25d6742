"""`rolecall invitations`: create, list, resend and delete invitations, through a server."""

import csv
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from rolecall import email_address
from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, to_dict
from rolecall.errors import CallFailed, InvalidField, InvitationNotFound, RolecallError

if TYPE_CHECKING:
    from rolecall.client import Client

__all__ = ["app"]

app = Commands("Create, list, resend and delete invitations.")

Which = Annotated[str, typer.Argument(metavar="INVITATION", help="The invitation's id, or the invited address.")]

# Maximum invitations in one request.
MAX_INVITATIONS = 200

_ENTRY = re.compile(r"\binvitations\[(\d{1,3})\]")


class State(StrEnum):
    """State of the listed invitations."""

    PENDING = "pending"
    EXPIRED = "expired"
    ACCEPTED = "accepted"
    DELETED = "deleted"


@app.command()
def create(
    addresses: Annotated[str, typer.Argument(help="Addresses, separated by commas.")] = "",
    role: Annotated[str, typer.Option(help="Role of the invited people.")] = "",
    file: Annotated[
        Path | None, typer.Option(help="A CSV file with an address and a role on each line, instead.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    json: Json = False,
) -> None:
    """Invite people by mail, all or none."""
    people = _people(addresses, role, file)
    with open_client() as client:
        # A list that is too long for one request is validated as a whole before the first person is invited.
        parts = [people[start : start + MAX_INVITATIONS] for start in range(0, len(people), MAX_INVITATIONS)]
        problems = _duplicates(people) if len(parts) > 1 else []
        for part in parts:
            problems += _problems(client, part, validate_only=True)[1]
        if problems:
            raise _all_of(problems)
        if file and not yes:
            if not json:
                output.print_table(("address", "role"), [(person.address, person.role) for person in people])
            output.confirm(f"Invite them ({len(people)})?")
        made: list[dict[str, Any]] = []
        for part in output.progress(parts, "inviting"):
            invited, problems = _problems(client, part)
            made += invited
            if problems and not made:
                raise _all_of(problems)
            if problems:
                listed = "; ".join(problem.message for problem in problems)
                raise CallFailed(
                    f"Only the first {len(made)} of {len(people)} were invited. Correct this, and remove those that"
                    f" `rolecall invitations list` shows: {listed}"
                )
    if json:
        output.print_json(made)
    else:
        output.say(f"{len(made)} invited by mail. See `rolecall invitations list`.")


@app.command("list")
def list_invitations(
    state: Annotated[State | None, typer.Option(help="Only invitations in this state.")] = None,
    role: Annotated[str, typer.Option(help="Only invitations to this role.")] = "",
    text: Annotated[str, typer.Option(help="Only invitations with this text in the address.")] = "",
    show_deleted: Annotated[
        bool, typer.Option("--show-deleted", help="List accepted and deleted invitations too.")
    ] = False,
    json: Json = False,
) -> None:
    """List invitations, the newest first: without options the pending and expired ones."""
    wanted = state.value if state else ""
    with open_client() as client:
        listed = client.invitations.list(state=wanted, role=role, text=text, show_deleted=show_deleted)
        found = [to_dict(item) for item in listed]
        inviters = {actor: _inviter(client, actor) for actor in {item["creator"] for item in found} if not json}
    if json:
        output.print_json(found)
        return
    rows = [
        (
            item["email"],
            item["role"],
            item["state"],
            item["delivery"],
            inviters[item["creator"]],
            output.short_time(item["expire_time"]),
            item["id"],
        )
        for item in found
    ]
    output.print_table(("address", "role", "state", "mail", "invited by", "until", "id"), rows)


@app.command()
def resend(which: Which, json: Json = False) -> None:
    """Mail a new secret; the older one stops working at once."""
    with open_client() as client:
        renewed = to_dict(client.invitations.resend(_id(client, which)))
    if json:
        output.print_json(renewed)
    else:
        output.say(f"{renewed['invitation']['email']} gets a new mail.")


@app.command()
def delete(which: Which, json: Json = False) -> None:
    """Delete an invitation; its secret stops working at once."""
    with open_client() as client:
        deleted = to_dict(client.invitations.delete(_id(client, which)))
    if json:
        output.print_json(deleted)
    else:
        output.say(f"The invitation of {deleted['invitation']['email']} is deleted.")


def _inviter(client: "Client", actor: str) -> str:
    """Return the inviter's address, or the actor where the caller may not see members."""
    kind, _, identifier = actor.partition(":")
    try:
        return client.members.get(identifier).email if kind == "user" else actor
    except RolecallError:
        return actor


class _Person(NamedTuple):
    """Person to be invited, and their place in the input."""

    address: str
    role: str
    place: str


def _people(addresses: str, role: str, file: Path | None) -> list[_Person]:
    """Read the people to invite and their roles. Raises `InvalidField`."""
    if file is None:
        if not addresses or not role:
            message = "Give addresses and --role, or --file with an address and a role on each line."
            raise InvalidField(message, field="invitations")
        given = [address.strip() for address in addresses.split(",") if address.strip()]
        if not given:
            raise InvalidField("The list has no address: give addresses, separated by commas.", field="invitations")
        return [_Person(address, role, f"number {number}") for number, address in enumerate(given, 1)]
    if addresses or role:
        raise InvalidField(
            "--file has the addresses and roles: leave out the argument and --role.", field="invitations"
        )
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [[cell.strip() for cell in row] for row in csv.reader(opened)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidField(f"The file {file} can't be read: {error}.", field="file") from error
    people: list[_Person] = []
    for number, row in enumerate(rows, 1):
        if not any(row) or row[0].startswith("#") or (number == 1 and row[-1].lower() == "role"):
            # An empty line, a comment, or a header.
            continue
        if len(row) != 2:
            raise InvalidField(f"{file}:{number}: write an address, a comma and a role.", field="file")
        people.append(_Person(row[0], row[1], f"{file}:{number}"))
    if not people:
        raise InvalidField(f"{file} lists nobody: write an address, a comma and a role on each line.", field="file")
    return people


def _duplicates(people: list[_Person]) -> list[RolecallError]:
    """Find people who are listed twice: over several calls, the server would find them too late."""
    first: dict[str, _Person] = {}
    problems: list[RolecallError] = []
    for person in people:
        try:
            key = email_address.parse(person.address).key
        except InvalidField:
            # The server reports it.
            continue
        earlier = first.setdefault(key, person)
        if earlier is not person:
            message = f"{person.address} ({person.place}) is the same address as {earlier.address} ({earlier.place})."
            problems.append(InvalidField(message, field="invitations"))
    return problems


def _problems(
    client: "Client", people: list[_Person], *, validate_only: bool = False
) -> tuple[list[dict[str, Any]], list[RolecallError]]:
    """Create or validate invitations; return them and the errors, whose messages name the people."""
    try:
        answer = client.invitations.create([person[:2] for person in people], validate_only=validate_only)
    except RolecallError as error:
        problems = list(error.all or (error,))
        for problem in problems:
            problem.message = _named(problem, people)
        return [], problems
    return to_dict(answer)["invitations"], []


def _all_of(problems: list[RolecallError]) -> RolecallError:
    error = problems[0]
    error.all = tuple(problems) if len(problems) > 1 else ()
    return error


def _named(problem: RolecallError, people: list[_Person]) -> str:
    numbers = problem.field.partition("[")[2].partition("]")[0].split(",")
    if not numbers[0].isdigit():
        return problem.message
    who = ", ".join(_at(people, int(number)) for number in numbers)
    said = problem.message.removeprefix(problem.field + ": ")
    # The message may name another entry of the list.
    return f"{who}: {_ENTRY.sub(lambda found: _at(people, int(found[1])) or found[0], said)}"


def _at(people: list[_Person], number: int) -> str:
    """Person at this place of the input; empty beyond its end."""
    return "".join(f"{person.address} ({person.place})" for person in people[number : number + 1])


def _id(client: "Client", which: str) -> str:
    """Return the id of the address's invitation, a pending one first, else the newest; an id as it is.

    Raises `InvitationNotFound`.
    """
    if "@" not in which:
        return which
    key = email_address.parse(which).key
    for state in ("pending", ""):
        for found in client.invitations.list(state=state, text=key, show_deleted=True):
            if email_address.parse(found.email).key == key:
                return found.id
    raise InvitationNotFound(f"{which} has no invitation: see `rolecall invitations list --show-deleted`.")
