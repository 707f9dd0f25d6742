"""`rolecall operator organizations`."""

from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall import policy as policies
from rolecall.cli import output
from rolecall.cli.connect import ConfigFile, Database, Json, KeyFile, open_database
from rolecall.domain import rfc3339

__all__ = ["app"]

app = typer.Typer(help="Create and list organizations.", no_args_is_help=True)


@app.command()
def create(
    organization: Annotated[str, typer.Option(help="Its id: lower-case letters, digits, hyphens.")],
    owner: Annotated[str, typer.Option(help="The mail address of its first owner.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    policy: Annotated[Path | None, typer.Option(help="Folder with the policy files.")] = None,
) -> None:
    """Create an organization with its first owner; print the owner's token, once."""
    from rolecall.policy.reload import load_in_force
    from rolecall.services import organizations

    folder = config.load(config_file, policy=policy).policy
    with open_database(config_file, database, key_file) as (storage, log):
        loaded = load_in_force(storage) or policies.load(folder, 0.3)
        founded = organizations.create(storage, log, loaded, organization, owner)
    output.say(f"{founded.owner.email} is {founded.owner.role} of {organization}.")
    output.say(f"The token of {founded.owner.email}, shown this once, is valid for 90 days:")
    output.print_value(founded.token.text)


@app.command("list")
def list_organizations(
    config_file: ConfigFile = None, database: Database = None, key_file: KeyFile = None, json: Json = False
) -> None:
    """List all organizations."""
    from rolecall.storage import organizations as rows

    with open_database(config_file, database, key_file) as (storage, _):
        found = storage.read(rows.list_all)
    header = ("organization", "name", "members", "created", "revision")
    table = [
        (
            item.organization.id,
            item.organization.display_name,
            item.members,
            output.short_time(rfc3339(item.organization.create_time)),
            item.organization.revision,
        )
        for item in found
    ]
    if json:
        output.print_json([dict(zip(header, row, strict=True)) for row in table])
    else:
        output.print_table(header, [[str(value) for value in row] for row in table])
