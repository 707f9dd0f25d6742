"""Activation of a policy by the operator, at the database itself: also of one that drops a role which is held."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from rolecall.audit import OPERATOR, AuditLog, Event
from rolecall.domain import Invitation, Member, now
from rolecall.domain.spelling import suggest
from rolecall.errors import PolicyInvalid, UnknownRoleName
from rolecall.policy import Build, join_names
from rolecall.policy.reload import find_conflicts, stored
from rolecall.storage import Storage, Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage import policies as rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.assignments import RoleHolder as AssignmentHolder
from rolecall.storage.policies import Activation
from rolecall.storage.tokens import RoleHolder

__all__ = ["ActivatedPolicy", "activate"]

# Maximum holders in one audit entry.
MAX_AUDITED = 1000


@dataclass(frozen=True, slots=True)
class ActivatedPolicy:
    """Activation of a policy, and how many holders of roles in how many organizations got another role before it."""

    activation: Activation
    holders: int
    organizations: int


@dataclass(slots=True)
class _Holders:
    """Holders in one organization whose roles are moved."""

    members: list[Member] = field(default_factory=list)
    tokens: list[RoleHolder] = field(default_factory=list)
    invitations: list[Invitation] = field(default_factory=list)
    assignments: list[AssignmentHolder] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.members) + len(self.tokens) + len(self.invitations) + len(self.assignments)


def activate(
    storage: Storage, log: AuditLog, built: Build, moves: Mapping[str, str], activator: str
) -> ActivatedPolicy:
    """Put the policy in force for all servers of the database, all or nothing; one in force already stays so.

    Each member, organization token, pending invitation and role assignment with a role in `moves` gets the role that it
    maps to; each organization concerned has an audit entry of that, after the one about the activation. Raises
    `UnknownRoleName` for a role to move to that the policy doesn't have, `PolicyInvalid` where the policy doesn't fit
    the members, tokens and assignments even so, `WriteConflict`, `StorageUnavailable`.
    """
    policy = built.policy
    assert policy is not None  # noqa: S101 - for the type checker: callers pass no policy with errors
    for old, new in moves.items():
        if new not in policy.roles:
            advice = suggest(new, policy.roles, f"choose one of {join_names(policy.roles)}.")
            message = f"The policy has no role `{new}` for the holders of `{old}`: {advice}"
            raise UnknownRoleName(message, field="move", role=new)

    def work(tx: Transaction) -> ActivatedPolicy:
        at = now()
        activation = rows.in_force(tx)
        present = rows.get(tx, activation.version) if activation else None
        # Repeated, as by a deployment, it changes nothing.
        if not activation or not present or (present.version, present.tests) != (built.version, built.files.tests):
            activation = rows.activate(tx, stored(built), activator, at)
        moved = _holders(tx, moves, at)
        for organization, holders in moved.items():
            revised = replace(tx, revision=organization_rows.bump(tx, organization))
            _move(revised, holders, moves, at)
            for part in _audit_details(holders):
                details = {"policy_version": built.version, "moves": dict(moves), **part}
                event = Event(organization, OPERATOR, "MoveRoles", f"organization:{organization}", details)
                log.record(revised, event)
        findings, ownerless = find_conflicts(tx, policy)
        if findings:
            problems = " ".join(f"{finding.message} {finding.fix}" for finding in findings)
            names = f" Organizations: {join_names(ownerless)}." if ownerless else ""
            raise PolicyInvalid(f"The policy can't be activated: {problems}{names}")
        count = sum(each.count for each in moved.values())
        return ActivatedPolicy(activation, count, len(moved))

    return storage.exclusive(work)


def _holders(tx: Transaction, moves: Mapping[str, str], at: int) -> dict[str, _Holders]:
    """Return the holders of the roles to be moved, by organization."""
    found: dict[str, _Holders] = defaultdict(_Holders)
    if moves:
        for member in member_rows.holders(tx, moves):
            found[member.organization].members.append(member)
        for token in token_rows.holders(tx, moves, at):
            found[token.organization].tokens.append(token)
        for invitation in invitation_rows.pending_with_roles(tx, moves):
            found[invitation.organization].invitations.append(invitation)
        for assignment in assignment_rows.holders(tx, moves):
            found[assignment.organization].assignments.append(assignment)
    return found


def _move(tx: Transaction, holders: _Holders, moves: Mapping[str, str], at: int) -> None:
    for member in holders.members:
        # Clocks step back; an etag is never the same again.
        member_rows.change_role(tx, member, moves[member.role], max(at, member.update_time + 1))
    for token in holders.tokens:
        token_rows.change_role(tx, token, moves[token.role])
    for invitation in holders.invitations:
        invitation_rows.change_role(tx, invitation, moves[invitation.role])
    if holders.assignments:
        assignment_rows.change_roles(tx, holders.assignments, moves)


def _audit_details(holders: _Holders) -> Iterator[dict[str, list[str]]]:
    """Yield the ids of the holders, in parts for one entry each: a page of entries must fit into a message."""
    ids = [
        *(("members", member.user_id) for member in holders.members),
        *(("tokens", token.id) for token in holders.tokens),
        *(("invitations", invitation.id) for invitation in holders.invitations),
        *(("assignments", assignment.id) for assignment in holders.assignments),
    ]
    for first in range(0, len(ids), MAX_AUDITED):
        part: dict[str, list[str]] = defaultdict(list)
        for kind, identifier in ids[first : first + MAX_AUDITED]:
            part[kind].append(identifier)
        yield part
