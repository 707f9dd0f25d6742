"""Organizations: create one together with its first owner, in one transaction; show it, and change its display name."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rolecall.audit import OPERATOR, AuditLog, Event, Private
from rolecall.credentials.token_format import MintedCredential, new_id
from rolecall.domain import Caller, Member, Organization, now
from rolecall.errors import InvalidField, OrganizationExists, OrganizationNotFound, PolicyInvalid, WriteConflict
from rolecall.formats import email_address, slugs
from rolecall.formats.email_address import Address
from rolecall.policy import Build, Policy
from rolecall.policy.reload import LivePolicy, find_conflicts, stored
from rolecall.services.operator_tokens import add_token
from rolecall.services.unit_of_work import (
    Answer,
    ChangeContext,
    ChangeRequest,
    Outcome,
    UnitOfWork,
    Written,
    require_etag,
)
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as rows
from rolecall.storage import policies as policy_rows

__all__ = [
    "CreatedOrganization",
    "OrganizationView",
    "Organizations",
    "UpdatedOrganization",
    "create",
    "operator_name",
    "view",
]


@dataclass(frozen=True, slots=True)
class CreatedOrganization:
    """New organization, its members, and the owner's first token, whose text only this value holds."""

    organization: Organization
    owner: Member
    others: tuple[Member, ...]
    token: MintedCredential = field(repr=False)


@dataclass(frozen=True, slots=True)
class OrganizationView:
    """Organization with warnings about its state, such as a single owner."""

    organization: Organization
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdatedOrganization(Answer):
    """Answer to a change of an organization's display name."""

    view: OrganizationView


class Organizations:
    """Use cases of OrganizationService."""

    def __init__(self, unit_of_work: UnitOfWork, storage: Storage, live: LivePolicy) -> None:
        self._unit_of_work = unit_of_work
        self._storage = storage
        self._live = live

    def get(self, caller: Caller) -> OrganizationView:
        """Get the caller's organization. Raises `StorageUnavailable`."""
        return self._storage.read(lambda tx: view(tx, self._live.in_force.policy, caller.organization))

    def update(self, request: ChangeRequest, display_name: str, etag: str) -> UpdatedOrganization:
        """Change the display name. Raises `PermissionMissing`, `EtagMismatch`, `WriteConflict`."""

        def effect(context: ChangeContext, _: None) -> Outcome[UpdatedOrganization]:
            name = context.caller.organization
            before = view(context.tx, context.policy, name).organization
            require_etag(etag, before.etag, "organization.etag")
            rows.rename(context.tx, name, display_name)
            details = {"before": {"display_name": before.display_name}, "after": {"display_name": display_name}}
            return Written(UpdatedOrganization(view(context.tx, context.policy, name)), f"organization:{name}", details)

        return self._unit_of_work.run(
            request, UpdatedOrganization, lambda context: context.require("manage", "account"), effect
        )


def view(tx: Transaction, policy: Policy, organization: str) -> OrganizationView:
    """Return the organization as it is in the transaction. Raises `OrganizationNotFound`."""
    found = rows.get(tx, organization)
    if found is None:
        raise OrganizationNotFound.named(organization)
    owners = rows.owner_count(tx, organization, policy.owner_roles)
    if owners > 1:
        return OrganizationView(found)
    roles = " or ".join(policy.owner_roles)
    if not owners:
        return OrganizationView(found, (f"The organization has no owner: nobody holds the role {roles}.",))
    warning = f"The organization has a single owner: give a second person the role {roles}, so that it keeps one."
    return OrganizationView(found, (warning,))


def create(
    storage: Storage,
    log: AuditLog,
    policy: Policy,
    organization: str,
    owner: str,
    *,
    demo: bool = False,
    first: Build | None = None,
) -> CreatedOrganization:
    """Create `organization` with the member `owner` (an address) in the policy's `founder_role`, and a token for them.

    `policy` is the one in force; where none is yet, `first`, the build of `policy`, comes into force with the
    organization. `demo` adds a member for each other role, named after it. Raises `InvalidField`,
    `OrganizationExists`, `PolicyInvalid`, `WriteConflict`.
    """
    slugs.parse(organization, "organization", "an organization's name")
    address = email_address.parse(owner, "owner")
    top = policy.founder_role
    if not top:
        raise PolicyInvalid(
            "No role of the policy may `owners update`, so an organization could have no owner: add a rule for it."
        )
    others = [role for role in policy.roles if role != top] if demo else []
    domain = address.display.rpartition("@")[2]
    people = [(top, address), *((role, email_address.parse(f"{role.lower()}@{domain}", "owner")) for role in others)]
    if len({person.key for _, person in people}) < len(people):
        raise InvalidField(f"{address.display} is the address of a demo member: name another owner.", field="owner")

    def work(tx: Transaction) -> CreatedOrganization:
        if rows.get(tx, organization) is not None:
            raise OrganizationExists(
                f"The organization `{organization}` exists already: choose another name, or print a member's new token"
                f" with `rolecall operator tokens issue --organization {organization} --email ADDRESS`.",
                organization=organization,
            )
        findings, _ = find_conflicts(tx, policy)
        if findings:
            # A server refuses to start with such a policy and database.
            conflicts = " ".join(finding.message for finding in findings)
            raise PolicyInvalid(
                f"The policy conflicts with existing organizations: {conflicts} Use the policy that the servers use."
            )
        created = Organization(organization, organization, 1, now())
        rows.add(tx, created)
        # After the row is added: an activation waits for this transaction, or this one for it.
        in_force = policy_rows.in_force(tx)
        if first and not in_force:
            # Otherwise a server could begin with a policy under which the organization has no owner.
            policy_rows.activate(tx, stored(first), operator_name(), now())
        if in_force and in_force.version != policy.version:
            raise WriteConflict("Another policy came into force meanwhile: try again.")
        log.begin(tx, organization)
        founding = replace(tx, revision=created.revision)
        members = [_add_member(founding, organization, role, person) for role, person in people]
        token = add_token(founding, members[0], "first owner")
        details = {"members": [_audit_details(member) for member in members], "token": token.id}
        log.record(tx, Event(organization, OPERATOR, "CreateOrganization", f"organization:{organization}", details))
        return CreatedOrganization(created, members[0], tuple(members[1:]), token)

    return storage.write(work)


def operator_name() -> str:
    """Return the name under which commands at the database activate a policy."""
    return f"operator at {socket.gethostname()}"


def _add_member(tx: Transaction, organization: str, role: str, address: Address) -> Member:
    at = now()
    member = Member(organization, new_id(), address.display, address.display.partition("@")[0], role, at, at)
    member_rows.add(tx, member, address.key)
    return member


def _audit_details(member: Member) -> Mapping[str, Any]:
    """Details of a member for the audit log."""
    return {"user": member.user_id, "role": member.role, "email": Private(member.user_id, member.email, "email")}
