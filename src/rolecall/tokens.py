"""Tokens that people present for themselves."""

from rolecall import addresses, credentials
from rolecall.credentials import Minted
from rolecall.domain import CredentialKind, Member, now
from rolecall.errors import InvalidField, MemberNotFound, TokenNotFound
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as rows
from rolecall.storage import members as member_rows

__all__ = ["LIFE_DAYS", "add_personal", "issue", "revoke"]

# Design, section 6.
LIFE_DAYS = 90
DAY = 24 * 60 * 60 * 1_000_000


def add_personal(tx: Transaction, member: Member, name: str) -> Minted:
    """Mint a personal token for `member` that lives 90 days."""
    minted = credentials.mint(CredentialKind.PERSONAL)
    at = now()
    new = rows.NewCredential(minted, member.organization, member.user_id, name, at, at + LIFE_DAYS * DAY)
    rows.add(tx, new)
    return minted


def issue(storage: Storage, organization: str, email: str) -> Minted:
    """Mint a token for the member with this address, for the operator at the database, whoever holds what role.

    Raises `InvalidField`, `OrganizationNotFound`, `MemberNotFound`.
    """
    address = addresses.parse(email)

    def work(tx: Transaction) -> Minted:
        member = member_rows.by_email(tx, organization, address.key)
        if member is None:
            raise MemberNotFound(
                f"{address.display} is no member of `{organization}`: check the address.", field="email"
            )
        return add_personal(tx, member, "issued by the operator")

    return storage.mutate(organization, work)


def revoke(storage: Storage, organization: str, token_id: str) -> None:
    """Kill a token, for the operator at the database.

    Raises `InvalidField`, `OrganizationNotFound`, `TokenNotFound`.
    """
    if not credentials.is_id(token_id):
        # Not repeated here: it may be the whole token.
        raise InvalidField(
            "That is no token's id: give just the 22 characters between its two underscores.", field="id"
        )

    def work(tx: Transaction) -> None:
        if not rows.revoke(tx, organization, token_id, now()):
            raise TokenNotFound(f"`{organization}` has no token `{token_id}`, or it is dead already.")

    storage.mutate(organization, work)
