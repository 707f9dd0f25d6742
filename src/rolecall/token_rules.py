"""Which tokens a caller may make, see, rotate and delete (requirements, rules 1, 3 and 4)."""

from dataclasses import dataclass

from rolecall.domain import Caller, CredentialKind, Restriction, Token, TokenState
from rolecall.errors import InvalidField, PermissionMissing, RoleBeyondCaller, TokenNotFound
from rolecall.mutations import Moment
from rolecall.policy import Policy, Reach, is_cut_down
from rolecall.rights import is_beyond, may, require, require_known, require_person
from rolecall.storage import tokens as rows
from rolecall.storage.tokens import TokenQuery

__all__ = [
    "LIFE_DAYS",
    "Wish",
    "deletable",
    "expiry",
    "require_organization_role",
    "require_restriction",
    "rotatable",
    "visible",
]

# Design, section 6.
LIFE_DAYS = 90
MAX_LIFE_DAYS = 365
DAY = 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new token shall be like. It works until `expire_time`, or for `life` microseconds, or as is usual."""

    name: str
    expire_time: int | None = None
    life: int | None = None
    restriction: Restriction = None


def expiry(wish: Wish, caller: Caller, at: int) -> int:
    """When the token will stop working. Raises `InvalidField` where that is past, too far, or beyond the caller's."""
    field = "ttl" if wish.expire_time is None else "expire_time"
    # A session mints up to the limit; what a token mints ends with it at the latest.
    bound = None if caller.kind is CredentialKind.SESSION else caller.expire_time
    if wish.expire_time is None and wish.life is None:
        usual = at + LIFE_DAYS * DAY
        return usual if bound is None else min(usual, bound)
    chosen = at + wish.life if wish.life is not None else wish.expire_time or 0
    if chosen <= at:
        raise InvalidField(f"{field} is not in the future: give a later one, or none for the usual.", field=field)
    if chosen > at + MAX_LIFE_DAYS * DAY:
        raise InvalidField(f"{field} is more than {MAX_LIFE_DAYS} days from now: give an earlier one.", field=field)
    if bound is not None and chosen > bound:
        raise InvalidField(
            f"{field} is beyond the expiry of the token that this call is made with: give an earlier one, leave it out"
            " for that same expiry, or use a session.",
            field=field,
        )
    return chosen


def require_restriction(moment: Moment, restriction: Restriction, role: str) -> None:
    """Raise unless a token of `role` may be restricted so: within what the policy knows, the caller, and the role."""
    if restriction is None:
        if moment.caller.restriction is not None:
            raise RoleBeyondCaller(
                "The credential is restricted, so what it makes must be: give a restriction within its own.",
                field="restriction",
                role=role,
            )
        return
    policy, caller = moment.policy, moment.caller
    of_caller, of_role = Reach(policy, caller.role, caller.restriction), Reach(policy, role, None)
    for number, wanted in enumerate(restriction):
        field = f"restriction.permissions[{number}]"
        words = f"`{wanted.resource} {wanted.action}`"
        if not policy.speaks_of(wanted.resource, wanted.action):
            raise InvalidField(
                f"The policy has no rule on {words}: see what there is with ListRoles.",
                field=field,
            )
        if not of_caller.covers(wanted):
            raise RoleBeyondCaller(
                f"The credential itself may not {words}, so no token that it makes may: leave that permission out, or"
                " use a credential that reaches so far.",
                field=field,
                role=role,
            )
        if not of_role.covers(wanted):
            raise InvalidField(
                f"The role {role} may not {words}, so the token could not: leave it out, or choose another role.",
                field=field,
            )


def require_organization_role(moment: Moment, role: str, field: str = "role") -> None:
    """Raise for `field` unless the caller may make an organization's token with this role."""
    require_person(moment.caller, "create tokens")
    moment.require("create", "organization-tokens")
    policy = moment.policy
    require_known(policy, role, field)
    if role in policy.owner_roles:
        raise RoleBeyondCaller(
            f"{role} may `owners update`, which no organization's token may: choose another role.",
            field=field,
            role=role,
        )
    if is_beyond(policy, moment.caller, role):
        raise RoleBeyondCaller(
            f"{role} may something that the credential itself may not: choose a role within its own"
            f" ({moment.caller.role}{', restricted' if moment.caller.restriction else ''}).",
            field=field,
            role=role,
        )


def visible(
    policy: Policy, caller: Caller, kind: CredentialKind | None, user_id: str, state: TokenState | None, at: int
) -> TokenQuery:
    """Which tokens the caller sees through these filters. Raises `PermissionMissing` for what it may not see."""
    if kind is CredentialKind.ORGANIZATION:
        if user_id:
            raise InvalidField("An organization's token is no person's: leave user_id empty.", field="user_id")
        require(policy, caller, "view", "organization-tokens")
        return TokenQuery("", organizations=True, state=state, at=at)
    if user_id:
        if user_id != caller.user_id:
            require(policy, caller, "view", "member-tokens")
        return TokenQuery(user_id, organizations=False, state=state, at=at)
    owner = None if may(policy, caller, "view", "member-tokens") else caller.user_id
    organizations = kind is None and may(policy, caller, "view", "organization-tokens")
    # A program sees its own token, as a person does.
    own = "" if caller.user_id or kind else caller.credential_id
    return TokenQuery(owner, organizations=organizations, state=state, at=at, own=own)


def rotatable(moment: Moment, token_id: str) -> Token:
    """The token, if the caller may have a new secret of it: its own, or the organization's as for creating it.

    Raises `TokenNotFound`, `PermissionMissing`, `PersonOnly`, `RoleBeyondCaller`.
    """
    token = rows.get(moment.tx, moment.caller.organization, token_id)
    if token is None or not _is_own(moment.caller, token) or not token.user_id:
        require_person(moment.caller, "create tokens")
        if not may(moment.policy, moment.caller, "create", "organization-tokens"):
            raise PermissionMissing(
                "It is none of your own tokens (is the id right?), and the organization's are rotated by whoever may"
                " `organization-tokens create`.",
                action="create",
                resource="organization-tokens",
            )
        if token is None or token.user_id:
            raise TokenNotFound(
                f"There is no token `{token_id}` to rotate here. Nobody rotates another person's.", field="id"
            )
        require_organization_role(moment, token.role, "id")
    _require_no_more(moment.caller, token)
    caller = moment.caller
    if caller.kind is not CredentialKind.SESSION and token.expire_time > caller.expire_time:
        raise RoleBeyondCaller(
            "The token works for longer than the one that this call is made with: rotate it with itself, or with a"
            " credential that lasts as long.",
            field="id",
            role=token.role,
        )
    return token


def deletable(moment: Moment, token_id: str) -> Token:
    """The token, if the caller may delete it. Raises as `rotatable`.

    To whoever may delete no tokens of others, a token of others and none look the same.
    """
    caller = moment.caller
    token = rows.get(moment.tx, caller.organization, token_id)
    if token and _is_own(caller, token):
        # Else a stolen check-only token could end all others of its holder.
        _require_no_more(caller, token)
        return token
    others = may(moment.policy, caller, "delete", "member-tokens")
    organizations = may(moment.policy, caller, "delete", "organization-tokens")
    if not others and not organizations:
        raise PermissionMissing(
            "It is none of your own tokens that this credential may delete (is the id right?), and"
            f" {caller.role} may delete no others: that takes `member-tokens delete`.",
            action="delete",
            resource="member-tokens",
        )
    if token is None or not (others if token.user_id else organizations):
        raise TokenNotFound(f"There is no token `{token_id}` here: see which there are with ListTokens.", field="id")
    if token.user_id and is_beyond(moment.policy, caller, token.role):
        moment.require("update", "owners")
    return token


def _is_own(caller: Caller, token: Token) -> bool:
    return token.id == caller.credential_id or (token.user_id == caller.user_id != "")


def _require_no_more(caller: Caller, token: Token) -> None:
    """Raise unless the token is restricted at least as the credential is: with its secret one would have more."""
    if not is_cut_down(token.restriction, caller.restriction):
        raise RoleBeyondCaller(
            "The credential is restricted, and the token may more: use one that is not restricted, or not so much.",
            field="id",
            role=token.role,
        )
