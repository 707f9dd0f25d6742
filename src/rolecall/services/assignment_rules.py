"""Rules on who may assign which role to whom, and end it (docs/concepts.md, rules 1 and 7)."""

from collections.abc import Collection, Iterable

from rolecall.domain import AssignedRoles, Caller, Effect, Principal, PrincipalKind, RoleAssignment
from rolecall.errors import RoleBeyondCaller
from rolecall.policy import OWNERS, Policy, join_names
from rolecall.services.caller_permissions import is_beyond, may, require
from rolecall.services.unit_of_work import ChangeContext
from rolecall.storage import assignments as rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows

__all__ = [
    "CREATE",
    "DELETE",
    "MAX_PER_PRINCIPAL",
    "VIEW",
    "is_own",
    "may_update_owners",
    "may_view",
    "require_assignable_role",
    "require_changeable",
]

# Verbs of `assignments`.
CREATE, DELETE, VIEW = "create", "delete", "view"
# Maximum assignments of one principal, ended ones included: the cache holds all of them.
MAX_PER_PRINCIPAL = 10_000


def is_own(caller: Caller, principal: Principal) -> bool:
    """Whether what is assigned to a principal is the caller's: its own, or that of one of its teams."""
    match principal.kind:
        case PrincipalKind.USER:
            return principal.id == caller.user_id
        case PrincipalKind.TEAM:
            return principal.id in caller.assigned.teams
        case PrincipalKind.TOKEN:
            return not caller.user_id and principal.id == caller.credential_id


def may_view(policy: Policy, caller: Caller, assignment: RoleAssignment) -> bool:
    """Whether the caller may see an assignment: its own, or any with `assignments view` at its scope."""
    return is_own(caller, assignment.principal) or may(policy, caller, VIEW, "assignments", assignment.scope)


def may_update_owners(policy: Policy, caller: Caller) -> bool:
    """Whether the caller may `owners update` in the whole organization."""
    return may(policy, caller, OWNERS[1], OWNERS[0])


def require_assignable_role(policy: Policy, role: str, field: str) -> None:
    """Raise `RoleBeyondCaller` for `field` if a role has any rule on `owners update`: no such role is ever assigned.

    One that allows it would make an owner who doesn't count as one, and one that denies it would unmake an owner.
    """
    if role in policy.roles_ruled_on(*OWNERS):
        raise RoleBeyondCaller(
            f"{role} has a rule on `owners update`, and such a role is never assigned: choose another role, or give it"
            " with ChangeMemberRole.",
            field=field,
            role=role,
        )


def require_changeable(
    context: ChangeContext,
    verb: str,
    assignments: Iterable[RoleAssignment],
    affected: Collection[Principal],
    field: str = "",
) -> None:
    """Raise unless the caller may `verb` (create, delete) these assignments, which gives roles to those `affected`.

    It needs, for each, `assignments VERB` at its scope, and its role within what the caller may there itself until its
    end; or `owners update`. For a role that denies something, all that the affected may must lie within the caller, and
    the caller itself ends none of its own: otherwise it would take rights from others, or give itself those that were
    taken from it. The members that join a team, or leave it, are affected by all that is assigned to the team.
    Raises `PermissionMissing`, `RoleBeyondCaller` for `field`.
    """
    policy, caller = context.policy, context.caller
    if may_update_owners(policy, caller):
        return
    denying = ""
    for each in assignments:
        require(policy, caller, verb, "assignments", each.scope)
        if is_beyond(policy, caller, each.role, each.scope, each.expire_time):
            raise _beyond(policy, each.role, "has permissions that the credential itself lacks there", field)
        if _denies(policy, each.role):
            denying = each.role
    if not denying:
        return
    if verb == DELETE and any(is_own(caller, principal) for principal in affected):
        raise _beyond(policy, denying, "denies you something", field)
    if not all(_is_within_caller(context, principal) for principal in affected):
        raise _beyond(policy, denying, "denies something, and its holder may more than the credential", field)


def _denies(policy: Policy, role: str) -> bool:
    return any(permission.effect is Effect.DENY for permission in policy.permissions_of(role))


def _is_within_caller(context: ChangeContext, principal: Principal) -> bool:
    """Whether all that a principal may lies within what the caller may; never for a team, whose members change."""
    tx, policy, caller = context.tx, context.policy, context.caller
    role: str | None = None
    match principal.kind:
        case PrincipalKind.USER:
            member = member_rows.get(tx, caller.organization, principal.id)
            role = member.role if member else None
        case PrincipalKind.TOKEN:
            token = token_rows.get(tx, caller.organization, principal.id)
            role = token.role if token else None
        case PrincipalKind.TEAM:
            pass
    if role is None or is_beyond(policy, caller, role):
        return False
    assigned: AssignedRoles = rows.assigned(tx, caller.organization, [principal])[principal]
    return not any(
        is_beyond(policy, caller, each.role, each.scope, each.expire_time) for each in assigned.at(context.at).roles
    )


def _beyond(policy: Policy, role: str, why: str, field: str) -> RoleBeyondCaller:
    updaters = join_names(policy.roles_that_may(OWNERS[1], OWNERS[0]))
    return RoleBeyondCaller(
        f"{role} {why}, so this takes `owners update`: choose another role, or ask somebody who may ({updaters}).",
        field=field,
        role=role,
        action=OWNERS[1],
        resource=OWNERS[0],
    )
