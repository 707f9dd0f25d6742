"""`rolecall tokens`: for the operator, who works on the database itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rolecall import config
from rolecall.cli import output

if TYPE_CHECKING:
    from rolecall.storage import Storage

__all__ = ["app"]

app = typer.Typer(help="Help whoever lost a token, at the database.", no_args_is_help=True)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")]
Database = Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")]
Organization = Annotated[str, typer.Option(help="The organization's name.")]


@app.command()
def issue(
    organization: Organization,
    email: Annotated[str, typer.Option(help="The member's mail address.")],
    config_file: ConfigFile = None,
    database: Database = None,
) -> None:
    """Print a new token for a member, once. Older ones stay valid."""
    from rolecall import tokens as service

    storage = _open(config_file, database)
    minted = service.issue(storage, organization, email)
    storage.close()
    output.say(f"The token {minted.id} of {email}, shown this once, is valid for {service.LIFE_DAYS} days:")
    output.print_value(minted.text)


@app.command()
def revoke(
    organization: Organization,
    token_id: Annotated[str, typer.Option("--id", help="The token's id: the part between its two underscores.")],
    config_file: ConfigFile = None,
    database: Database = None,
) -> None:
    """Kill a token, at once and for ever."""
    from rolecall import tokens as service

    storage = _open(config_file, database)
    service.revoke(storage, organization, token_id)
    storage.close()
    output.say(f"The token {token_id} is dead.")


def _open(config_file: Path | None, database: str | None) -> "Storage":
    from rolecall.storage import Storage

    storage = Storage(config.load(config_file, database=database).database)
    storage.check()
    return storage
