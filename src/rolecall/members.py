"""Members: listed, given other roles, removed. An organization never loses its last owner."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rolecall.audit import Private
from rolecall.domain import Caller, Member, MemberOrder, Page, Token
from rolecall.errors import InvalidField, LastOwner, MemberNotFound, PermissionMissing
from rolecall.live_policy import LivePolicy
from rolecall.mutations import Attempt, Done, Moment, Mutations, Unchanged, require_etag
from rolecall.pages import Pages
from rolecall.policy import few
from rolecall.rights import require, require_any, require_handling, require_known, require_person
from rolecall.storage import Storage
from rolecall.storage import members as rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage import tokens as token_rows

__all__ = ["Changed", "MemberPage", "Members", "Removed", "described"]

# Of the tokens that a removed person made, so many are named.
MAX_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class Changed:
    """A member with another role."""

    member: Member
    revision: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A removed member, and the organization's live tokens that this person made."""

    member: Member
    organization_tokens: tuple[Token, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class MemberPage:
    """A page of members."""

    members: tuple[Member, ...]
    next_page_token: str


class Members:
    """What MemberService does. Every method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, mutations: Mutations, storage: Storage, live: LivePolicy, pages: Pages) -> None:
        self._mutations = mutations
        self._storage = storage
        self._live = live
        self._pages = pages

    def list(self, caller: Caller, role: str, text: str, order: MemberOrder, page: Page) -> MemberPage:
        """The members with this role and this text in address or name; empty takes any.

        Raises `PermissionMissing`, `InvalidField`, `PageToken`.
        """
        size = self._pages.size(page)
        require(self._live.in_force.policy, caller, "view", "members")
        scope = ("ListMembers", caller.organization, role, text, order.value)
        position = self._pages.position(scope, page)
        after: tuple[str | int, str] | None = None
        if position:
            after = (int(position[0]) if order is MemberOrder.NEWEST else position[0], position[1])
        found = self._storage.read(lambda tx: rows.page(tx, caller.organization, role, text, order, after, size + 1))
        more = len(found) > size
        token = self._pages.token(scope, [str(part) for part in found[size - 1][0]]) if more else ""
        return MemberPage(tuple(member for _, member in found[:size]), token)

    def get(self, caller: Caller, user_id: str) -> Member:
        """One member. Raises `PermissionMissing`, `MemberNotFound`."""
        require(self._live.in_force.policy, caller, "view", "members")
        member = self._storage.read(lambda tx: rows.get(tx, caller.organization, user_id))
        if member is None:
            raise _not_found(user_id)
        return member

    def change_role(self, attempt: Attempt, user_id: str, role: str, etag: str) -> Changed:
        """Give a member another role. The same one changes nothing.

        Raises `PermissionMissing`, `RoleBeyondCaller`, `MemberNotFound`, `UnknownRoleName`, `EtagMismatch`,
        `LastOwner`.
        """

        def authorize(moment: Moment) -> Member:
            member = _handled(moment, "update", user_id)
            require_known(moment.policy, role, "role")
            require_handling(moment.policy, moment.caller, "update", role, "role")
            return member

        def effect(moment: Moment, member: Member) -> Done[Changed]:
            require_etag(etag, member.etag)
            if member.role == role:
                # The revision that this transaction made goes with it.
                raise Unchanged(Changed(member, moment.tx.revision - 1))
            if role not in moment.policy.owner_roles:
                _require_owner_beside(moment, member, "user_id")
            # Clocks step back; an etag is never the same again.
            rows.change_role(moment.tx, member, role, max(moment.at, member.update_time + 1))
            changed = rows.get(moment.tx, member.organization, user_id) or member
            details = {"before": {"role": member.role}, "after": {"role": role}}
            return Done(Changed(changed, moment.tx.revision), f"user:{user_id}", details)

        return self._mutations.run(attempt, Changed, authorize, effect)

    def remove(self, attempt: Attempt, user_id: str, etag: str) -> Removed:
        """Remove a member; their tokens and sessions are dead in the same transaction. Raises as `change_role`."""

        def authorize(moment: Moment) -> Member:
            member = _handled(moment, "remove", user_id)
            if user_id == moment.caller.user_id:
                _require_owner_beside(moment, member, "user_id")
                raise InvalidField("That is you: nobody removes himself, use LeaveOrganization.", field="user_id")
            return member

        def effect(moment: Moment, member: Member) -> Done[Removed]:
            require_etag(etag, member.etag)
            _require_owner_beside(moment, member, "user_id")
            made = token_rows.made_by(moment.tx, member.organization, user_id, moment.at, MAX_TOKENS)
            rows.remove(moment.tx, member)
            removed = Removed(member, tuple(made), moment.tx.revision)
            return Done(removed, f"user:{user_id}", {"before": described(member)})

        return self._mutations.run(attempt, Removed, authorize, effect)

    def leave(self, attempt: Attempt) -> int:
        """Remove the caller; answers the revision in which it is gone.

        Raises `PersonOnly`, `PermissionMissing`, `LastOwner`.
        """

        def authorize(moment: Moment) -> None:
            require_person(moment.caller, "leave")
            role = moment.caller.role
            if not moment.policy.decide(role, "leave", "organization"):
                removers = few(moment.policy.roles_that_may("remove", "members"))
                raise PermissionMissing(
                    f"The role {role} may not leave by itself: ask somebody who may remove you ({removers}).",
                    action="leave",
                    resource="organization",
                )
            moment.require("leave", "organization")

        def effect(moment: Moment, _: None) -> Done[int]:
            member = rows.get(moment.tx, moment.caller.organization, moment.caller.user_id)
            if member is None:
                raise _not_found(moment.caller.user_id)
            _require_owner_beside(moment, member)
            rows.remove(moment.tx, member)
            return Done(moment.tx.revision, f"user:{member.user_id}", {"before": described(member)})

        return self._mutations.run(attempt, int, authorize, effect)


def described(member: Member) -> Mapping[str, Any]:
    """A member as the audit log tells of them."""
    return {
        "role": member.role,
        "email": Private(member.user_id, member.email, "email"),
        "display_name": Private(member.user_id, member.display_name),
    }


def _handled(moment: Moment, verb: str, user_id: str) -> Member:
    """The member, if the caller may `verb` people with this role. Whoever may not at all learns of nobody."""
    require_any(moment.policy, moment.caller, verb)
    member = rows.get(moment.tx, moment.caller.organization, user_id)
    if member is None:
        raise _not_found(user_id)
    require_handling(moment.policy, moment.caller, verb, member.role, "user_id")
    return member


def _require_owner_beside(moment: Moment, leaving: Member, field: str = "") -> None:
    """Raise `LastOwner` for `field` where nobody else owns the organization. Its writers come one at a time."""
    owners = moment.policy.owner_roles
    if leaving.role in owners and organization_rows.owner_count(moment.tx, leaving.organization, owners) <= 1:
        raise LastOwner(
            f"Nobody else holds the role {few(owners, ' or ')} in {leaving.organization}: give it to a second person"
            " first, with ChangeMemberRole or an invitation.",
            field=field,
            subject=f"organization:{leaving.organization}",
        )


def _not_found(user_id: str) -> MemberNotFound:
    return MemberNotFound(f"There is no member `{user_id}` here: see who there is with ListMembers.", field="user_id")
