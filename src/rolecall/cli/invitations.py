"""`rolecall invitations`: people are asked in, through a server."""

import csv
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from rolecall import addresses
from rolecall.cli import output
from rolecall.cli.opening import Json, open_client, plain
from rolecall.errors import CallFailed, InvalidField, InvitationNotFound, RolecallError

if TYPE_CHECKING:
    from rolecall.client import Client

__all__ = ["app"]

app = typer.Typer(help="Invite people, look after their invitations.", no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="INVITATION", help="The invitation's id, or the invited address.")]

# So many the server takes at once.
AT_ONCE = 200

_ENTRY = re.compile(r"\binvitations\[(\d{1,3})\]")


class State(StrEnum):
    """In which state the listed invitations are."""

    ALL = "all"
    PENDING = "pending"
    EXPIRED = "expired"
    ACCEPTED = "accepted"
    DELETED = "deleted"


@app.command()
def create(
    addresses: Annotated[str, typer.Argument(help="Addresses, with commas between them.")] = "",
    role: Annotated[str, typer.Option(help="The role that they will have.")] = "",
    file: Annotated[
        Path | None, typer.Option(help="A CSV file with an address and a role on each line, instead.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't show who gets which role, nor ask.")] = False,
    json: Json = False,
) -> None:
    """Invite people, all or nobody; each gets a mail."""
    people = _people(addresses, role, file)
    with open_client() as client:
        # A list that is too long for one call is looked at whole, before the first is invited.
        parts = [people[start : start + AT_ONCE] for start in range(0, len(people), AT_ONCE)]
        problems = _twice(people) if len(parts) > 1 else []
        for part in parts:
            problems += _problems(client, part, validate_only=True)[1]
        if problems:
            raise _all_of(problems)
        if file and not yes:
            output.print_table(("address", "role"), [(person.address, person.role) for person in people])
            output.confirm(f"Invite them ({len(people)})?")
        made: list[dict[str, Any]] = []
        for part in output.progress(parts, "inviting"):
            invited, problems = _problems(client, part)
            made += invited
            if problems and not made:
                raise _all_of(problems)
            if problems:
                told = "; ".join(problem.message for problem in problems)
                raise CallFailed(
                    f"{len(made)} of {len(people)} were invited, nobody after that. Mend this, and leave out whom"
                    f" `rolecall invitations list` shows: {told}"
                )
    if json:
        output.print_json(made)
    else:
        output.say(f"{len(made)} invited: each gets a mail. See `rolecall invitations list`.")


@app.command("list")
def list_invitations(
    state: Annotated[State, typer.Option(help="In which state.")] = State.PENDING,
    role: Annotated[str, typer.Option(help="To this role only.")] = "",
    text: Annotated[str, typer.Option(help="With this in their address.")] = "",
    json: Json = False,
) -> None:
    """List invitations, the newest first."""
    wanted = "" if state is State.ALL else state.value
    with open_client() as client:
        found = [plain(item) for item in client.invitations.list(state=wanted, role=role, text=text)]
        inviters = {actor: _inviter(client, actor) for actor in {item["inviter"] for item in found} if not json}
    if json:
        output.print_json(found)
        return
    rows = [
        (
            item["email"],
            item["role"],
            item["state"],
            item["delivery"],
            inviters[item["inviter"]],
            output.short_time(item["expire_time"]),
            item["id"],
        )
        for item in found
    ]
    output.print_table(("address", "role", "state", "mail", "invited by", "until", "id"), rows)


@app.command()
def resend(which: Which, json: Json = False) -> None:
    """Mail a new secret; the older one is dead at once."""
    with open_client() as client:
        renewed = plain(client.invitations.resend(_id(client, which)))
    if json:
        output.print_json(renewed)
    else:
        output.say(f"{renewed['invitation']['email']} gets another mail.")


@app.command()
def delete(which: Which, json: Json = False) -> None:
    """Withdraw an invitation; its secret is dead at once."""
    with open_client() as client:
        deleted = plain(client.invitations.delete(_id(client, which)))
    if json:
        output.print_json(deleted)
    else:
        output.say(f"The invitation of {deleted['invitation']['email']} is withdrawn.")


def _inviter(client: "Client", actor: str) -> str:
    """The address of the member who invited, where the caller may see it; else what the server knows."""
    kind, _, identifier = actor.partition(":")
    try:
        return client.members.get(identifier).email if kind == "user" else actor
    except RolecallError:
        return actor


class _Person(NamedTuple):
    """Somebody to be invited, and where they stand in what was given."""

    address: str
    role: str
    place: str


def _people(addresses: str, role: str, file: Path | None) -> list[_Person]:
    """Who is to be invited to what. Raises `InvalidField`."""
    if file is None:
        if not addresses or not role:
            message = "Give addresses and --role, or --file with an address and a role on each line."
            raise InvalidField(message, field="invitations")
        given = [address.strip() for address in addresses.split(",") if address.strip()]
        if not given:
            raise InvalidField("There is no address: write some, with commas between them.", field="invitations")
        return [_Person(address, role, f"number {number}") for number, address in enumerate(given, 1)]
    if addresses or role:
        raise InvalidField("With --file, the addresses and roles stand there.", field="invitations")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [[cell.strip() for cell in row] for row in csv.reader(opened)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidField(f"The file {file} can't be read: {error}.", field="file") from error
    people: list[_Person] = []
    for number, row in enumerate(rows, 1):
        if not any(row) or row[0].startswith("#") or (number == 1 and row[-1].lower() == "role"):
            # Nothing, a comment, or a header.
            continue
        if len(row) != 2:
            raise InvalidField(f"{file}:{number}: write an address, a comma and a role.", field="file")
        people.append(_Person(row[0], row[1], f"{file}:{number}"))
    if not people:
        raise InvalidField(f"{file} names nobody.", field="file")
    return people


def _twice(people: list[_Person]) -> list[RolecallError]:
    """Who stands there twice: over several calls, the server sees it too late."""
    first: dict[str, _Person] = {}
    problems: list[RolecallError] = []
    for person in people:
        try:
            key = addresses.parse(person.address).key
        except InvalidField:
            # The server will say so.
            continue
        earlier = first.setdefault(key, person)
        if earlier is not person:
            message = f"{person.address} ({person.place}) is the same address as {earlier.address} ({earlier.place})."
            problems.append(InvalidField(message, field="invitations"))
    return problems


def _problems(
    client: "Client", people: list[_Person], *, validate_only: bool = False
) -> tuple[list[dict[str, Any]], list[RolecallError]]:
    """The invitations, or everything that is in their way, with the people's own names."""
    try:
        answer = client.invitations.create([person[:2] for person in people], validate_only=validate_only)
    except RolecallError as error:
        problems = list(error.all or (error,))
        for problem in problems:
            problem.message = _named(problem, people)
        return [], problems
    return plain(answer)["invitations"], []


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
    # What the server calls somebody else on the list.
    return f"{who}: {_ENTRY.sub(lambda found: _at(people, int(found[1])) or found[0], said)}"


def _at(people: list[_Person], number: int) -> str:
    """Somebody as they stand in what was given; empty beyond its end."""
    return "".join(f"{person.address} ({person.place})" for person in people[number : number + 1])


def _id(client: "Client", which: str) -> str:
    """The id of the address's invitation, a pending one first, else the newest; an id is one already.

    Raises `InvitationNotFound`.
    """
    if "@" not in which:
        return which
    key = addresses.parse(which).key
    for state in ("pending", ""):
        for found in client.invitations.list(state=state, text=key):
            if addresses.parse(found.email).key == key:
                return found.id
    raise InvitationNotFound(f"{which} has no invitation: see `rolecall invitations list --state all`.")
