"""`rolecall invitations`: people are asked in, through a server."""

import csv
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rolecall import addresses
from rolecall.cli import output
from rolecall.cli.opening import Json, open_client, plain
from rolecall.errors import InvalidField, InvitationNotFound, RolecallError

if TYPE_CHECKING:
    from rolecall.client import Client

__all__ = ["app"]

app = typer.Typer(help="Invite people, look after their invitations.", no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="INVITATION", help="The invitation's id, or the invited address.")]

# So many the server takes at once.
AT_ONCE = 200


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
        if len(people) > AT_ONCE:
            _require_different(people)
        parts = [people[start : start + AT_ONCE] for start in range(0, len(people), AT_ONCE)]
        for number, part in enumerate(parts):
            _checked(client, part, number * AT_ONCE)
        if file and not yes:
            output.print_table(("address", "role"), people)
            output.confirm(f"Invite these {len(people)} people?")
        made: list[dict[str, Any]] = []
        try:
            for part in output.progress(parts, "inviting"):
                made += plain(client.invitations.create(part))["invitations"]
        except RolecallError as error:
            if made:
                error.all = ()
                error.message = f"{len(made)} of {len(people)} were invited, nobody after that: {error.message}"
            raise
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


def _people(addresses: str, role: str, file: Path | None) -> list[tuple[str, str]]:
    """Who is to be invited to what. Raises `InvalidField`."""
    if file is None:
        if not addresses or not role:
            message = "Give addresses and --role, or --file with an address and a role on each line."
            raise InvalidField(message, field="invitations")
        return [(address.strip(), role) for address in addresses.split(",") if address.strip()]
    if addresses or role:
        raise InvalidField("With --file, the addresses and roles stand there.", field="invitations")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [[cell.strip() for cell in row] for row in csv.reader(opened)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidField(f"The file {file} can't be read: {error}.", field="file") from error
    people = []
    for number, row in enumerate(rows, 1):
        if not any(row) or row[0].startswith("#") or (number == 1 and row[-1].lower() == "role"):
            # Nothing, a comment, or a header.
            continue
        if len(row) != 2:
            raise InvalidField(f"{file}:{number}: write an address, a comma and a role.", field="file")
        people.append((row[0], row[1]))
    if not people:
        raise InvalidField(f"{file} names nobody.", field="file")
    return people


def _require_different(people: list[tuple[str, str]]) -> None:
    """Raise `InvalidField` where an address stands there twice: over several calls, the server sees it too late."""
    first: dict[str, int] = {}
    for number, (address, _) in enumerate(people, 1):
        earlier = first.setdefault(address.lower(), number)
        if earlier != number:
            raise InvalidField(f"{address} stands there twice, as number {earlier} and {number}.", field="invitations")


def _checked(client: "Client", people: list[tuple[str, str]], first: int) -> None:
    """Raise for everything that is in the way, with the people's own names."""
    try:
        client.invitations.create(people, validate_only=True)
    except RolecallError as error:
        for problem in error.all or (error,):
            problem.message = _named(problem, people, first)
        raise


def _named(problem: RolecallError, people: list[tuple[str, str]], first: int) -> str:
    numbers = problem.field.partition("[")[2].partition("]")[0].split(",")
    if not numbers[0].isdigit():
        return problem.message
    who = ", ".join(f"{people[int(number)][0]} (number {first + int(number) + 1})" for number in numbers)
    return f"{who}: {problem.message.removeprefix(problem.field + ': ')}"


def _id(client: "Client", which: str) -> str:
    """The id of the pending invitation of this address; an id is one already. Raises `InvitationNotFound`."""
    if "@" not in which:
        return which
    key = addresses.parse(which).key
    for found in client.invitations.list(state="pending", text=key):
        if addresses.parse(found.email).key == key:
            return found.id
    raise InvitationNotFound(f"{which} has no pending invitation: see `rolecall invitations list --state all`.")
