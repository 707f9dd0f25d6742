"""What the operator does for people at the database itself, whoever holds what role: tokens issued and revoked."""

from rolecall import addresses, credentials
from rolecall.audit import OPERATOR, AuditLog, Event
from rolecall.credentials import Minted
from rolecall.domain import CredentialKind, Member, now
from rolecall.errors import InvalidField, MemberNotFound, TokenNotFound
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.credentials import NewCredential
from rolecall.token_rules import DAY, LIFE_DAYS
from rolecall.tokens import described

__all__ = ["add_token", "issue", "revoke"]


def add_token(tx: Transaction, member: Member, name: str) -> Minted:
    """Mint a personal token for `member` that lives 90 days. Leaves the audit log to the caller."""
    minted = credentials.mint(CredentialKind.PERSONAL)
    at = now()
    new = NewCredential(
        minted, member.organization, member.user_id, None, name, None, OPERATOR, at, at + LIFE_DAYS * DAY
    )
    credential_rows.add(tx, new)
    return minted


def issue(storage: Storage, log: AuditLog, organization: str, email: str) -> Minted:
    """Mint a token for the member with this address.

    Raises `InvalidField`, `OrganizationNotFound`, `MemberNotFound`.
    """
    address = addresses.parse(email)

    def work(tx: Transaction) -> Minted:
        member = member_rows.by_email(tx, organization, address.key)
        if member is None:
            raise MemberNotFound(
                f"{address.display} is no member of `{organization}`: check the address.", field="email"
            )
        minted = add_token(tx, member, "issued by the operator")
        _record(tx, log, "IssueToken", organization, minted.id, "after")
        return minted

    return storage.mutate(organization, work)


def revoke(storage: Storage, log: AuditLog, organization: str, token_id: str) -> None:
    """Kill a token or session. Raises `InvalidField`, `OrganizationNotFound`, `TokenNotFound`."""
    if not credentials.is_id(token_id):
        # Not repeated here: it may be the whole token.
        raise InvalidField(
            "That is no token's id: give just the 22 characters between its two underscores.", field="id"
        )

    def work(tx: Transaction) -> None:
        if not credential_rows.revoke(tx, organization, token_id, now()):
            raise TokenNotFound(f"`{organization}` has no token `{token_id}`, or it is dead already.")
        _record(tx, log, "RevokeToken", organization, token_id, "before")

    storage.mutate(organization, work)


def _record(tx: Transaction, log: AuditLog, action: str, organization: str, token_id: str, side: str) -> None:
    token = token_rows.get(tx, organization, token_id)
    details = {side: described(token)} if token else {}
    log.record(tx, Event(organization, OPERATOR, action, f"token:{token_id}", details))
