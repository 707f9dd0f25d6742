"""`rolecall operator policy`."""

from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall import policy as policies
from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import ConfigFile, Database, Json, KeyFile, open_database
from rolecall.errors import InvalidField

__all__ = ["app"]

app = Commands("Activate a policy for all servers.")


@app.callback()
def _group() -> None:
    """Keep `activate` a subcommand: typer would merge an only command with its group."""


@app.command()
def activate(
    move: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Give the holders of a role that goes this one; may be repeated."),
    ] = None,
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    policy: Annotated[Path | None, typer.Option(help="Folder with the policy files.")] = None,
    json: Json = False,
) -> None:
    """Put a policy in force on all servers of the database; first give holders of dropped roles other roles."""
    from rolecall.services import operator_policy
    from rolecall.services.organizations import operator_name

    moves: dict[str, str] = {}
    for old, new in map(_move, move or ()):
        if moves.setdefault(old, new) != new:
            raise InvalidField(f"--move gives the holders of {old} two roles: choose one.", field="move")
    folder = config.load(config_file, policy=policy).policy
    _, built = policies.build_valid(folder, 2.0)
    with open_database(config_file, database, key_file) as (storage, log):
        activated = operator_policy.activate(storage, log, built, moves, operator_name())
    if json:
        output.print_json(
            {
                "policy_version": activated.activation.version,
                "moved_holders": activated.holders,
                "moved_organizations": activated.organizations,
            }
        )
        return
    if moves:
        output.say(f"{activated.holders} holders in {activated.organizations} organizations got another role.")
    output.say(f"The policy {activated.activation.version} is in force.")
    output.say("Give all servers these files, too: one that starts with others puts those in force.")


def _move(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not old or not equals or not new:
        raise InvalidField(f"--move {text} is not OLD=NEW: name a role and the one that replaces it.", field="move")
    return old, new
