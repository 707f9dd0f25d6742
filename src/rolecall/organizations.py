"""Organizations: a new one begins with its first owner, in the same transaction."""

import re
from dataclasses import dataclass, field

from rolecall import addresses, tokens
from rolecall.addresses import Address
from rolecall.credentials import Minted, new_id
from rolecall.domain import Member, Organization, now
from rolecall.errors import InvalidField, OrganizationExists, PolicyInvalid
from rolecall.policy import Policy
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as rows

__all__ = ["Founded", "found"]

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Founded:
    """A new organization, its members, and the owner's first token, whose text is shown once."""

    organization: Organization
    owner: Member
    others: tuple[Member, ...]
    token: Minted = field(repr=False)


def found(storage: Storage, policy: Policy, organization: str, owner: str, *, demo: bool = False) -> Founded:
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
        founded = Organization(organization, organization, 1, now())
        rows.add(tx, founded)
        first = Transaction(tx.connection, founded.revision)
        members = [_add_member(first, organization, role, person) for role, person in people]
        token = tokens.add_personal(first, members[0], "first owner")
        return Founded(founded, members[0], tuple(members[1:]), token)

    return storage.write(work)


def _add_member(tx: Transaction, organization: str, role: str, address: Address) -> Member:
    at = now()
    member = Member(organization, new_id(), address.display, address.display.partition("@")[0], role, at, at)
    member_rows.add(tx, member, address.key)
    return member
