"""`rolecall whoami`."""

from rolecall.cli import output
from rolecall.cli.opening import Json, open_client, plain

__all__ = ["whoami"]


def whoami(json: Json = False) -> None:
    """Say whose ROLECALL_TOKEN is, and what it may do."""
    with open_client() as client:
        found = plain(client.session.who_am_i())
    if json:
        output.print_json(found)
        return
    organization, credential, member = found["organization"], found["credential"], found["member"]
    holder = f"{member['email']} (user {member['user_id']})" if member else found["token"]["name"]
    kind, until = credential["kind"].replace("_", " "), output.short_time(credential["expire_time"])
    output.print_value(f"{holder}, {found['role']} of {organization['id']} ({organization['display_name']})")
    output.print_value(f"{kind} {credential['id']}, works until {until}")
    for warning in organization["warnings"]:
        output.say(f"warning: {warning}")
    rows = [(item["resource"], item["action"], item["effect"]) for item in found["permissions"]]
    output.print_table(("resource", "action", "effect"), rows)
    if found["permission_count"] > len(rows):
        output.say(f"These are the first {len(rows)} of {found['permission_count']}.")
