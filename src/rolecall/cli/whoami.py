"""`rolecall whoami`."""

from rolecall.cli import output
from rolecall.cli.connect import Json, open_client, to_dict

__all__ = ["whoami"]


def whoami(json: Json = False) -> None:
    """Print the holder of ROLECALL_TOKEN, and its permissions."""
    with open_client() as client:
        found = to_dict(client.session.who_am_i())
    if json:
        output.print_json(found)
        return
    organization, credential, member = found["organization"], found["credential"], found["member"]
    holder = f"{member['email']} (user {member['user_id']})" if member else found["token"]["display_name"]
    kind, until = credential["kind"].replace("_", " "), output.short_time(credential["expire_time"])
    output.print_value(f"{holder}, {found['role']} of {organization['id']} ({organization['display_name']})")
    output.print_value(f"{kind} {credential['id']}, works until {until}")
    for warning in organization["warnings"]:
        output.say(f"warning: {warning}")
    rows = [(item["resource"], item["action"], item["effect"]) for item in found["permissions"]]
    output.print_table(("resource", "action", "effect"), rows)
    if found["permission_count"] > len(rows):
        output.say(f"Only the first {len(rows)} are listed, of {found['permission_count']}.")
