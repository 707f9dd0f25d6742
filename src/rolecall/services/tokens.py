"""Tokens that people and programs present: create, list, rotate and delete them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rolecall.audit import Private
from rolecall.credentials import token_format
from rolecall.domain import Caller, CredentialKind, Page, Token, TokenState, now, rfc3339
from rolecall.errors import InvalidField, TokenNotFound
from rolecall.formats.networks import format_networks
from rolecall.policy.reload import LivePolicy
from rolecall.services.caller_permissions import require_person
from rolecall.services.pagination import Pagination
from rolecall.services.token_rules import (
    TokenSpec,
    end_of,
    expiry_of,
    require_deletable,
    require_networks,
    require_organization_role,
    require_restriction,
    require_rotatable,
    visible_tokens,
)
from rolecall.services.unit_of_work import (
    Answer,
    ChangeContext,
    ChangeRequest,
    Outcome,
    Unchanged,
    UnitOfWork,
    Written,
    require_etag,
)
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import tokens as rows
from rolecall.storage.credentials import NewCredential

__all__ = ["DeletedToken", "IssuedToken", "TokenPage", "Tokens", "audit_details"]

# Microseconds that the old secret of a rotated token may keep working: 24 hours (docs/concepts.md, Credentials).
MAX_OVERLAP = 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class IssuedToken(Answer):
    """Answer to a creation or rotation: the token and its new secret, which only this answer holds.

    The answer to a repeated request has `secret_lost` set and no secret.
    """

    token: Token
    secret: str = field(repr=False)
    secret_lost: bool = False


@dataclass(frozen=True, slots=True)
class DeletedToken(Answer):
    """Answer to a deletion: the token, which works no longer."""

    token: Token


@dataclass(frozen=True, slots=True)
class TokenPage:
    """A page of tokens."""

    tokens: tuple[Token, ...]
    next_page_token: str


class Tokens:
    """Use cases of TokenService. Each method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, unit_of_work: UnitOfWork, storage: Storage, live: LivePolicy, pages: Pagination) -> None:
        self._unit_of_work = unit_of_work
        self._storage = storage
        self._live = live
        self._pages = pages

    def create_personal(self, request: ChangeRequest, spec: TokenSpec) -> IssuedToken:
        """Create a personal token of the caller.

        Raises `PersonOnly`, `PermissionMissing`, `RoleBeyondCaller`, `InvalidField`.
        """

        def authorize(context: ChangeContext) -> None:
            require_person(context.caller, "create tokens")
            context.require("create", "personal-tokens")
            require_restriction(context, spec.restriction, "")
            require_networks(context.caller, spec.networks, context.caller.role)

        def effect(context: ChangeContext, _: None) -> Outcome[IssuedToken]:
            return _create(context, CredentialKind.PERSONAL, None, spec)

        return self._unit_of_work.run(request, IssuedToken, authorize, effect, stored_as=_without_secret)

    def create_organization(self, request: ChangeRequest, spec: TokenSpec, role: str) -> IssuedToken:
        """Create an organization token, which a program uses with a role of its own.

        Raises as `create_personal`, and `UnknownRoleName`.
        """

        def authorize(context: ChangeContext) -> None:
            until = end_of(spec, context.caller, context.at)
            require_organization_role(context, role, spec.restriction, until)
            require_restriction(context, spec.restriction, role)
            require_networks(context.caller, spec.networks, role)

        def effect(context: ChangeContext, _: None) -> Outcome[IssuedToken]:
            return _create(context, CredentialKind.ORGANIZATION, role, spec)

        return self._unit_of_work.run(request, IssuedToken, authorize, effect, stored_as=_without_secret)

    def list(
        self,
        caller: Caller,
        kind: CredentialKind | None,
        user_id: str,
        state: TokenState | None,
        page: Page,
        *,
        show_deleted: bool = False,
        expires_within: int | None = None,
    ) -> TokenPage:
        """List the tokens that match the filters and that the caller may see, the newest first.

        Without a `state`, deleted ones are left out unless `show_deleted`. `expires_within`: only active ones that
        expire within this number of microseconds.
        Raises `PermissionMissing` for a filter on tokens that the caller may not see, `InvalidField`, `PageToken`.
        """
        size = self._pages.size(page)
        at = now()
        query = visible_tokens(self._live.in_force.policy, caller, kind, user_id, state, at)
        query = replace(query, show_deleted=show_deleted)
        if expires_within is not None:
            _require_active(state, expires_within)
            query = replace(query, state=TokenState.ACTIVE, expires_before=at + expires_within)
        seen = (str(query.owner), str(query.organizations))
        filters = (caller.actor, str(kind), user_id, str(state), str(show_deleted), str(expires_within), *seen)
        scope = ("ListTokens", caller.organization, *filters)
        position = self._pages.position(scope, page)
        after = (int(position[0]), position[1]) if position else None
        found = self._storage.read(lambda tx: rows.page(tx, caller.organization, query, after, size + 1))
        last = found[size - 1] if len(found) > size else None
        token = self._pages.token(scope, [str(last.create_time), last.id]) if last else ""
        return TokenPage(tuple(found[:size]), token)

    def rotate(self, request: ChangeRequest, token_id: str, overlap: int, etag: str) -> IssuedToken:
        """Give a token a new secret; the old one keeps working for `overlap` microseconds.

        Raises `TokenNotFound` (also for an expired or deleted token), `EtagMismatch`, and as `create_organization`.
        """
        if not 0 <= overlap <= MAX_OVERLAP:
            raise InvalidField("overlap must be 0 to 24 hours: write it in seconds, as `3600s`.", field="overlap")

        def effect(context: ChangeContext, token: Token) -> Outcome[IssuedToken]:
            if token.state(context.at) is not TokenState.ACTIVE:
                raise TokenNotFound(
                    f"The token `{token_id}` is expired or deleted for good: create another.", field="id"
                )
            require_etag(etag, token.etag)
            minted = token_format.mint(token.kind, token.id)
            old_until = context.at + overlap
            credential_rows.rotate(context.tx, token.organization, minted, old_until)
            issued = IssuedToken(_as_written(context.tx, token), minted.text)
            details = {"display_name": _audited_name(token), "old_secret_until": rfc3339(old_until)}
            return Written(issued, f"token:{token.id}", details)

        return self._unit_of_work.run(
            request,
            IssuedToken,
            lambda context: require_rotatable(context, token_id),
            effect,
            stored_as=_without_secret,
        )

    def delete(self, request: ChangeRequest, token_id: str, etag: str) -> DeletedToken:
        """Revoke a token for good; a deleted one is left as it is. Raises `EtagMismatch`, and as `rotate`."""

        def effect(context: ChangeContext, token: Token) -> Outcome[DeletedToken]:
            if token.revoke_time is not None:
                return Unchanged(DeletedToken(token))
            require_etag(etag, token.etag)
            credential_rows.revoke(context.tx, token.organization, token.id, context.at)
            deleted = DeletedToken(_as_written(context.tx, token))
            return Written(deleted, f"token:{token.id}", {"before": audit_details(token)})

        return self._unit_of_work.run(
            request, DeletedToken, lambda context: require_deletable(context, token_id), effect
        )


def audit_details(token: Token) -> Mapping[str, Any]:
    """Details of a token for the audit log."""
    restriction = token.restriction
    permissions = restriction.permissions if restriction else None
    return {
        "kind": token.kind.name.lower(),
        "display_name": _audited_name(token),
        "role": None if token.user_id else token.role,
        "restriction": None if permissions is None else [f"{item.resource} {item.action}" for item in permissions],
        "expire_time": rfc3339(token.expire_time),
        "networks": format_networks(token.networks) or None,
        **({"scope": restriction.scope} if restriction and restriction.scope else {}),
    }


def _require_active(state: TokenState | None, expires_within: int) -> None:
    """Raise `InvalidField` unless `expires_within` is a time span, and `state` allows active tokens."""
    if expires_within <= 0:
        raise InvalidField(
            "expires_within must be longer than 0, as in `1209600s`: list expired tokens by their state.",
            field="expires_within",
        )
    if state not in (None, TokenState.ACTIVE):
        raise InvalidField(
            f"expires_within matches active tokens, and the state {state.value} others: leave one of the two out.",
            field="state",
        )


def _create(context: ChangeContext, kind: CredentialKind, role: str | None, spec: TokenSpec) -> Outcome[IssuedToken]:
    caller = context.caller
    expire_time = expiry_of(spec, caller, context.at)
    minted = token_format.mint(kind)
    user_id = caller.user_id if role is None else None
    new = NewCredential(
        minted,
        caller.organization,
        user_id,
        role,
        spec.display_name,
        spec.restriction,
        caller.user_id,
        context.at,
        expire_time,
        spec.networks,
    )
    credential_rows.add(context.tx, new)
    token = Token(
        new.organization,
        minted.id,
        minted.kind,
        new.display_name,
        user_id or "",
        new.creator,
        role or caller.role,
        new.restriction,
        minted.last_four,
        new.create_time,
        new.expire_time,
        last_use_time=None,
        revoke_time=None,
        changed=context.tx.revision,
        networks=new.networks,
    )
    issued = IssuedToken(token, minted.text)
    return Written(issued, f"token:{token.id}", {"after": audit_details(token)})


def _audited_name(token: Token) -> Private | str:
    """Return the token's name for the audit log; erasable for a personal token, as it may be about the person."""
    return Private(token.user_id, token.display_name) if token.user_id else token.display_name


def _as_written(tx: Transaction, token: Token) -> Token:
    return rows.get(tx, token.organization, token.id) or token


def _without_secret(issued: IssuedToken) -> IssuedToken:
    return replace(issued, secret="", secret_lost=True)
