"""`rolecall members`: who is in the organization, through a server."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rolecall import addresses
from rolecall.cli import output
from rolecall.cli.opening import Json, open_client, plain
from rolecall.errors import MemberNotFound

if TYPE_CHECKING:
    from rolecall.client import Client

__all__ = ["app"]

app = typer.Typer(help="List members, change their roles, remove them.", no_args_is_help=True)

Who = Annotated[str, typer.Argument(metavar="MEMBER", help="The member's address or user id.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]


class Order(StrEnum):
    """In which order members are listed."""

    EMAIL = "email"
    NAME = "name"
    NEWEST = "newest"


@app.command("list")
def list_members(
    role: Annotated[str, typer.Option(help="With this role only.")] = "",
    text: Annotated[str, typer.Option(help="With this in their address or name.")] = "",
    order: Annotated[Order, typer.Option(help="In which order.")] = Order.EMAIL,
    json: Json = False,
) -> None:
    """List the members."""
    with open_client() as client:
        found = [plain(member) for member in client.members.list(role=role, text=text, order=order.value)]
    if json:
        output.print_json(found)
        return
    rows = [
        (item["email"], item["display_name"], item["role"], item["user_id"], output.day(item["create_time"]))
        for item in found
    ]
    output.print_table(("address", "name", "role", "user id", "since"), rows)


@app.command()
def role(who: Who, role: Annotated[str, typer.Argument(help="The new role.")], json: Json = False) -> None:
    """Give a member another role."""
    with open_client() as client:
        changed = plain(client.members.change_role(_user_id(client, who), role))
    if json:
        output.print_json(changed)
        return
    output.say(f"{changed['member']['email']} is {changed['member']['role']} now.")


@app.command()
def remove(who: Who, json: Json = False) -> None:
    """Remove a member; tokens and sessions of theirs are dead at once."""
    with open_client() as client:
        removed = plain(client.members.remove(_user_id(client, who)))
    if json:
        output.print_json(removed)
        return
    output.say(f"{removed['member']['email']} is no member any more.")
    if made := removed["organization_tokens"]:
        output.say(
            "They made these organization's tokens, which work on. Rotate or delete those whose secret they know:"
        )
        output.print_table(("id", "name", "role"), [(token["id"], token["name"], token["role"]) for token in made])


@app.command()
def leave(yes: Yes = False, json: Json = False) -> None:
    """Leave the organization yourself; your tokens and sessions are dead at once."""
    if not yes:
        output.confirm("Leave the organization, for good?")
    with open_client() as client:
        left = plain(client.members.leave())
    if json:
        output.print_json(left)
        return
    output.say("You are no member any more.")


def _user_id(client: "Client", who: str) -> str:
    """The id of the member with this address; an id is one already. Raises `MemberNotFound`."""
    if "@" not in who:
        return who
    key = addresses.parse(who).key
    for member in client.members.list(text=key):
        if addresses.parse(member.email).key == key:
            return member.user_id
    raise MemberNotFound(f"{who} is no member: see who is with `rolecall members list`.")
