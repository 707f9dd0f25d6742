"""Permissions of the caller: those of its present role, restricted to the presented credential's restriction."""

from rolecall.domain import Caller, Reason
from rolecall.errors import PermissionMissing, PersonOnly, RoleBeyondCaller, UnknownRoleName
from rolecall.policy import Policy, is_within, join_names, permits
from rolecall.spelling import suggest

__all__ = ["is_beyond", "may", "require", "require_any", "require_handling", "require_known", "require_person"]


def may(policy: Policy, caller: Caller, action: str, resource: str) -> bool:
    """Whether the caller may do `action` on `resource`."""
    granted = policy.reason(caller.role, action, resource) is Reason.GRANTED
    return granted and (caller.restriction is None or permits(caller.restriction, action, resource))


def require(policy: Policy, caller: Caller, action: str, resource: str) -> None:
    """Raise `PermissionMissing` unless the caller may do `action` on `resource`."""
    if policy.reason(caller.role, action, resource) is not Reason.GRANTED:
        raise PermissionMissing(
            f"The credential's holder has the role {caller.role}, which may not `{resource} {action}`:"
            f" ask somebody with one of the roles that may ({join_names(policy.roles_that_may(action, resource))}).",
            action=action,
            resource=resource,
        )
    if not permits(caller.restriction, action, resource):
        raise PermissionMissing(
            f"The credential is restricted, and `{resource} {action}` is not within its restriction:"
            " use a credential that has it.",
            action=action,
            resource=resource,
        )


def require_person(caller: Caller, what: str) -> None:
    """Raise `PersonOnly` unless a person holds the credential. `what` completes the message "may not ..."."""
    if not caller.user_id:
        raise PersonOnly(f"An organization token may not {what}, whatever its role: use a person's credential.")


def is_beyond(policy: Policy, caller: Caller, role: str) -> bool:
    """Whether a role is an owner's, or has a permission that the caller lacks (docs/concepts.md, rule 1)."""
    return role in policy.owner_roles or not is_within(policy, role, caller.role, caller.restriction)


def require_known(policy: Policy, role: str, field: str) -> None:
    """Raise `UnknownRoleName` for `field` unless the policy has the role."""
    if role not in policy.roles:
        advice = suggest(role, policy.roles, f"choose one of {join_names(policy.roles)}.")
        raise UnknownRoleName(f"The policy has no role `{role}`: {advice}", field=field, role=role)


def require_any(policy: Policy, caller: Caller, verb: str) -> None:
    """Raise `PermissionMissing` unless the caller may `verb` (invite, update, remove) people with at least one role."""
    if not may(policy, caller, verb, "owners"):
        require(policy, caller, verb, "members")


def require_handling(policy: Policy, caller: Caller, verb: str, role: str, field: str = "") -> None:
    """Raise unless the caller may `verb` (invite, update, remove) people to or from a role (docs/concepts.md, rule 1).

    Raises `PermissionMissing` if the caller may `verb` nobody, `RoleBeyondCaller` if it may, but not for this role.
    """
    if not is_beyond(policy, caller, role):
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
