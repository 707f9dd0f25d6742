"""Rules on which tokens a caller may create, see, rotate and delete (docs/concepts.md, rules 1, 3 and 4)."""

from dataclasses import dataclass

from rolecall.domain import (
    NOTHING_ASSIGNED,
    ORGANIZATION,
    Caller,
    CredentialKind,
    Networks,
    Permission,
    Principal,
    PrincipalKind,
    Restriction,
    Token,
    TokenState,
    covers,
    now,
)
from rolecall.domain.spelling import suggest
from rolecall.errors import InvalidField, PermissionMissing, RoleBeyondCaller, TokenNotFound
from rolecall.formats.networks import format_networks, is_within
from rolecall.policy import Policy, held_at, is_restricted_within
from rolecall.services.caller_permissions import held, is_beyond, may, require, require_known, require_person
from rolecall.services.unit_of_work import ChangeContext
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import tokens as rows
from rolecall.storage.tokens import TokenQuery

__all__ = [
    "LIFE_DAYS",
    "TokenSpec",
    "end_of",
    "expiry_of",
    "require_deletable",
    "require_networks",
    "require_organization_role",
    "require_restriction",
    "require_rotatable",
    "visible_tokens",
]

# Default and maximum lifetime of a token (docs/concepts.md, Credentials).
LIFE_DAYS = 90
MAX_LIFE_DAYS = 365
# In microseconds.
DAY = 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """Specification of a new token: its name, expiry, restriction and networks.

    The token expires at `expire_time`, or after `life` microseconds, or, with neither, after the default lifetime.
    """

    display_name: str
    expire_time: int | None = None
    life: int | None = None
    restriction: Restriction | None = None
    networks: Networks = ()


def end_of(spec: TokenSpec, caller: Caller, at: int) -> int:
    """Return when the new token is to expire, whether it may or not."""
    if spec.life is not None:
        return at + spec.life
    if spec.expire_time is not None:
        return spec.expire_time
    default, bound = at + LIFE_DAYS * DAY, _latest(caller)
    return default if bound is None else min(default, bound)


def expiry_of(spec: TokenSpec, caller: Caller, at: int) -> int:
    """Return when the new token expires. Raises `InvalidField` if that is past, too far, or after the caller's own."""
    field = "ttl" if spec.expire_time is None else "expire_time"
    chosen, bound = end_of(spec, caller, at), _latest(caller)
    if chosen <= at:
        raise InvalidField(
            f"{field} is not in the future: give a later one, or leave it out for the default.", field=field
        )
    if chosen > at + MAX_LIFE_DAYS * DAY:
        raise InvalidField(f"{field} is more than {MAX_LIFE_DAYS} days from now: give an earlier one.", field=field)
    if bound is not None and chosen > bound:
        raise InvalidField(
            f"{field} is after the expiry of the token that this call is made with: give an earlier one, leave it out"
            " for that same expiry, or use a session.",
            field=field,
        )
    return chosen


def _latest(caller: Caller) -> int | None:
    """Return the latest expiry of what the caller creates: a token's own; None, for no bound, with a session."""
    return None if caller.kind is CredentialKind.SESSION else caller.expire_time


def require_networks(caller: Caller, networks: Networks, role: str) -> None:
    """Raise `RoleBeyondCaller` unless a new token works in the networks of the caller's credential only, if it has any.

    Otherwise a credential that was stolen could create one that works from everywhere.
    """
    if not is_within(networks, caller.networks):
        raise RoleBeyondCaller(
            f"The credential works from {', '.join(format_networks(caller.networks))} only, so what it creates must"
            " too: give networks within these.",
            field="networks",
            role=role,
        )


def require_restriction(context: ChangeContext, restriction: Restriction | None, role: str) -> None:
    """Raise unless each permission of a new token's restriction is in the policy, and the caller and `role` have it.

    With a scope, the caller must have it there. `role` is empty for a personal token, which has the caller's roles.
    Raises `RoleBeyondCaller`, `InvalidField`.
    """
    if restriction is None:
        if context.caller.restriction is not None:
            raise RoleBeyondCaller(
                "The credential is restricted, so what it creates must be too: give a restriction within its own.",
                field="restriction",
                role=role or context.caller.role,
            )
        return
    policy, caller = context.policy, context.caller
    bound = caller.restriction
    if bound is not None and not covers(bound.scope, restriction.scope):
        raise RoleBeyondCaller(
            f"The credential is restricted to the scope `{bound.scope}`, so what it creates must be too: give a scope"
            " within it.",
            field="restriction.scope",
            role=role or caller.role,
        )
    if restriction.permissions is None and bound is not None and bound.permissions is not None:
        raise RoleBeyondCaller(
            "The credential is restricted to some permissions, so what it creates must be too: give permissions within"
            " its own.",
            field="restriction.permissions",
            role=role or caller.role,
        )
    # What the caller has for a time only, the token can't have for longer: its holder's roles bound a personal token.
    of_caller = held(policy, caller, restriction.scope, until=now())
    of_role = held_at(policy, role, NOTHING_ASSIGNED, None, ORGANIZATION, 0) if role else of_caller
    for number, wanted in enumerate(restriction.permissions or ()):
        field = f"restriction.permissions[{number}]"
        permission = f"`{wanted.resource} {wanted.action}`"
        if not policy.mentions(wanted.resource, wanted.action):
            raise InvalidField(f"The policy has no rule on {permission}: {_meant(policy, wanted)}", field=field)
        if not of_caller.covers(wanted):
            raise RoleBeyondCaller(
                f"The credential itself may not {permission}, so no token that it creates may: leave it out, or use a"
                " credential that has the permission.",
                field=field,
                role=role or caller.role,
            )
        if not of_role.covers(wanted):
            raise InvalidField(
                f"The role {role} may not {permission}, so the token could not: leave it out, or choose another role.",
                field=field,
            )


def _meant(policy: Policy, unknown: Permission) -> str:
    """Return the advice about a permission that the policy has no rule on."""
    kind = unknown.resource.partition("/")[0]
    word, names = (unknown.action, policy.actions) if kind in policy.resource_types else (kind, policy.resource_types)
    return suggest(word, sorted(names), "see the policy's rules with ListRoles.")


def require_organization_role(
    context: ChangeContext, role: str, restriction: Restriction | None, until: int, field: str = "role"
) -> None:
    """Raise for `field` unless the caller may create an organization token with this role until this time.

    With a restriction to a scope, it is enough that the caller may there. Raises `PersonOnly`, `PermissionMissing`,
    `UnknownRoleName`, `RoleBeyondCaller`.
    """
    scope = restriction.scope if restriction else ORGANIZATION
    require_person(context.caller, "create tokens")
    policy = context.policy
    require(policy, context.caller, "create", "organization-tokens", scope)
    require_known(policy, role, field)
    if role in policy.owner_roles:
        raise RoleBeyondCaller(
            f"{role} may `owners update`, which no organization token may: choose another role.",
            field=field,
            role=role,
        )
    if is_beyond(policy, context.caller, role, scope, until):
        raise RoleBeyondCaller(
            f"{role} has permissions that the credential itself lacks: choose a role within its own"
            f" ({context.caller.role}{', restricted' if context.caller.restriction else ''}).",
            field=field,
            role=role,
        )


def visible_tokens(
    policy: Policy, caller: Caller, kind: CredentialKind | None, user_id: str, state: TokenState | None, at: int
) -> TokenQuery:
    """Return the query for the tokens that match the filters and that the caller may see.

    Raises `PermissionMissing` for a filter on tokens that the caller may not see, `InvalidField`.
    """
    if kind is CredentialKind.ORGANIZATION:
        if user_id:
            raise InvalidField("An organization token belongs to no person: leave user_id empty.", field="user_id")
        require(policy, caller, "view", "organization-tokens")
        return TokenQuery("", organizations=True, state=state, at=at)
    if user_id:
        if user_id != caller.user_id:
            require(policy, caller, "view", "member-tokens")
        return TokenQuery(user_id, organizations=False, state=state, at=at)
    owner = None if may(policy, caller, "view", "member-tokens") else caller.user_id
    organizations = kind is None and may(policy, caller, "view", "organization-tokens")
    # Like a person, a program sees its own token.
    own = "" if caller.user_id or kind else caller.credential_id
    return TokenQuery(owner, organizations=organizations, state=state, at=at, own=own)


def require_rotatable(context: ChangeContext, token_id: str) -> Token:
    """Return the token; raise unless the caller may rotate it: its own, or an organization token that it may create.

    Raises `TokenNotFound`, `PermissionMissing`, `PersonOnly`, `RoleBeyondCaller`.
    """
    token = rows.get(context.tx, context.caller.organization, token_id)
    if token is None or not _is_own(context.caller, token) or not token.user_id:
        require_person(context.caller, "create tokens")
        if not may(context.policy, context.caller, "create", "organization-tokens"):
            raise PermissionMissing(
                "This is not one of your own tokens, and you may rotate no organization's: check the id, or ask"
                " somebody who may `organization-tokens create`.",
                action="create",
                resource="organization-tokens",
            )
        if token is None or token.user_id:
            raise TokenNotFound(
                f"The organization has no token `{token_id}` that you may rotate: nobody can rotate another person's.",
                field="id",
            )
        require_organization_role(context, token.role, token.restriction, token.expire_time, "id")
        _require_assigned_within_caller(context, token)
    _require_within_caller(context.caller, token)
    caller = context.caller
    if not is_within(token.networks, caller.networks):
        raise RoleBeyondCaller(
            "The token works from networks beyond those of the one that this call is made with: rotate it with itself,"
            " or with a credential that works from all of them.",
            field="id",
            role=token.role,
        )
    if caller.kind is not CredentialKind.SESSION and token.expire_time > caller.expire_time:
        raise RoleBeyondCaller(
            "The token expires later than the one that this call is made with: rotate it with itself, or with a"
            " credential that expires no earlier.",
            field="id",
            role=token.role,
        )
    return token


def require_deletable(context: ChangeContext, token_id: str) -> Token:
    """Return the token; raise unless the caller may delete it. Raises as `require_rotatable`.

    For a caller who may not delete tokens of others, such a token and a missing one give the same error.
    """
    caller = context.caller
    token = rows.get(context.tx, caller.organization, token_id)
    if token and _is_own(caller, token):
        # Otherwise a stolen token restricted to Check could revoke all other tokens of its holder.
        _require_within_caller(caller, token)
        return token
    others = may(context.policy, caller, "delete", "member-tokens")
    organizations = may(context.policy, caller, "delete", "organization-tokens")
    if not others and not organizations:
        raise PermissionMissing(
            "This is not one of your own tokens that this credential may delete (check the id), and"
            f" {caller.role} may not delete those of others: that takes `member-tokens delete`.",
            action="delete",
            resource="member-tokens",
        )
    if token is None or not (others if token.user_id else organizations):
        raise TokenNotFound(f"The organization has no token `{token_id}`: find the id with ListTokens.", field="id")
    if token.user_id and is_beyond(context.policy, caller, token.role):
        context.require("update", "owners")
    return token


def _require_assigned_within_caller(context: ChangeContext, token: Token) -> None:
    """Raise `RoleBeyondCaller` if an organization token is assigned a role beyond the caller, who gets its secret."""
    principal = Principal(PrincipalKind.TOKEN, token.id)
    assigned = assignment_rows.assigned(context.tx, token.organization, [principal])[principal]
    for each in assigned.at(context.at).roles:
        until = min(each.expire_time, token.expire_time)
        if is_beyond(context.policy, context.caller, each.role, each.scope, until):
            where = f"at `{each.scope}`" if each.scope else "in the whole organization"
            raise RoleBeyondCaller(
                f"The token is assigned {each.role} {where}, which has permissions that the credential itself lacks"
                " there: ask somebody who has them.",
                field="id",
                role=each.role,
            )


def _is_own(caller: Caller, token: Token) -> bool:
    return token.id == caller.credential_id or (token.user_id == caller.user_id != "")


def _require_within_caller(caller: Caller, token: Token) -> None:
    """Raise `RoleBeyondCaller` if the token may more than the credential, which would gain that with its secret."""
    if not is_restricted_within(token.restriction, caller.restriction):
        raise RoleBeyondCaller(
            "The credential is restricted, and the token has permissions beyond that: use a less restricted one.",
            field="id",
            role=token.role,
        )
