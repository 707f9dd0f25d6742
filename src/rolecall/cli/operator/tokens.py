"""`rolecall operator tokens`."""

from typing import Annotated

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import ConfigFile, Database, Json, KeyFile, Organization, open_database

__all__ = ["app"]

app = Commands("Issue and revoke tokens.")


@app.command()
def issue(
    organization: Organization,
    email: Annotated[str, typer.Option(help="The member's mail address.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Print a new token for a member, once. Older tokens stay valid."""
    from rolecall.services import operator_tokens
    from rolecall.services.token_rules import LIFE_DAYS

    with open_database(config_file, database, key_file) as (storage, log):
        minted = operator_tokens.issue(storage, log, organization, email)
    if json:
        output.print_json({"token": {"id": minted.id}, "secret": minted.text})
        return
    output.say(f"The token {minted.id} of {email}, shown this once, is valid for {LIFE_DAYS} days:")
    output.print_value(minted.text)


@app.command()
def revoke(
    organization: Organization,
    token_id: Annotated[str, typer.Option("--id", help="The token's id: the part between its two underscores.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Revoke a token. Running servers refuse it within a second."""
    from rolecall.services import operator_tokens

    with open_database(config_file, database, key_file) as (storage, log):
        operator_tokens.revoke(storage, log, organization, token_id)
    if json:
        output.print_json({"token": {"id": token_id, "state": "deleted"}})
        return
    output.say(f"The token {token_id} is revoked.")
