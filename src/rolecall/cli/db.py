"""`rolecall db`."""

import typer

from rolecall import config, keys
from rolecall.cli import output
from rolecall.cli.opening import ConfigFile, Database, KeyFile

__all__ = ["app"]

app = typer.Typer(help="Look after the database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `upgrade` a command of its own, alone as it is."""


@app.command()
def upgrade(config_file: ConfigFile = None, database: Database = None, key_file: KeyFile = None) -> None:
    """Bring the schema to what this version needs; nothing where it is there already."""
    from rolecall.audit import AuditLog, begin_first, check_key
    from rolecall.storage import Storage

    settings = config.load(config_file, database=database, key_file=key_file)
    storage = Storage(settings.database)
    storage.require_file()
    log = AuditLog(keys.read(settings.key_file))
    begun: list[str] = []
    storage.upgrade(lambda tx, found: begun.extend(begin_first(tx, log, found)))
    check_key(storage, log)
    storage.close()
    for organization in begun:
        output.say(f"The audit log of {organization} begins now.")
    output.say(f"The schema is up to date; the audit logs are signed with the key {log.seal.key_id}.")
