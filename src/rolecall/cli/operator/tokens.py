"""`rolecall operator tokens`."""

from typing import Annotated

import typer

from rolecall.cli import output
from rolecall.cli.connect import ConfigFile, Database, KeyFile, Organization, open_database

__all__ = ["app"]

app = typer.Typer(help="Issue and revoke tokens.", no_args_is_help=True)


@app.command()
def issue(
    organization: Organization,
    email: Annotated[str, typer.Option(help="The member's mail address.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
) -> None:
    """Print a new token for a member, once. Older tokens stay valid."""
    from rolecall.services import operator_tokens
    from rolecall.services.token_rules import LIFE_DAYS

    with open_database(config_file, database, key_file) as (storage, log):
        minted = operator_tokens.issue(storage, log, organization, email)
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
    """Revoke a token. Running servers refuse it within a second."""
    from rolecall.services import operator_tokens

    with open_database(config_file, database, key_file) as (storage, log):
        operator_tokens.revoke(storage, log, organization, token_id)
    output.say(f"The token {token_id} is revoked.")
