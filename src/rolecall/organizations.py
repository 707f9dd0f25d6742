"""Organizations: a new one begins with its first owner, in the same transaction; they have a name to show."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rolecall import addresses
from rolecall.addresses import Address
from rolecall.audit import OPERATOR, AuditLog, Event, Private
from rolecall.credentials import Minted, new_id
from rolecall.domain import Caller, Member, Organization, now
from rolecall.errors import InvalidField, OrganizationExists, OrganizationNotFound, PolicyInvalid
from rolecall.live_policy import LivePolicy, misfits
from rolecall.mutations import Attempt, Done, Moment, Mutations, require_etag
from rolecall.operator import add_token
from rolecall.policy import Policy
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as rows

__all__ = ["Founded", "OrganizationView", "Organizations", "found", "view"]

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Founded:
    """A new organization, its members, and the owner's first token, whose text is shown once."""

    organization: Organization
    owner: Member
    others: tuple[Member, ...]
    token: Minted = field(repr=False)


@dataclass(frozen=True, slots=True)
class OrganizationView:
    """An organization, and what should be looked after in it."""

    organization: Organization
    warnings: tuple[str, ...] = ()


class Organizations:
    """What OrganizationService does."""

    def __init__(self, mutations: Mutations, storage: Storage, live: LivePolicy) -> None:
        self._mutations = mutations
        self._storage = storage
        self._live = live

    def get(self, caller: Caller) -> OrganizationView:
        """The caller's organization. Raises `StorageUnavailable`."""
        return self._storage.read(lambda tx: view(tx, self._live.in_force.policy, caller.organization))

    def update(self, attempt: Attempt, display_name: str, etag: str) -> OrganizationView:
        """Give it another name to show. Raises `PermissionMissing`, `EtagMismatch`, `WriteConflict`."""

        def effect(moment: Moment, _: None) -> Done[OrganizationView]:
            name = moment.caller.organization
            before = view(moment.tx, moment.policy, name).organization
            require_etag(etag, before.etag)
            rows.rename(moment.tx, name, display_name)
            details = {"before": {"display_name": before.display_name}, "after": {"display_name": display_name}}
            return Done(view(moment.tx, moment.policy, name), f"organization:{name}", details)

        return self._mutations.run(
            attempt, OrganizationView, lambda moment: moment.require("manage", "account"), effect
        )


def view(tx: Transaction, policy: Policy, organization: str) -> OrganizationView:
    """The organization as it stands in the transaction. Raises `OrganizationNotFound`."""
    found = rows.get(tx, organization)
    if found is None:
        raise OrganizationNotFound.named(organization)
    owners = rows.owner_count(tx, organization, policy.owner_roles)
    if owners > 1:
        return OrganizationView(found)
    roles = " or ".join(policy.owner_roles)
    if not owners:
        return OrganizationView(found, (f"The organization has no owner: nobody holds the role {roles}.",))
    warning = f"The organization has a single owner: give a second person the role {roles}, lest it end up without one."
    return OrganizationView(found, (warning,))


def found(
    storage: Storage, log: AuditLog, policy: Policy, organization: str, owner: str, *, demo: bool = False
) -> Founded:
    """Create `organization` with the member `owner` (an address) in the policy's top role, and a token for them.

    `demo` adds a member for each other role, named after it. Raises `InvalidField`, `OrganizationExists`.
    """
    if not _SLUG.fullmatch(organization):
        raise InvalidField(
            f"`{organization}` is no organization's name: 1 to 63 lower-case letters, digits and inner hyphens.",
            field="organization",
        )
    address = addresses.parse(owner, "owner")
    if not policy.owner_roles:
        raise PolicyInvalid("No role of the policy may `owners update`: an organization could have no owner.")
    top = policy.owner_roles[0]
    others = [role for role in policy.roles if role != top] if demo else []
    domain = address.display.rpartition("@")[2]
    people = [(top, address), *((role, addresses.parse(f"{role.lower()}@{domain}", "owner")) for role in others)]
    if len({person.key for _, person in people}) < len(people):
        raise InvalidField(f"{address.display} is the address of a demo member: name another owner.", field="owner")

    def work(tx: Transaction) -> Founded:
        if rows.get(tx, organization) is not None:
            raise OrganizationExists(
                f"There is an organization `{organization}` already: choose another name, or print a member's new token"
                f" with `rolecall tokens issue --organization {organization} --email ADDRESS`.",
                organization=organization,
            )
        findings, _ = misfits(tx, policy)
        if findings:
            # A server would refuse to serve both.
            said = " ".join(finding.message for finding in findings)
            raise PolicyInvalid(
                f"The policy doesn't fit the organizations there are: {said} Is it that of the servers?"
            )
        founded = Organization(organization, organization, 1, now())
        rows.add(tx, founded)
        log.begin(tx, organization)
        first = replace(tx, revision=founded.revision)
        members = [_add_member(first, organization, role, person) for role, person in people]
        token = add_token(first, members[0], "first owner")
        details = {"members": [_described(member) for member in members], "token": token.id}
        log.record(tx, Event(organization, OPERATOR, "CreateOrganization", f"organization:{organization}", details))
        return Founded(founded, members[0], tuple(members[1:]), token)

    return storage.write(work)


def _add_member(tx: Transaction, organization: str, role: str, address: Address) -> Member:
    at = now()
    member = Member(organization, new_id(), address.display, address.display.partition("@")[0], role, at, at)
    member_rows.add(tx, member, address.key)
    return member


def _described(member: Member) -> Mapping[str, Any]:
    """A member as the audit log tells of them."""
    return {"user": member.user_id, "role": member.role, "email": Private(member.user_id, member.email, "email")}
