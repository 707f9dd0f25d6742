"""`rolecall operator db`."""

from rolecall import config
from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import ConfigFile, Database, Json, KeyFile
from rolecall.credentials import server_key

__all__ = ["app"]

app = Commands("Upgrade the database's schema.")


@app.callback()
def _group() -> None:
    """Keep `upgrade` a subcommand: typer would merge an only command with its group."""


@app.command()
def upgrade(
    config_file: ConfigFile = None, database: Database = None, key_file: KeyFile = None, json: Json = False
) -> None:
    """Upgrade the schema to this version; does nothing if it is up to date."""
    from rolecall.audit import AuditLog, begin_first, check_key
    from rolecall.storage import Storage

    settings = config.load(config_file, database=database, key_file=key_file)
    storage = Storage(settings.database, password=settings.database_password)
    storage.require_file()
    log = AuditLog(server_key.read(settings.key_file))
    begun: list[str] = []
    storage.upgrade(lambda tx, found: begun.extend(begin_first(tx, log, found)))
    if warning := check_key(storage, log):
        output.say(f"warning: {warning}")
    storage.close()
    if json:
        output.print_json({"begun_audit_logs": begun, "key_id": log.signer.key_id})
        return
    for organization in begun:
        output.say(f"The audit log of {organization} starts now.")
    output.say(f"The schema is up to date; the audit logs are signed with the key {log.signer.key_id}.")
