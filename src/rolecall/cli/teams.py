"""`rolecall teams`: teams and their members, through a server. Roles are assigned to them by `rolecall assignments`."""

from typing import Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, to_dict

__all__ = ["app"]

app = Commands("Keep teams of members, to which roles are assigned.")

TeamId = Annotated[str, typer.Argument(metavar="TEAM", help="The team's id, as in payments.")]
People = Annotated[
    list[str],
    typer.Argument(metavar="MEMBER", help="The members: addresses, or user:<id or external id>."),
]


@app.command()
def create(
    team_id: TeamId,
    name: Annotated[str, typer.Option(help="Display name; default: the id.")] = "",
    json: Json = False,
) -> None:
    """Create a team without members."""
    with open_client() as client:
        made = to_dict(client.teams.create(team_id, display_name=name))
    if json:
        output.print_json(made)
        return
    output.say(f"The team {team_id} is created. See `rolecall teams add` and `rolecall assignments create`.")


@app.command("list")
def list_teams(
    user: Annotated[str, typer.Option(metavar="USER_ID", help="Only teams of this person.")] = "",
    json: Json = False,
) -> None:
    """List the teams."""
    with open_client() as client:
        found = [to_dict(team) for team in client.teams.list(user_id=user)]
    if json:
        output.print_json(found)
        return
    _print_teams(found)


@app.command()
def show(team_id: TeamId, json: Json = False) -> None:
    """Print one team."""
    with open_client() as client:
        team = to_dict(client.teams.get(team_id))
    if json:
        output.print_json(team)
        return
    _print_teams([team])


@app.command()
def rename(
    team_id: TeamId, name: Annotated[str, typer.Argument(help="The new display name.")], json: Json = False
) -> None:
    """Give a team another display name. Its id stays."""
    with open_client() as client:
        changed = to_dict(client.teams.update(team_id, name))
    if json:
        output.print_json(changed)
        return
    output.say(f"The team {team_id} is named {changed['team']['display_name']} now.")


@app.command()
def delete(team_id: TeamId, json: Json = False) -> None:
    """Delete a team; what is assigned to it ends at once."""
    with open_client() as client:
        deleted = to_dict(client.teams.delete(team_id))
    if json:
        output.print_json(deleted)
        return
    output.say(f"The team {team_id} is deleted, and its role assignments have ended.")


@app.command()
def add(team_id: TeamId, people: People, json: Json = False) -> None:
    """Add members to a team, all or none; they have the team's roles at once."""
    with open_client() as client:
        changed = to_dict(client.teams.add_members(team_id, people))
    _print_changed(changed, json)


@app.command()
def remove(team_id: TeamId, people: People, json: Json = False) -> None:
    """Remove members from a team, all or none; they lose the team's roles at once."""
    with open_client() as client:
        changed = to_dict(client.teams.remove_members(team_id, people))
    _print_changed(changed, json)


@app.command()
def members(team_id: TeamId, json: Json = False) -> None:
    """List the members of a team."""
    with open_client() as client:
        found = [to_dict(member) for member in client.teams.members(team_id)]
    if json:
        output.print_json(found)
        return
    rows = [(item["email"], item["display_name"], item["role"], item["user_id"]) for item in found]
    output.print_table(("address", "name", "role", "user id"), rows)


def _print_teams(teams: list[dict[str, Any]]) -> None:
    rows = [
        (team["id"], team["display_name"], str(team["member_count"]), output.day(team["create_time"])) for team in teams
    ]
    output.print_table(("id", "name", "members", "since"), rows)


def _print_changed(changed: dict[str, Any], json: bool) -> None:
    if json:
        output.print_json(changed)
        return
    team = changed["team"]
    output.say(f"The team {team['id']} has {team['member_count']} members now.")
