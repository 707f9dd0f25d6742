"""Rule that no two members and pending invitations of an organization have the same external id."""

from collections.abc import Mapping

from rolecall.errors import ExternalIdTaken
from rolecall.services.unit_of_work import ChangeContext
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import members as member_rows

__all__ = ["take", "taken_errors"]


def taken_errors(context: ChangeContext, external_ids: Mapping[str, str]) -> list[ExternalIdTaken]:
    """Return an error for each external id, by its field, that is in use or stands in an earlier field."""
    if not external_ids:
        return []
    organization, values = context.caller.organization, set(external_ids.values())
    members = member_rows.roles_by_external_id(context.tx, organization, values)
    invited = invitation_rows.pending_with_external_ids(context.tx, organization, values, context.at)
    first: dict[str, str] = {}
    errors: list[ExternalIdTaken] = []
    for field, external_id in external_ids.items():
        if external_id in members:
            user_id = members[external_id][1]
            message = f"The member `{user_id}` has the external id `{external_id}`: change that first."
            errors.append(ExternalIdTaken(message, field=field, user_id=user_id))
        elif external_id in invited:
            message = f"The invitation `{invited[external_id]}` has the external id `{external_id}`: change that first."
            errors.append(ExternalIdTaken(message, field=field, id=invited[external_id]))
        elif external_id in first:
            message = f"`{external_id}` is the external id of {first[external_id]} too: leave one out."
            errors.append(ExternalIdTaken(message, field=field))
        # Of the entry that has the field.
        first.setdefault(external_id, field.rpartition(".")[0])
    return errors


def take(context: ChangeContext, external_id: str, field: str) -> None:
    """Make sure that a member or an invitation can get the external id; an empty one always can.

    Raises `ExternalIdTaken` for `field`.
    """
    if not external_id:
        return
    if errors := taken_errors(context, {field: external_id}):
        raise errors[0]
    # For good, even where the clock is set back.
    invitation_rows.expire(context.tx, context.caller.organization, context.at, external_ids=[external_id])
