"""`rolecall tokens`: create, list, rotate and delete tokens, through a server."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, to_dict
from rolecall.errors import CallFailed, InvalidField

__all__ = ["app"]

app = Commands("Create, list, rotate and delete tokens.")

TokenId = Annotated[str, typer.Argument(metavar="ID", help="The token's id: the part between its two underscores.")]


class Kind(StrEnum):
    """Kind of the tokens that are listed."""

    ALL = "all"
    PERSONAL = "personal"
    ORGANIZATION = "organization"


class State(StrEnum):
    """State of the listed tokens."""

    ACTIVE = "active"
    EXPIRED = "expired"
    DELETED = "deleted"


@app.command()
def create(
    display_name: Annotated[str, typer.Argument(metavar="NAME", help="Display name, as in laptop.")],
    role: Annotated[str | None, typer.Option(help="Create an organization token with this role.")] = None,
    restrict: Annotated[
        list[str] | None,
        typer.Option(help="Restrict the token to this permission, as in 'authorization check'; may be repeated."),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(help="Restrict the token to this path and what is beneath it, as in projects/billing."),
    ] = "",
    network: Annotated[
        list[str] | None,
        typer.Option(help="Let the token be used from this network only, as in 10.0.0.0/8; may be repeated."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=365, help="Days until it expires; default: 90.")] = None,
    json: Json = False,
) -> None:
    """Create a token for yourself, or with --role for a program; print it, once."""
    expires = None if days is None else timedelta(days=days)
    restriction = [_permission(text) for text in restrict] if restrict else None
    limits: Any = {
        "expires": expires,
        "restriction": restriction,
        "restriction_scope": scope,
        "networks": network or (),
    }
    with open_client() as client:
        if role is None:
            made = to_dict(client.tokens.create_personal(display_name, **limits))
        else:
            made = to_dict(client.tokens.create_organization(display_name, role, **limits))
    _show_issued(made, json)


@app.command("list")
def list_tokens(
    kind: Annotated[Kind, typer.Option(help="Only tokens of this kind.")] = Kind.ALL,
    user: Annotated[str, typer.Option(metavar="USER_ID", help="Only tokens of this person.")] = "",
    state: Annotated[State | None, typer.Option(help="Only tokens in this state.")] = None,
    show_deleted: Annotated[bool, typer.Option("--show-deleted", help="List deleted tokens too.")] = False,
    expires_within: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", min=0, max=36_500, help="Only active tokens that expire within this number of days."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the tokens that you may see, the newest first."""
    if expires_within is not None and not expires_within > 0:
        message = "--expires-within must be above 0 days: `--state expired` lists expired tokens."
        raise InvalidField(message, field="expires_within")
    with open_client() as client:
        tokens = client.tokens.list(
            kind="" if kind is Kind.ALL else kind.value,
            user_id=user,
            state=state.value if state else "",
            show_deleted=show_deleted,
            expires_within=None if expires_within is None else timedelta(days=expires_within),
        )
        found = [to_dict(token) for token in tokens]
    if json:
        output.print_json(found)
        return
    rows = [
        (
            token["id"],
            f"{token['prefix']}_…{token['last_four']}",
            token["display_name"],
            token["role"],
            _restriction(token),
            " ".join(token["networks"]),
            token["user_id"] or "(organization)",
            output.day(token["create_time"]),
            token["creator"],
            output.day(token["expire_time"]),
            output.day(token["last_use_time"]) or "never",
            token["state"],
        )
        for token in found
    ]
    header = (
        "id",
        "token",
        "name",
        "role",
        "restricted to",
        "networks",
        "holder",
        "created",
        "by",
        "expires",
        "last used",
        "state",
    )
    output.print_table(header, rows)


@app.command()
def rotate(
    token_id: TokenId,
    overlap: Annotated[
        float, typer.Option(metavar="HOURS", min=0, max=24, help="How long the old secret keeps working, 0 to 24.")
    ] = 0,
    json: Json = False,
) -> None:
    """Give a token a new secret; print it, once. Its id, role and expiry stay."""
    span = timedelta(hours=overlap)
    with open_client() as client:
        made = to_dict(client.tokens.rotate(token_id, overlap=span))
    _show_issued(made, json)


@app.command()
def delete(token_id: TokenId, json: Json = False) -> None:
    """Delete a token; it stops working at once."""
    with open_client() as client:
        deleted = to_dict(client.tokens.delete(token_id))
    if json:
        output.print_json(deleted)
        return
    output.say(f"The token {token_id} is deleted.")


def _permission(text: str) -> tuple[str, str]:
    words = text.split()
    if len(words) != 2:
        raise InvalidField(
            f"`{text}` is not a permission: give a resource and an action, as in 'authorization check'.",
            field="restrict",
        )
    return words[0], words[1]


def _show_issued(issued: dict[str, Any], json: bool) -> None:
    """Print the secret alone on standard output; with `json`, the whole response."""
    token = issued["token"]
    if issued["secret_lost"]:
        raise CallFailed(
            f"The token {token['id']} was created, but its secret was lost with the first response: run"
            f" `rolecall tokens rotate {token['id']}` for a new one, or delete it."
        )
    if json:
        output.print_json(issued)
        return
    restricted = f", restricted to {_restriction(token)}" if token["restriction"] else ""
    if token["networks"]:
        restricted += f", from {' '.join(token['networks'])} only"
    output.say(
        f"The token {token['id']} ({token['display_name']}, {token['role']}{restricted}), shown this once, works until"
        f" {output.short_time(token['expire_time'])}:"
    )
    output.print_value(issued["secret"])


def _restriction(token: dict[str, Any]) -> str:
    restriction = token["restriction"]
    if not restriction:
        return ""
    permissions = ", ".join(f"{item['resource']} {item['action']}" for item in restriction["permissions"])
    return " at ".join(filter(None, (permissions, restriction["scope"])))
