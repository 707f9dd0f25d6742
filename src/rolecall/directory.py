"""Who somebody is: the caller behind a credential, and the role of a subject. Always as the database has it now."""

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from rolecall import credentials
from rolecall.domain import Caller, Subject, SubjectKind, now
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows

__all__ = ["Directory", "Standings"]


@dataclass(frozen=True, slots=True)
class Standings:
    """The roles of subjects at one revision of an organization. A subject that is not in `roles` is unknown there."""

    revision: int
    roles: dict[Subject, str]


class Directory:
    """Reads of members and credentials."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def caller(self, text: str) -> Caller | None:
        """Who presents the credential `text`; None where it isn't live. A malformed one costs no look-up."""
        presented = credentials.parse(text)
        if presented is None:
            return None
        found = self._storage.read(lambda tx: credential_rows.live_holder(tx, presented.id, now()))
        if found is None:
            return None
        caller, digest = found
        return caller if credentials.matches(presented, digest) else None

    def standings(self, organization: str, subjects: Collection[Subject]) -> Standings:
        """The roles of `subjects`, all from one snapshot. Raises `OrganizationNotFound`, `StorageUnavailable`."""

        def work(tx: Transaction) -> Standings:
            revision = organization_rows.revision_of(tx, organization)
            return Standings(revision, _roles(tx, organization, subjects))

        return self._storage.read(work)


def _roles(tx: Transaction, organization: str, subjects: Collection[Subject]) -> dict[Subject, str]:
    """One query for each way in which subjects are named."""
    values: dict[SubjectKind, set[str]] = {}
    for subject in subjects:
        values.setdefault(subject.kind, set()).add(subject.value)
    by_id = member_rows.roles_by_id(tx, organization, ids) if (ids := values.get(SubjectKind.USER_ID)) else {}
    by_email = member_rows.roles_by_email(tx, organization, keys) if (keys := values.get(SubjectKind.EMAIL)) else {}
    tokens = values.get(SubjectKind.TOKEN_ID, set()) | values.get(SubjectKind.PRESENTED, set())
    by_token = credential_rows.live_holders(tx, organization, tokens, now()) if tokens else {}
    roles: dict[Subject, str] = {}
    for subject in subjects:
        role = None
        match subject.kind:
            case SubjectKind.ROLE:
                role = subject.value
            case SubjectKind.USER_ID:
                role = by_id.get(subject.value)
            case SubjectKind.EMAIL:
                role = by_email.get(subject.value)
            case SubjectKind.TOKEN_ID | SubjectKind.PRESENTED:
                held = by_token.get(subject.value)
                if held and (subject.kind is SubjectKind.TOKEN_ID or hmac.compare_digest(held[1], subject.digest)):
                    role = held[0]
        if role is not None:
            roles[subject] = role
    return roles
