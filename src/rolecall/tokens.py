"""Tokens that people and programs present: minted, listed, rotated, deleted."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rolecall import credentials
from rolecall.audit import Private
from rolecall.domain import Caller, CredentialKind, Page, Token, TokenState, now, rfc3339
from rolecall.errors import InvalidField, TokenNotFound
from rolecall.live_policy import LivePolicy
from rolecall.mutations import Attempt, Done, Moment, Mutations, Unchanged, require_etag
from rolecall.pages import Pages
from rolecall.rights import require_person
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import tokens as rows
from rolecall.storage.credentials import NewCredential
from rolecall.token_rules import (
    Wish,
    deletable,
    expiry,
    require_organization_role,
    require_restriction,
    rotatable,
    visible,
)

__all__ = ["Deleted", "Issued", "TokenPage", "Tokens", "described"]

# Design, section 6.
MAX_OVERLAP = 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class Issued:
    """A token with a new secret, shown once; a repeated request finds that it is lost."""

    token: Token
    revision: int
    secret: str = field(repr=False)
    secret_lost: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    """A dead token."""

    token: Token
    revision: int


@dataclass(frozen=True, slots=True)
class TokenPage:
    """A page of tokens."""

    tokens: tuple[Token, ...]
    next_page_token: str


class Tokens:
    """What TokenService does. Every method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, mutations: Mutations, storage: Storage, live: LivePolicy, pages: Pages) -> None:
        self._mutations = mutations
        self._storage = storage
        self._live = live
        self._pages = pages

    def create_personal(self, attempt: Attempt, wish: Wish) -> Issued:
        """Mint a token for the caller. Raises `PersonOnly`, `PermissionMissing`, `RoleBeyondCaller`, `InvalidField`."""

        def authorize(moment: Moment) -> None:
            require_person(moment.caller, "create tokens")
            moment.require("create", "personal-tokens")
            require_restriction(moment, wish.restriction, moment.caller.role)

        def effect(moment: Moment, _: None) -> Done[Issued]:
            return _issue(moment, CredentialKind.PERSONAL, None, wish)

        return self._mutations.run(attempt, Issued, authorize, effect, kept=_without_secret)

    def create_organization(self, attempt: Attempt, wish: Wish, role: str) -> Issued:
        """Mint a token for a program, with a role of its own. Raises as `create_personal`, and `UnknownRoleName`."""

        def authorize(moment: Moment) -> None:
            require_organization_role(moment, role)
            require_restriction(moment, wish.restriction, role)

        def effect(moment: Moment, _: None) -> Done[Issued]:
            return _issue(moment, CredentialKind.ORGANIZATION, role, wish)

        return self._mutations.run(attempt, Issued, authorize, effect, kept=_without_secret)

    def list(
        self, caller: Caller, kind: CredentialKind | None, user_id: str, state: TokenState | None, page: Page
    ) -> TokenPage:
        """The tokens that pass the filters and that the caller may see, the newest first.

        Raises `PermissionMissing` for a filter that asks for others, `InvalidField`, `PageToken`.
        """
        size = self._pages.size(page)
        query = visible(self._live.in_force.policy, caller, kind, user_id, state, now())
        filters = (caller.actor, str(kind), user_id, str(state), str(query.owner), str(query.organizations))
        scope = ("ListTokens", caller.organization, *filters)
        position = self._pages.position(scope, page)
        after = (int(position[0]), position[1]) if position else None
        found = self._storage.read(lambda tx: rows.page(tx, caller.organization, query, after, size + 1))
        last = found[size - 1] if len(found) > size else None
        token = self._pages.token(scope, [str(last.create_time), last.id]) if last else ""
        return TokenPage(tuple(found[:size]), token)

    def rotate(self, attempt: Attempt, token_id: str, overlap: int, etag: str) -> Issued:
        """Give a token a new secret; the old one works for `overlap` microseconds yet.

        Raises `TokenNotFound` (for a dead one too), `EtagMismatch`, and as `create_organization`.
        """
        if not 0 <= overlap <= MAX_OVERLAP:
            raise InvalidField("overlap must be 0 to 24 hours, as in `3600s`.", field="overlap")

        def effect(moment: Moment, token: Token) -> Done[Issued]:
            if token.state(moment.at) is not TokenState.LIVE:
                raise TokenNotFound(f"The token `{token_id}` is dead, and stays so: create another one.", field="id")
            require_etag(etag, token.etag)
            minted = credentials.mint(token.kind, token.id)
            old_until = moment.at + overlap
            credential_rows.rotate(moment.tx, token.organization, minted, old_until)
            issued = Issued(_present(moment.tx, token), moment.tx.revision, minted.text)
            details = {"name": _name(token), "old_secret_until": rfc3339(old_until)}
            return Done(issued, f"token:{token.id}", details)

        return self._mutations.run(
            attempt, Issued, lambda moment: rotatable(moment, token_id), effect, kept=_without_secret
        )

    def delete(self, attempt: Attempt, token_id: str, etag: str) -> Deleted:
        """Kill a token for ever; one that is deleted already stays so. Raises `EtagMismatch`, and as `rotate`."""

        def effect(moment: Moment, token: Token) -> Done[Deleted]:
            if token.revoke_time is not None:
                # The revision that this transaction made goes with it.
                raise Unchanged(Deleted(token, moment.tx.revision - 1))
            require_etag(etag, token.etag)
            credential_rows.revoke(moment.tx, token.organization, token.id, moment.at)
            deleted = Deleted(_present(moment.tx, token), moment.tx.revision)
            return Done(deleted, f"token:{token.id}", {"before": described(token)})

        return self._mutations.run(attempt, Deleted, lambda moment: deletable(moment, token_id), effect)


def described(token: Token) -> Mapping[str, Any]:
    """A token as the audit log tells of it."""
    permissions = token.restriction
    return {
        "kind": token.kind.name.lower(),
        "name": _name(token),
        "role": None if token.user_id else token.role,
        "restriction": None if permissions is None else [f"{item.resource} {item.action}" for item in permissions],
        "expire_time": rfc3339(token.expire_time),
    }


def _issue(moment: Moment, kind: CredentialKind, role: str | None, wish: Wish) -> Done[Issued]:
    caller = moment.caller
    expire_time = expiry(wish, caller, moment.at)
    minted = credentials.mint(kind)
    user_id = caller.user_id if role is None else None
    new = NewCredential(
        minted,
        caller.organization,
        user_id,
        role,
        wish.name,
        wish.restriction,
        caller.user_id,
        moment.at,
        expire_time,
    )
    credential_rows.add(moment.tx, new)
    token = Token(
        new.organization,
        minted.id,
        minted.kind,
        new.name,
        user_id or "",
        new.created_by,
        role or caller.role,
        new.restriction,
        minted.last_four,
        new.create_time,
        new.expire_time,
        last_used_time=None,
        revoke_time=None,
        changed=moment.tx.revision,
    )
    issued = Issued(token, moment.tx.revision, minted.text)
    return Done(issued, f"token:{token.id}", {"after": described(token)})


def _name(token: Token) -> Private | str:
    """What a person calls their own token may say something about them; a program's name doesn't."""
    return Private(token.user_id, token.name) if token.user_id else token.name


def _present(tx: Transaction, token: Token) -> Token:
    return rows.get(tx, token.organization, token.id) or token


def _without_secret(issued: Issued) -> Issued:
    return replace(issued, secret="", secret_lost=True)
