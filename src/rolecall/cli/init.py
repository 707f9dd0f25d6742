"""`rolecall init`."""

from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall import policy as policies
from rolecall.cli import output
from rolecall.cli.connect import Json
from rolecall.cli.operator.organizations import show_created
from rolecall.credentials import server_key
from rolecall.errors import ConfigError, OrganizationExists
from rolecall.policy import shipped

__all__ = ["init"]

CASBIN_SECONDS = 0.3


def init(
    organization: Annotated[str, typer.Option(help="The organization's id: lower-case letters, digits, hyphens.")],
    owner: Annotated[str, typer.Option(help="The mail address of its first owner.")],
    demo: Annotated[bool, typer.Option("--demo", help="Add a member for each other role, to experiment with.")] = False,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Succeed, and change nothing, where the organization exists already.")
    ] = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Folder with the policy files.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File with the server's key; created if it doesn't exist.")
    ] = None,
    json: Json = False,
) -> None:
    """Create the database, the server's key, an organization and its first owner; print the owner's token, once.

    Where there is no policy, the shipped one is written to the policy folder.
    """
    from rolecall.audit import AuditLog, check_key
    from rolecall.policy.reload import load_in_force
    from rolecall.services import organizations
    from rolecall.storage import Storage
    from rolecall.storage import organizations as organization_rows

    settings = config.load(config_file, database=database, policy=policy, key_file=key_file)
    storage = Storage(settings.database, password=settings.database_password)
    is_new = storage.is_new()
    # Before the policy is read: a server serves the one in force where the folder's is broken.
    if if_missing and not is_new and storage.read(lambda tx: organization_rows.get(tx, organization)):
        storage.close()
        _say_that_it_exists(organization)
        return
    loaded, first = None if is_new else load_in_force(storage), None
    if loaded is None:
        if shipped.is_absent(settings.policy):
            shipped.write(settings.policy)
            output.say(f"The shipped policy is in {settings.policy}; it is yours to edit.")
        loaded, first = policies.build_valid(settings.policy, CASBIN_SECONDS)
    storage.create()
    if settings.key_file.exists():
        key = server_key.read(settings.key_file)
    elif storage.read(organization_rows.exists):
        raise ConfigError(
            f"The database has organizations, but their key file {settings.key_file} is missing:"
            " restore it, or set ROLECALL_KEY_FILE to where it is."
        )
    else:
        key = server_key.create(settings.key_file)
    log = AuditLog(key)
    if warning := check_key(storage, log):
        output.say(f"warning: {warning}")
    try:
        founded = organizations.create(storage, log, loaded, organization, owner, demo=demo, first=first)
    except OrganizationExists:
        # Another process has created it meanwhile.
        if not if_missing:
            raise
        storage.close()
        _say_that_it_exists(organization)
        return
    storage.close()
    show_created(founded, json)


def _say_that_it_exists(organization: str) -> None:
    output.say(f"The organization {organization} exists already: nothing was changed.")
