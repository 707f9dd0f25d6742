"""`rolecall init`."""

from pathlib import Path
from typing import Annotated

import typer

from rolecall import config, keys
from rolecall import policy as policies
from rolecall.cli import output
from rolecall.errors import ConfigError

__all__ = ["init"]

ORACLE_SECONDS = 0.3


def init(
    organization: Annotated[str, typer.Option(help="The organization's name: lower-case letters, digits, hyphens.")],
    owner: Annotated[str, typer.Option(help="The mail address of its first owner.")],
    demo: Annotated[bool, typer.Option("--demo", help="Add a member for each other role, to try things out.")] = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The folder with the policy's files.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="Where the server's key is, or will be.")] = None,
) -> None:
    """Create the database, the server's key, an organization and its first owner; print the owner's token, once."""
    from rolecall import organizations
    from rolecall.audit import AuditLog, check_key
    from rolecall.storage import Storage
    from rolecall.storage import organizations as organization_rows

    settings = config.load(config_file, database=database, policy=policy, key_file=key_file)
    loaded = policies.load(settings.policy, ORACLE_SECONDS)
    storage = Storage(settings.database)
    storage.create()
    if settings.key_file.exists():
        key = keys.read(settings.key_file)
    elif storage.read(organization_rows.exists):
        raise ConfigError(
            f"The database has organizations, but their key file {settings.key_file} is missing:"
            " restore it, or set ROLECALL_KEY_FILE to where it is."
        )
    else:
        key = keys.create(settings.key_file)
    log = AuditLog(key)
    check_key(storage, log)
    founded = organizations.found(storage, log, loaded, organization, owner, demo=demo)
    storage.close()
    for member in (founded.owner, *founded.others):
        output.say(f"{member.email} is {member.role} of {organization}.")
    output.say(f"The token of {founded.owner.email}, shown this once, is valid for 90 days:")
    output.print_value(founded.token.text)
