"""Permissions of the caller: those of its role and of the roles assigned to it, under its credential's restriction."""

from rolecall.domain import (
    NEVER,
    ORGANIZATION,
    AssignedRoles,
    Caller,
    Reason,
    Subject,
    SubjectKind,
    covering_scopes,
    now,
)
from rolecall.domain.spelling import suggest
from rolecall.errors import PermissionMissing, PersonOnly, RoleBeyondCaller, UnknownRoleName
from rolecall.policy import (
    Conditional,
    Evaluate,
    HeldPermissions,
    Policy,
    RoleReasons,
    held_at,
    is_within,
    join_names,
    permits,
)
from rolecall.services.conditions import TOKEN, USER, QuestionValues
from rolecall.storage.members import RolesAtScopes

__all__ = [
    "decide",
    "held",
    "is_beyond",
    "is_self",
    "may",
    "require",
    "require_any",
    "require_handling",
    "require_handling_all",
    "require_known",
    "require_person",
    "roles_that_may",
]


def decide(policy: Policy, caller: Caller, action: str, resource: str, scope: str) -> Reason:
    """Decide on the caller's present roles, without regard to a restriction.

    Conditions get what the server itself knows, and no `context`: a caller could say anything of where it calls from.
    """
    if not caller.assigned:
        reason = policy.reason(caller.role, action, resource)
        if isinstance(reason, Conditional):
            reason = reason.reason(_evaluator(policy, caller, (caller.role,), action, resource, scope))
        return reason
    roles = (caller.role, *caller.assigned.applicable(scope, resource, now()).names)
    reasons, _ = policy.reason_of_roles(roles, action, resource)
    if isinstance(reasons, RoleReasons):
        return reasons.decide(_evaluator(policy, caller, roles, action, resource, scope))[0]
    return reasons


def _evaluator(
    policy: Policy, caller: Caller, roles: tuple[str, ...], action: str, resource: str, scope: str
) -> Evaluate:
    kind, identifier = (USER, caller.user_id) if caller.user_id else (TOKEN, caller.credential_id)
    subject = (kind, identifier, caller.email_key)
    return policy.evaluator(QuestionValues(subject, roles, action, resource, scope, now()))


def may(policy: Policy, caller: Caller, action: str, resource: str, scope: str = ORGANIZATION) -> bool:
    """Whether the caller may do `action` on `resource` in `scope`."""
    granted = decide(policy, caller, action, resource, scope) is Reason.GRANTED
    return granted and (caller.restriction is None or permits(caller.restriction, action, resource, scope))


def require(policy: Policy, caller: Caller, action: str, resource: str, scope: str = ORGANIZATION) -> None:
    """Raise `PermissionMissing` unless the caller may do `action` on `resource` in `scope`."""
    if decide(policy, caller, action, resource, scope) is not Reason.GRANTED:
        where = f" in `{scope}`" if scope else ""
        raise PermissionMissing(
            f"The credential's holder has the role {caller.role}, which may not `{resource} {action}`{where}:"
            f" ask somebody with one of the roles that may ({join_names(policy.roles_that_may(action, resource))}).",
            action=action,
            resource=resource,
        )
    if not permits(caller.restriction, action, resource, scope):
        raise PermissionMissing(
            f"The credential is restricted, and `{resource} {action}` is not within its restriction:"
            " use a credential that has it.",
            action=action,
            resource=resource,
        )


def is_self(caller: Caller, subject: Subject) -> bool:
    """Whether the subject is the caller, decided without a lookup."""
    match subject.kind:
        case SubjectKind.USER_ID:
            return subject.value == caller.user_id != ""
        case SubjectKind.EMAIL:
            return subject.value == caller.email_key != ""
        case SubjectKind.TOKEN_ID | SubjectKind.PRESENTED:
            return subject.value == caller.credential_id
        case SubjectKind.ROLE:
            return False
        case SubjectKind.EXTERNAL_ID:
            return subject.value == caller.external_id != ""


def require_person(caller: Caller, what: str) -> None:
    """Raise `PersonOnly` unless a person holds the credential. `what` completes the message "may not ..."."""
    if not caller.user_id:
        raise PersonOnly(f"An organization token may not {what}, whatever its role: use a person's credential.")


def held(policy: Policy, caller: Caller, scope: str = ORGANIZATION, until: int = NEVER) -> HeldPermissions:
    """Return what the caller may at the whole of `scope`, at least until the time `until`."""
    return held_at(policy, caller.role, caller.assigned.at(now()), caller.restriction, scope, until)


def is_beyond(policy: Policy, caller: Caller, role: str, scope: str = ORGANIZATION, until: int = NEVER) -> bool:
    """Whether a role is an owner's, or has a permission that the caller lacks at `scope` until the time `until`.

    See docs/concepts.md, rule 1.
    """
    return role in policy.owner_roles or not is_within(policy, role, held(policy, caller, scope, until))


def require_known(policy: Policy, role: str, field: str) -> None:
    """Raise `UnknownRoleName` for `field` unless the policy has the role."""
    if role not in policy.roles:
        advice = suggest(role, policy.roles, f"choose one of {join_names(policy.roles)}.")
        raise UnknownRoleName(f"The policy has no role `{role}`: {advice}", field=field, role=role)


def roles_that_may(
    policy: Policy, action: str, resource: str, scope: str = ORGANIZATION, *, conditional: bool = False
) -> RolesAtScopes:
    """Return the roles of members who may do `action` on `resource` in `scope` now, whatever the circumstances.

    With `conditional`, of those who may in some circumstances: if the conditions of rules hold, or don't.
    """
    reasons = {role: policy.reason(role, action, resource) for role in policy.roles}
    return RolesAtScopes(
        [role for role, reason in reasons.items() if reason is Reason.GRANTED or (conditional and _may_allow(reason))],
        [
            role
            for role, reason in reasons.items()
            if reason is Reason.FORBIDDEN or (not conditional and _may_deny(reason))
        ],
        list({*covering_scopes(scope), *covering_scopes(resource)}),
        now(),
    )


def _may_allow(reason: Reason | Conditional) -> bool:
    return isinstance(reason, Conditional) and (bool(reason.allows) or reason.otherwise is Reason.GRANTED)


def _may_deny(reason: Reason | Conditional) -> bool:
    return isinstance(reason, Conditional) and bool(reason.denies)


def require_any(policy: Policy, caller: Caller, verb: str) -> None:
    """Raise `PermissionMissing` unless the caller may `verb` (invite, update, remove) people with at least one role."""
    if not may(policy, caller, verb, "owners"):
        require(policy, caller, verb, "members")


def require_handling(policy: Policy, caller: Caller, verb: str, role: str, field: str = "") -> None:
    """Raise unless the caller may `verb` (invite, update, remove) people to or from a role (docs/concepts.md, rule 1).

    Raises `PermissionMissing` if the caller may `verb` nobody, `RoleBeyondCaller` if it may, but not for this role.
    """
    _require_handling(policy, caller, verb, role, field, beyond=is_beyond(policy, caller, role))


def require_handling_all(
    policy: Policy, caller: Caller, verb: str, role: str, assigned: AssignedRoles, field: str = ""
) -> None:
    """Raise unless the caller may `verb` people with this role and these assigned ones, as `require_handling` does."""
    require_handling(policy, caller, verb, role, field)
    for each in assigned.at(now()).roles:
        beyond = is_beyond(policy, caller, each.role, each.scope, each.expire_time)
        _require_handling(policy, caller, verb, each.role, field, beyond=beyond)


def _require_handling(policy: Policy, caller: Caller, verb: str, role: str, field: str, *, beyond: bool) -> None:
    if not beyond:
        require(policy, caller, verb, "members")
    elif not may(policy, caller, verb, "owners"):
        require(policy, caller, verb, "members")
        what = "may `owners update`" if role in policy.owner_roles else "has permissions that the credential lacks"
        raise RoleBeyondCaller(
            f"{role} {what}, so this takes `owners {verb}`: choose another role, or ask somebody who may"
            f" ({join_names(policy.roles_that_may(verb, 'owners'))}).",
            field=field,
            role=role,
            action=verb,
            resource="owners",
        )
