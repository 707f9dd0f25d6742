"""`rolecall members`: list members, change their roles (one or all of a role) and external ids, remove them."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, to_dict
from rolecall.credentials import token_format
from rolecall.errors import MemberNotFound
from rolecall.formats import email_address

if TYPE_CHECKING:
    from rolecall.client import Client

__all__ = ["app"]

app = Commands("List members, change their roles and external ids, remove them.")

Who = Annotated[str, typer.Argument(metavar="MEMBER", help="The member's address, user id or external id.")]
Yes = Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")]


class Order(StrEnum):
    """Order of a list of members."""

    EMAIL = "email"
    NAME = "name"
    NEWEST = "newest"


@app.command("list")
def list_members(
    role: Annotated[str, typer.Option(help="Only members with this role.")] = "",
    text: Annotated[str, typer.Option(help="Only members with this text in the address or name.")] = "",
    external_id: Annotated[str, typer.Option(help="Only the member with this external id.")] = "",
    order: Annotated[Order, typer.Option(help="Order of the list.")] = Order.EMAIL,
    json: Json = False,
) -> None:
    """List the members."""
    with open_client() as client:
        listed = client.members.list(role=role, text=text, external_id=external_id, order=order.value)
        found = [to_dict(member) for member in listed]
    if json:
        output.print_json(found)
        return
    rows = [
        (
            item["email"],
            item["display_name"],
            item["role"],
            item["user_id"],
            item["external_id"],
            output.day(item["create_time"]),
        )
        for item in found
    ]
    output.print_table(("address", "name", "role", "user id", "external id", "since"), rows)


@app.command("set-role")
def set_role(who: Who, role: Annotated[str, typer.Argument(help="The new role.")], json: Json = False) -> None:
    """Give a member another role."""
    with open_client() as client:
        changed = to_dict(client.members.change_role(_user_id(client, who), role))
    if json:
        output.print_json(changed)
        return
    output.say(f"{changed['member']['email']} is {changed['member']['role']} now.")


@app.command("set-external-id")
def set_external_id(
    who: Who,
    external_id: Annotated[str, typer.Argument(help="The new external id; without one, the member has none.")] = "",
    json: Json = False,
) -> None:
    """Give a member another external id: their id in an identity provider or a database of yours.

    `rolecall check user:ID` then is about this member.
    """
    with open_client() as client:
        changed = to_dict(client.members.change_external_id(_user_id(client, who), external_id))
    if json:
        output.print_json(changed)
        return
    what = f"the external id {external_id}" if external_id else "no external id"
    output.say(f"{changed['member']['email']} has {what} now.")


@app.command()
def move(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The role that the members have.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The role that they get.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and change nothing.")] = False,
    json: Json = False,
) -> None:
    """Give all members with one role another, all or nobody, as before the policy drops or renames the role."""
    with open_client() as client:
        moved = to_dict(client.members.move(old, new, validate_only=dry_run))
    if json:
        output.print_json(moved)
        return
    output.say(f"{moved['member_count']} members {'would get' if dry_run else 'got'} the role {new}.")
    if tokens := moved["organization_token_count"]:
        output.say(
            f"{tokens} organization tokens have the role {old} still: create others with {new}, and delete these"
            " (`rolecall tokens list --kind organization`)."
        )
    if assignments := moved["assignment_count"]:
        output.say(
            f"{assignments} role assignments are of {old} still: assign {new} in their place, and delete these"
            f" (`rolecall assignments list --role {old}`)."
        )
    if invitations := moved["invitation_count"]:
        output.say(f"{invitations} invitations to {old} are pending still: delete them, and invite to {new}.")


@app.command()
def remove(who: Who, json: Json = False) -> None:
    """Remove a member; their tokens and sessions stop working at once."""
    with open_client() as client:
        removed = to_dict(client.members.remove(_user_id(client, who)))
    if json:
        output.print_json(removed)
        return
    output.say(f"{removed['member']['email']} is no longer a member.")
    if made := removed["organization_tokens"]:
        output.say(
            "They created these organization tokens, which still work. Rotate or delete those whose secrets they know:"
        )
        output.print_table(
            ("id", "name", "role"), [(token["id"], token["display_name"], token["role"]) for token in made]
        )


@app.command()
def leave(yes: Yes = False, json: Json = False) -> None:
    """Leave the organization; your tokens and sessions stop working at once."""
    if not yes:
        output.confirm("Leave the organization?")
    with open_client() as client:
        left = to_dict(client.members.leave())
    if json:
        output.print_json(left)
        return
    output.say("You are no longer a member.")


def _user_id(client: "Client", who: str) -> str:
    """Return the id of the member with this address or external id; a user id as it is. Raises `MemberNotFound`."""
    if token_format.is_id(who):
        return who
    if "@" not in who:
        for member in client.members.list(external_id=who):
            return member.user_id
    else:
        key = email_address.parse(who).key
        for member in client.members.list(text=key):
            if email_address.parse(member.email).key == key:
                return member.user_id
    raise MemberNotFound(f"{who} is not a member: see `rolecall members list`.")
