"""`rolecall invitations`: create, list, change, resend and delete invitations, through a server."""

import csv
import re
from contextlib import suppress
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, to_dict
from rolecall.domain import Invitee
from rolecall.errors import CallFailed, InvalidField, InvitationNotFound, RolecallError
from rolecall.formats import email_address

if TYPE_CHECKING:
    from rolecall.client import Client

__all__ = ["app"]

app = Commands("Create, list, change, resend and delete invitations.")

Which = Annotated[str, typer.Argument(metavar="INVITATION", help="The invitation's id, or the invited address.")]

# Maximum invitations in one request.
MAX_INVITATIONS = 200

# Columns of the file: as a header may name them in any order, and in this order without one.
_COLUMNS = ("address", "role", "name", "external id")
_HEADERS = {"address": 0, "email": 0, "role": 1, "name": 2, "display_name": 2, "external id": 3, "external_id": 3}
# What spreadsheets put between two cells. None of it stands in an address or a header.
_SEPARATOR = re.compile(r"[,;\t]")
# What a line without a value may hold.
_BLANK = ",;\t "
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
    name: Annotated[str, typer.Option(help="Display name of the invited person, unless they give one.")] = "",
    external_id: Annotated[str, typer.Option(help="External id of the invited person.")] = "",
    file: Annotated[
        Path | None,
        typer.Option(
            help="A CSV file instead, with an address, a role, and if need be a name and an external id on each line."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    json: Json = False,
) -> None:
    """Invite people by mail, all or none."""
    people = _read_file(file) if file else _named_people(addresses, Invitee("", role, name, external_id))
    if file and (addresses or role or name or external_id):
        raise InvalidField("--file has all that is needed: leave out the argument and the other options.", field="file")
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
                output.print_table(_COLUMNS, [person.invitee for person in people])
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
    external_id: Annotated[str, typer.Option(help="Only invitations with this external id.")] = "",
    show_deleted: Annotated[
        bool, typer.Option("--show-deleted", help="List accepted and deleted invitations too.")
    ] = False,
    json: Json = False,
) -> None:
    """List invitations, the newest first: without options the pending and expired ones."""
    wanted = state.value if state else ""
    with open_client() as client:
        listed = client.invitations.list(
            state=wanted, role=role, text=text, external_id=external_id, show_deleted=show_deleted
        )
        found = [to_dict(item) for item in listed]
        inviters = {actor: _inviter(client, actor) for actor in {item["creator"] for item in found} if not json}
    if json:
        output.print_json(found)
        return
    rows = [
        (
            item["email"],
            item["display_name"],
            item["role"],
            item["external_id"],
            item["state"],
            item["delivery"],
            inviters[item["creator"]],
            output.short_time(item["expire_time"]),
            item["id"],
        )
        for item in found
    ]
    header = ("address", "name", "role", "external id", "state", "mail", "invited by", "until", "id")
    output.print_table(header, rows)


@app.command("set-role")
def set_role(which: Which, role: Annotated[str, typer.Argument(help="The new role.")], json: Json = False) -> None:
    """Invite a person to another role: mails a new secret; the older one stops working at once."""
    with open_client() as client:
        before = client.invitations.get(_id(client, which))
        changed = to_dict(client.invitations.update(before.id, role=role))
    if json:
        output.print_json(changed)
    elif changed["invitation"]["etag"] == before.etag:
        output.say(
            f"{before.email} is invited as {before.role} already: nothing was changed or mailed."
            " `rolecall invitations resend` mails a new secret."
        )
    else:
        output.say(
            f"{changed['invitation']['email']} is invited as {changed['invitation']['role']} now, by a new mail."
        )


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

    invitee: Invitee
    place: str


def _named_people(addresses: str, alike: Invitee) -> list[_Person]:
    """Return the people with these addresses, separated by commas, otherwise `alike`. Raises `InvalidField`."""
    if not addresses or not alike.role:
        message = "Give addresses and --role, or --file with an address and a role on each line."
        raise InvalidField(message, field="invitations")
    given = [address.strip() for address in addresses.split(",") if address.strip()]
    if not given:
        raise InvalidField("The list has no address: give addresses, separated by commas.", field="invitations")
    if len(given) > 1 and (alike.display_name or alike.external_id):
        message = "--name and --external-id are of one person: give one address, or --file for several people."
        raise InvalidField(message, field="invitations")
    return [_Person(alike._replace(email=address), f"number {number}") for number, address in enumerate(given, 1)]


def _read_file(file: Path) -> list[_Person]:
    """Read the people to invite from a CSV file. Raises `InvalidField`."""
    text = _read_text(file)
    first = next((line for line in text.splitlines() if line.strip(_BLANK) and not line.startswith("#")), "")
    separator = found[0] if (found := _SEPARATOR.search(first)) else ","
    try:
        reader = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        # Spreadsheets fill lines up with empty cells, also behind the last column.
        rows = [(reader.line_num, _trimmed(row)) for row in reader]
    except csv.Error as error:
        raise InvalidField(f"The file {file} can't be read: {error}.", field="file") from error
    rows = [(number, row) for number, row in rows if "".join(row).strip(_BLANK) and not row[0].startswith("#")]
    order = _header(file, *rows[0]) if rows else []
    people: list[_Person] = []
    for number, row in rows[1:] if order else rows:
        cells = dict(zip(order or range(len(_COLUMNS)), row, strict=False))
        if len(row) > len(order or _COLUMNS) or not cells.get(0) or not cells.get(1):
            raise InvalidField(
                f"{file}:{number}: write an address, a comma and a role; then, if need be, a name and an external id.",
                field="file",
            )
        invitee = Invitee(*(cells.get(column, "") for column in range(len(_COLUMNS))))
        people.append(_Person(invitee, f"{file}:{number}"))
    if not people:
        raise InvalidField(f"{file} lists nobody: write an address, a comma and a role on each line.", field="file")
    return people


def _read_text(file: Path) -> str:
    """Read a file in UTF-8. Raises `InvalidField`."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidField(f"The file {file} can't be read: {error}.", field="file") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        message = f"The file {file} can't be read: it is in UTF-16 or another encoding. Save it as `CSV UTF-8`."
        raise InvalidField(message, field="file")
    return text


def _trimmed(row: list[str]) -> list[str]:
    """Return the cells without blanks around them, and without empty ones at the end."""
    cells = [cell.strip() for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _header(file: Path, number: int, row: list[str]) -> list[int]:
    """Return the column of `_COLUMNS` that each cell of a header names; empty for a row that is no header.

    Raises `InvalidField`.
    """
    order = [_HEADERS.get(cell.lower(), -1) for cell in row]
    if "@" in "".join(row) or set(order) == {-1}:
        return []
    if -1 in order or len(set(order)) < len(order) or not {0, 1} <= set(order):
        raise InvalidField(
            f"{file}:{number}: the header must name the columns `address` and `role`, and may name `name` and"
            " `external id`, each once.",
            field="file",
        )
    return order


def _duplicates(people: list[_Person]) -> list[RolecallError]:
    """Find people who are listed twice: over several calls, the server would find them too late."""
    first: dict[str, _Person] = {}
    problems: list[RolecallError] = []

    def note(person: _Person, key: str, what: str) -> None:
        earlier = first.setdefault(key, person)
        if earlier is not person:
            this, other = (f"{each.invitee.email} ({each.place})" for each in (person, earlier))
            problems.append(InvalidField(f"{this} {what} as {other}: leave one of them out.", field="invitations"))

    for person in people:
        # The server reports an invalid address.
        with suppress(InvalidField):
            note(person, email_address.parse(person.invitee.email).key, "is the same address")
        if person.invitee.external_id:
            note(person, f"external id {person.invitee.external_id}", "has the same external id")
    return problems


def _problems(
    client: "Client", people: list[_Person], *, validate_only: bool = False
) -> tuple[list[dict[str, Any]], list[RolecallError]]:
    """Create or validate invitations; return them and the errors, whose messages name the people."""
    try:
        answer = client.invitations.create([person.invitee for person in people], validate_only=validate_only)
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
    return "".join(f"{person.invitee.email} ({person.place})" for person in people[number : number + 1])


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
