"""Tokens that the operator issues and revokes, in the database and regardless of roles."""

from rolecall.audit import OPERATOR, AuditLog, Event
from rolecall.credentials import token_format
from rolecall.credentials.token_format import MintedCredential
from rolecall.domain import CredentialKind, Member, now
from rolecall.errors import InvalidField, MemberNotFound, TokenNotFound
from rolecall.formats import email_address
from rolecall.services.token_rules import DAY, LIFE_DAYS
from rolecall.services.tokens import audit_details
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.credentials import NewCredential

__all__ = ["add_token", "issue", "revoke"]


def add_token(tx: Transaction, member: Member, name: str) -> MintedCredential:
    """Create a personal token of `member` that expires after 90 days. The audit entry is up to the caller."""
    minted = token_format.mint(CredentialKind.PERSONAL)
    at = now()
    new = NewCredential(
        minted, member.organization, member.user_id, None, name, None, OPERATOR, at, at + LIFE_DAYS * DAY
    )
    credential_rows.add(tx, new)
    return minted


def issue(storage: Storage, log: AuditLog, organization: str, email: str) -> MintedCredential:
    """Create a personal token of the member with this address.

    Raises `InvalidField`, `OrganizationNotFound`, `MemberNotFound`.
    """
    address = email_address.parse(email)

    def work(tx: Transaction) -> MintedCredential:
        member = member_rows.by_email(tx, organization, address.key)
        if member is None:
            raise MemberNotFound(
                f"{address.display} is not a member of `{organization}`: check the address.", field="email"
            )
        minted = add_token(tx, member, "issued by the operator")
        _record(tx, log, "IssueToken", organization, minted.id, "after")
        return minted

    return storage.mutate(organization, work)


def revoke(storage: Storage, log: AuditLog, organization: str, token_id: str) -> None:
    """Revoke a token or session. Raises `InvalidField`, `OrganizationNotFound`, `TokenNotFound`."""
    if not token_format.is_id(token_id):
        # Not quoted in the error, as it may be the whole token.
        raise InvalidField(
            "This is not the id of a token: give the 22 characters between its two underscores, and nothing else.",
            field="id",
        )

    def work(tx: Transaction) -> None:
        if not credential_rows.revoke(tx, organization, token_id, now()):
            raise TokenNotFound(f"`{organization}` has no token `{token_id}`, or it is revoked already: check the id.")
        _record(tx, log, "RevokeToken", organization, token_id, "before")

    storage.mutate(organization, work)


def _record(tx: Transaction, log: AuditLog, action: str, organization: str, token_id: str, side: str) -> None:
    token = token_rows.get(tx, organization, token_id)
    details = {side: audit_details(token)} if token else {}
    log.record(tx, Event(organization, OPERATOR, action, f"token:{token_id}", details))
