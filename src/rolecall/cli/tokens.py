"""`rolecall tokens`: through a server for those who hold a token, and at the database for the operator."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.opening import ConfigFile, Database, Json, KeyFile, Organization, open_client, open_database, plain
from rolecall.errors import CallFailed, InvalidField

__all__ = ["app"]

app = typer.Typer(help="Create, list, rotate and delete tokens.", no_args_is_help=True)

TokenId = Annotated[str, typer.Argument(metavar="ID", help="The token's id: the part between its two underscores.")]


class Kind(StrEnum):
    """Whose tokens are listed."""

    ALL = "all"
    PERSONAL = "personal"
    ORGANIZATION = "organization"


class State(StrEnum):
    """In which state the listed tokens are."""

    ALL = "all"
    LIVE = "live"
    EXPIRED = "expired"
    DELETED = "deleted"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call it, as in laptop.")],
    role: Annotated[str | None, typer.Option(help="Make it an organization's token, with this role.")] = None,
    restrict: Annotated[
        list[str] | None,
        typer.Option(help="A permission to cut it down to, as in 'authorization check'; may be repeated."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=365, help="For how long it works; 90 without it.")] = None,
    json: Json = False,
) -> None:
    """Print a new token for yourself, or with --role for a program, once."""
    expires = None if days is None else timedelta(days=days)
    restriction = [_permission(text) for text in restrict] if restrict else None
    with open_client() as client:
        if role is None:
            made = plain(client.tokens.create_personal(name, expires=expires, restriction=restriction))
        else:
            made = plain(client.tokens.create_organization(name, role, expires=expires, restriction=restriction))
    _show_issued(made, json)


@app.command("list")
def list_tokens(
    kind: Annotated[Kind, typer.Option(help="Whose.")] = Kind.ALL,
    user: Annotated[str, typer.Option(metavar="USER_ID", help="Of this person only.")] = "",
    state: Annotated[State, typer.Option(help="In which state.")] = State.LIVE,
    json: Json = False,
) -> None:
    """List the tokens that you may see, the newest first."""
    with open_client() as client:
        tokens = client.tokens.list(
            kind="" if kind is Kind.ALL else kind.value,
            user_id=user,
            state="" if state is State.ALL else state.value,
        )
        found = [plain(token) for token in tokens]
    if json:
        output.print_json(found)
        return
    rows = [
        (
            token["id"],
            f"{token['prefix']}_…{token['last_four']}",
            token["name"],
            token["role"],
            _bound(token),
            token["user_id"] or "(organization)",
            output.day(token["create_time"]),
            token["created_by"],
            output.day(token["expire_time"]),
            output.day(token["last_used_time"]) or "never",
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
        float, typer.Option(metavar="HOURS", min=0, max=24, help="For how long the old secret works yet, 0 to 24.")
    ] = 0,
    json: Json = False,
) -> None:
    """Print a token's new secret, once. Its id, role and expiry stay."""
    span = timedelta(hours=overlap)
    with open_client() as client:
        made = plain(client.tokens.rotate(token_id, overlap=span))
    _show_issued(made, json)


@app.command()
def delete(token_id: TokenId) -> None:
    """Kill a token, at once and for ever."""
    with open_client() as client:
        client.tokens.delete(token_id)
    output.say(f"The token {token_id} is dead.")


@app.command()
def issue(
    organization: Organization,
    email: Annotated[str, typer.Option(help="The member's mail address.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
) -> None:
    """For the operator, at the database: print a new token for a member, once. Older ones stay valid."""
    from rolecall import operator
    from rolecall.token_rules import LIFE_DAYS

    with open_database(config_file, database, key_file) as (storage, log):
        minted = operator.issue(storage, log, organization, email)
    output.say(f"The token {minted.id} of {email}, shown this once, is valid for {LIFE_DAYS} days:")
    output.print_value(minted.text)


@app.command()
def revoke(
    organization: Organization,
    token_id: Annotated[str, typer.Option("--id", help="The token's id: the part between its two underscores.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
) -> None:
    """For the operator, at the database: kill a token for ever. Servers know within a second."""
    from rolecall import operator

    with open_database(config_file, database, key_file) as (storage, log):
        operator.revoke(storage, log, organization, token_id)
    output.say(f"The token {token_id} is dead.")


def _permission(text: str) -> tuple[str, str]:
    words = text.split()
    if len(words) != 2:
        raise InvalidField(
            f"`{text}` is no permission: give a resource and an action, as in 'authorization check'.", field="restrict"
        )
    return words[0], words[1]


def _show_issued(issued: dict[str, Any], json: bool) -> None:
    """The secret alone on standard output; in JSON, all of it."""
    token = issued["token"]
    if issued["secret_lost"]:
        raise CallFailed(
            f"The token {token['id']} was made, but its secret was lost with the first answer: run"
            f" `rolecall tokens rotate {token['id']}` for another, or delete it."
        )
    if json:
        output.print_json(issued)
        return
    bound = f", restricted to {_bound(token)}" if token["restriction"] else ""
    output.say(
        f"The token {token['id']} ({token['name']}, {token['role']}{bound}), shown this once, works until"
        f" {output.short_time(token['expire_time'])}:"
    )
    output.print_value(issued["secret"])


def _bound(token: dict[str, Any]) -> str:
    permissions = token["restriction"]["permissions"] if token["restriction"] else []
    return ", ".join(f"{item['resource']} {item['action']}" for item in permissions)
