"""Members: list them, change their roles and external ids, remove them. An organization never loses its last owner."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rolecall.audit import Private
from rolecall.domain import (
    ORGANIZATION,
    AssignedRoles,
    Caller,
    Member,
    MemberOrder,
    Page,
    Principal,
    PrincipalKind,
    Reason,
    Token,
)
from rolecall.errors import BatchSize, InvalidField, LastOwner, MemberNotFound, PermissionMissing
from rolecall.policy import join_names
from rolecall.policy.reload import LivePolicy
from rolecall.services.caller_permissions import (
    decide,
    require,
    require_any,
    require_handling,
    require_handling_all,
    require_known,
    require_person,
)
from rolecall.services.external_id_rules import take
from rolecall.services.pagination import Pagination
from rolecall.services.unit_of_work import (
    Answer,
    ChangeContext,
    ChangeRequest,
    DryRun,
    Outcome,
    Unchanged,
    UnitOfWork,
    Written,
    require_etag,
)
from rolecall.storage import Storage
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import members as rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage import tokens as token_rows

__all__ = ["ChangedMember", "MemberPage", "Members", "MovedMembers", "RemovedMember", "audit_details"]

# Maximum organization tokens listed in the answer when their creator is removed, to bound the response.
MAX_TOKENS = 1000
# Maximum role assignments in the audit entry of a member's removal.
MAX_AUDITED = 100
# Maximum members that are moved in one transaction, which blocks the organization's writers, and named in its entry.
MAX_MOVED = 10_000


@dataclass(frozen=True, slots=True)
class ChangedMember(Answer):
    """Answer to a change of a member's role or external id."""

    member: Member


@dataclass(frozen=True, slots=True)
class MovedMembers(Answer):
    """Answer to a move: how many members were moved, their etag before, and what else has the old role still."""

    count: int
    etag: str
    organization_tokens: int
    invitations: int
    assignments: int = 0


@dataclass(frozen=True, slots=True)
class RemovedMember(Answer):
    """Answer to a removal: the former member, and the organization's live tokens that this person created."""

    member: Member
    organization_tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class MemberPage:
    """A page of members."""

    members: tuple[Member, ...]
    next_page_token: str


class Members:
    """Use cases of MemberService. Each method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, unit_of_work: UnitOfWork, storage: Storage, live: LivePolicy, pages: Pagination) -> None:
        self._unit_of_work = unit_of_work
        self._storage = storage
        self._live = live
        self._pages = pages

    def list(
        self, caller: Caller, role: str, text: str, order: MemberOrder, page: Page, *, external_id: str = ""
    ) -> MemberPage:
        """List the members with this role, with this text in address or name, and with this external id.

        An empty filter matches all.

        Raises `PermissionMissing`, `InvalidField`, `UnknownRoleName`, `PageToken`.
        """
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        require(policy, caller, "view", "members")
        if role:
            require_known(policy, role, "role")
        scope = ("ListMembers", caller.organization, role, text, external_id, order.value)
        position = self._pages.position(scope, page)
        after: tuple[str | int, str] | None = None
        if position:
            after = (int(position[0]) if order is MemberOrder.NEWEST else position[0], position[1])
        found = self._storage.read(
            lambda tx: rows.page(tx, caller.organization, role, text, external_id, order, after, size + 1)
        )
        more = len(found) > size
        token = self._pages.token(scope, [str(part) for part in found[size - 1][0]]) if more else ""
        return MemberPage(tuple(member for _, member in found[:size]), token)

    def get(self, caller: Caller, user_id: str) -> Member:
        """Get one member. Raises `PermissionMissing`, `MemberNotFound`."""
        require(self._live.in_force.policy, caller, "view", "members")
        member = self._storage.read(lambda tx: rows.get(tx, caller.organization, user_id))
        if member is None:
            raise _not_found(user_id)
        return member

    def change_role(self, request: ChangeRequest, user_id: str, role: str, etag: str) -> ChangedMember:
        """Give a member another role; the present one changes nothing.

        Raises `PermissionMissing`, `RoleBeyondCaller`, `MemberNotFound`, `UnknownRoleName`, `EtagMismatch`,
        `LastOwner`.
        """

        def authorize(context: ChangeContext) -> Member:
            member = _require_member(context, "update", user_id)
            require_known(context.policy, role, "role")
            require_handling(context.policy, context.caller, "update", role, "role")
            return member

        def effect(context: ChangeContext, member: Member) -> Outcome[ChangedMember]:
            require_etag(etag, member.etag)
            if member.role == role:
                return Unchanged(ChangedMember(member))
            if role not in context.policy.owner_roles:
                _require_other_owner(context, member, "user_id")
            # An etag must never occur twice, even where the clock was set back.
            rows.change_role(context.tx, member, role, max(context.at, member.update_time + 1))
            changed = rows.get(context.tx, member.organization, user_id) or member
            details = {"before": {"role": member.role}, "after": {"role": role}}
            return Written(ChangedMember(changed), f"user:{user_id}", details)

        return self._unit_of_work.run(request, ChangedMember, authorize, effect)

    def change_external_id(self, request: ChangeRequest, user_id: str, external_id: str, etag: str) -> ChangedMember:
        """Give a member another external id, or with an empty one none; the present one changes nothing.

        Raises `PermissionMissing`, `RoleBeyondCaller`, `MemberNotFound`, `ExternalIdTaken`, `EtagMismatch`.
        """

        def effect(context: ChangeContext, member: Member) -> Outcome[ChangedMember]:
            require_etag(etag, member.etag)
            if member.external_id == external_id:
                return Unchanged(ChangedMember(member))
            take(context, external_id, "external_id")
            rows.change_external_id(context.tx, member, external_id, max(context.at, member.update_time + 1))
            changed = rows.get(context.tx, member.organization, user_id) or member
            before, after = ({"external_id": _audited_external_id(each)} for each in (member, changed))
            details = {"before": before, "after": after}
            return Written(ChangedMember(changed), f"user:{user_id}", details)

        def authorize(context: ChangeContext) -> Member:
            member = _require_member(context, "update", user_id)
            # Who has the external id outside acts with all of the member's roles: it is as if these were given.
            _require_all_roles(context, "update", member)
            return member

        return self._unit_of_work.run(request, ChangedMember, authorize, effect)

    def move(
        self, request: ChangeRequest, from_role: str, to_role: str, etag: str, *, validate_only: bool = False
    ) -> MovedMembers:
        """Give all members with one role another, as `change_role` does for each; with `validate_only`, count them.

        Raises `PermissionMissing`, `RoleBeyondCaller`, `UnknownRoleName`, `InvalidField` for the same role,
        `EtagMismatch`, `BatchSize`, `LastOwner`.
        """

        def authorize(context: ChangeContext) -> None:
            require_any(context.policy, context.caller, "update")
            for role, field in ((to_role, "to_role"), (from_role, "from_role")):
                held = role == from_role and rows.versions_with_role(context.tx, context.caller.organization, role, 1)
                if not held:
                    require_known(context.policy, role, field)
                require_handling(context.policy, context.caller, "update", role, field)
            if from_role == to_role:
                raise InvalidField(f"to_role is {to_role}, as from_role: name another role.", field="to_role")

        def effect(context: ChangeContext, _: None) -> Outcome[MovedMembers]:
            organization, owners = context.caller.organization, context.policy.owner_roles
            found = rows.versions_with_role(context.tx, organization, from_role, MAX_MOVED + 1)
            require_etag(etag, present := _etag(found))
            if len(found) > MAX_MOVED:
                raise BatchSize(
                    f"More than {MAX_MOVED} members have the role {from_role}: ask the operator to move them, with"
                    f" `rolecall operator policy activate --move {from_role}={to_role}`.",
                    field="from_role",
                    maximum=str(MAX_MOVED),
                )
            answer = MovedMembers(
                len(found),
                present,
                token_rows.count_with_role(context.tx, organization, from_role, context.at),
                invitation_rows.pending_count(context.tx, organization, from_role, context.at),
                assignment_rows.count_with_role(context.tx, organization, from_role, context.at),
            )
            if from_role in owners and to_role not in owners and found:
                others = [role for role in owners if role != from_role]
                if not organization_rows.owner_count(context.tx, organization, others):
                    raise _last_owner(organization, owners, "from_role")
            if validate_only:
                return DryRun(answer)
            if not found:
                return Unchanged(answer)
            moved = rows.move(context.tx, organization, from_role, to_role, context.at)
            details = {"before": {"role": from_role}, "after": {"role": to_role}, "members": moved}
            return Written(answer, f"role:{from_role}", details)

        return self._unit_of_work.run(request, MovedMembers, authorize, effect)

    def remove(self, request: ChangeRequest, user_id: str, etag: str) -> RemovedMember:
        """Remove a member, and revoke their tokens and sessions in the same transaction.

        Raises as `change_role`, and `InvalidField` for the caller itself.
        """

        def authorize(context: ChangeContext) -> tuple[Member, AssignedRoles]:
            member = _require_member(context, "remove", user_id)
            assigned = _require_all_roles(context, "remove", member)
            if user_id == context.caller.user_id:
                _require_other_owner(context, member, "user_id")
                raise InvalidField("user_id is your own: leave with LeaveOrganization instead.", field="user_id")
            return member, assigned

        def effect(context: ChangeContext, found: tuple[Member, AssignedRoles]) -> Outcome[RemovedMember]:
            member, assigned = found
            require_etag(etag, member.etag)
            _require_other_owner(context, member, "user_id")
            created = token_rows.created_by(context.tx, member.organization, user_id, context.at, MAX_TOKENS)
            before = {**audit_details(member), **_audited_roles(assigned, context.at)}
            rows.remove(context.tx, member)
            removed = RemovedMember(member, tuple(created))
            return Written(removed, f"user:{user_id}", {"before": before})

        return self._unit_of_work.run(request, RemovedMember, authorize, effect)

    def leave(self, request: ChangeRequest) -> int:
        """Remove the calling person; returns the revision as of which they are no member.

        Raises `PersonOnly`, `PermissionMissing`, `LastOwner`.
        """

        def authorize(context: ChangeContext) -> None:
            require_person(context.caller, "leave")
            caller = context.caller
            if decide(context.policy, caller, "leave", "organization", ORGANIZATION) is not Reason.GRANTED:
                removers = join_names(context.policy.roles_that_may("remove", "members"))
                raise PermissionMissing(
                    f"A member with the role {caller.role} may not leave: ask somebody who may remove you"
                    f" ({removers}).",
                    action="leave",
                    resource="organization",
                )
            context.require("leave", "organization")

        def effect(context: ChangeContext, _: None) -> Outcome[Answer]:
            member = rows.get(context.tx, context.caller.organization, context.caller.user_id)
            if member is None:
                raise _not_found(context.caller.user_id)
            _require_other_owner(context, member)
            before = {**audit_details(member), **_audited_roles(context.caller.assigned, context.at)}
            rows.remove(context.tx, member)
            return Written(Answer(), f"user:{member.user_id}", {"before": before})

        return self._unit_of_work.run(request, Answer, authorize, effect).revision


def audit_details(member: Member) -> Mapping[str, Any]:
    """Details of a member for the audit log."""
    details: dict[str, Any] = {
        "role": member.role,
        "email": Private(member.user_id, member.email, "email"),
        "display_name": Private(member.user_id, member.display_name),
    }
    if member.external_id:
        details["external_id"] = _audited_external_id(member)
    return details


def _audited_roles(assigned: AssignedRoles, at: int) -> Mapping[str, Any]:
    """Details for the audit log of the teams and assignments that end with a member; empty if there are none."""
    details: dict[str, Any] = {}
    if assigned.teams:
        details["teams"] = list(assigned.teams)
    if own := [each for each in assigned.at(at).roles if each.principal.startswith(PrincipalKind.USER)]:
        details["assignments"] = [
            f"{each.role} at {each.scope or 'the whole organization'}" for each in own[:MAX_AUDITED]
        ]
    return details


def _audited_external_id(member: Member) -> Private | str:
    return Private(member.user_id, member.external_id, "external_id") if member.external_id else ""


def _require_member(context: ChangeContext, verb: str, user_id: str) -> Member:
    """Return the member; raise unless the caller may `verb` people with their role.

    A caller who may `verb` nobody does not learn whether the member exists.
    """
    require_any(context.policy, context.caller, verb)
    member = rows.get(context.tx, context.caller.organization, user_id)
    if member is None:
        raise _not_found(user_id)
    require_handling(context.policy, context.caller, verb, member.role, "user_id")
    return member


def _require_all_roles(context: ChangeContext, verb: str, member: Member) -> AssignedRoles:
    """Return the member's assigned roles; raise unless the caller may `verb` people with each of its roles."""
    principal = Principal(PrincipalKind.USER, member.user_id)
    assigned = assignment_rows.assigned(context.tx, member.organization, [principal])[principal]
    require_handling_all(context.policy, context.caller, verb, member.role, assigned, "user_id")
    return assigned


def _require_other_owner(context: ChangeContext, leaving: Member, field: str = "") -> None:
    """Raise `LastOwner` for `field` if the member is the only owner; the organization's writers are serialized."""
    owners = context.policy.owner_roles
    if leaving.role in owners and organization_rows.owner_count(context.tx, leaving.organization, owners) <= 1:
        raise _last_owner(leaving.organization, owners, field)


def _last_owner(organization: str, owner_roles: Sequence[str], field: str) -> LastOwner:
    return LastOwner(
        f"Nobody else holds the role {join_names(owner_roles, ' or ')} in {organization}: give it to a second"
        " person first, with ChangeMemberRole or an invitation.",
        field=field,
        subject=f"organization:{organization}",
    )


def _etag(versions: Iterable[tuple[str, int]]) -> str:
    """Return the etag of several members, which changes with each of them, and with who they are."""
    digest = hashlib.sha256()
    for user_id, update_time in versions:
        digest.update(f"{user_id} {update_time:x}\n".encode())
    return digest.hexdigest()[:32]


def _not_found(user_id: str) -> MemberNotFound:
    return MemberNotFound(
        f"The organization has no member `{user_id}`: find the user_id with ListMembers.", field="user_id"
    )
