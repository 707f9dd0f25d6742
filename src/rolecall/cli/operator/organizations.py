"""`rolecall operator organizations`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rolecall import config
from rolecall import policy as policies
from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import ConfigFile, Database, Json, KeyFile, open_database
from rolecall.domain import rfc3339

if TYPE_CHECKING:
    from rolecall.services.organizations import CreatedOrganization

__all__ = ["app", "show_created"]

app = Commands("Create and list organizations.")


@app.command()
def create(
    organization: Annotated[str, typer.Option(help="Its id: lower-case letters, digits, hyphens.")],
    owner: Annotated[str, typer.Option(help="The mail address of its first owner.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    policy: Annotated[Path | None, typer.Option(help="Folder with the policy files.")] = None,
    json: Json = False,
) -> None:
    """Create an organization with its first owner; print the owner's token, once."""
    from rolecall.policy.reload import load_in_force
    from rolecall.services import organizations

    folder = config.load(config_file, policy=policy).policy
    with open_database(config_file, database, key_file) as (storage, log):
        loaded, first = load_in_force(storage), None
        if loaded is None:
            loaded, first = policies.build_valid(folder, 0.3)
        founded = organizations.create(storage, log, loaded, organization, owner, first=first)
    show_created(founded, json)


@app.command("list")
def list_organizations(
    config_file: ConfigFile = None, database: Database = None, key_file: KeyFile = None, json: Json = False
) -> None:
    """List all organizations. CUT_OFF: the end of the audit log was removed, and nothing can be changed there."""
    from rolecall.storage import audit, organizations

    with open_database(config_file, database, key_file) as (storage, _):
        found, cut_off = storage.read(lambda tx: (organizations.list_all(tx), audit.organizations_without_head(tx)))
    header = ("organization", "name", "members", "created", "revision", "audit_log")
    table = [
        (
            item.organization.id,
            item.organization.display_name,
            item.members,
            output.short_time(rfc3339(item.organization.create_time)),
            item.organization.revision,
            "CUT_OFF" if item.organization.id in cut_off else "COMPLETE",
        )
        for item in found
    ]
    if json:
        output.print_json([dict(zip(header, row, strict=True)) for row in table])
    else:
        output.print_table(header, [[str(value) for value in row] for row in table])


def show_created(created: "CreatedOrganization", json: bool) -> None:
    """Print the first owner's token alone on standard output; with `json`, the organization and its members too."""
    members, organization = (created.owner, *created.others), created.organization.id
    if json:
        output.print_json(
            {
                "organization": organization,
                "members": [{"user_id": item.user_id, "email": item.email, "role": item.role} for item in members],
                "token": {"id": created.token.id, "user_id": created.owner.user_id},
                "secret": created.token.text,
            }
        )
        return
    for member in members:
        output.say(f"{member.email} is {member.role} of {organization}.")
    output.say(f"The token of {created.owner.email}, shown this once, is valid for 90 days:")
    output.print_value(created.token.text)
