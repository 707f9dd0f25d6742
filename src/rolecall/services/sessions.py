"""Sessions: open one with a mailed link; describe the presented credential, and revoke it."""

import time
from dataclasses import dataclass, field

import structlog

from rolecall.credentials import token_format
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.credentials.token_format import MintedCredential
from rolecall.domain import (
    ORGANIZATION,
    Caller,
    CredentialKind,
    LinkKind,
    MailKind,
    Member,
    Permission,
    Token,
    now,
)
from rolecall.errors import RateLimited, UnauthenticatedCredential
from rolecall.formats import email_address
from rolecall.identity.rate_limit import RateLimiter
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.policy import Policy, permissions_at
from rolecall.policy.reload import LivePolicy
from rolecall.services.organizations import OrganizationView, view
from rolecall.services.unit_of_work import (
    Answer,
    ChangeContext,
    ChangeRequest,
    Outcome,
    SignedIn,
    UnauthenticatedCall,
    UnitOfWork,
    Written,
)
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import outbox as mail_rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.credentials import NewCredential
from rolecall.storage.outbox import Mail, SignInRequest

__all__ = ["SESSION_LIFE", "Identity", "OpenedSession", "Sessions", "open_session"]

# In microseconds: 12 hours for a session, 15 minutes for a link (docs/concepts.md, Credentials).
SESSION_LIFE = 12 * 60 * 60 * 1_000_000
LINK_LIFE = 15 * 60 * 1_000_000
# Generation of the secret of a request to sign in, which is never resent.
GENERATION = 1
# Mails that a peer may request even when other peers have used up the organization's limit.
PEER_ALLOWANCE = 3
# Seconds between two log lines about requests beyond the limits.
QUIET_SECONDS = 10.0
_log = structlog.get_logger("rolecall.sessions")


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity behind a credential: its holder (a member or an organization token), and what the credential may do."""

    caller: Caller
    organization: OrganizationView
    holder: Member | Token
    permissions: tuple[Permission, ...]


@dataclass(frozen=True, slots=True)
class OpenedSession(Answer):
    """Answer to a sign-in or an accepted invitation: the member and the new session, whose secret is shown once."""

    member: Member
    session: MintedCredential = field(repr=False)
    expire_time: int


class Sessions:
    """Use cases of SessionService. Each method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(
        self,
        unit_of_work: UnitOfWork,
        storage: Storage,
        live: LivePolicy,
        links: MailedSecrets,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._unit_of_work = unit_of_work
        self._storage = storage
        self._live = live
        self._links = links
        self._limits = {
            "address": RateLimiter("sign-in mails for one address", limits.sign_ins_per_address),
            "peer": RateLimiter("sign-in mails requested by one peer", limits.sign_ins_per_peer),
            "organization": RateLimiter("sign-in mails for one organization", limits.sign_ins_per_organization),
        }
        self._quiet_until = 0.0

    def request_sign_in(self, call: UnauthenticatedCall, organization: str, email: str) -> None:
        """Enqueue the mail of a sign-in link, which is sent only if the address is a member's.

        The rows written here, and the response, do not depend on whether the address is a member's. Beyond the rate
        limits nothing is written, and only the operator learns of that, from the log. Raises `InvalidField`.
        """
        address = email_address.parse(email)
        keys = {"address": f"{organization} {address.key}", "peer": call.peer, "organization": organization}
        try:
            for name, key in keys.items():
                # Callers who use up an organization's limit must not block members who call from other peers.
                if name != "organization" or not self._limits["peer"].is_below(call.peer, PEER_ALLOWANCE):
                    self._limits[name].require(key)
        except RateLimited as error:
            # Not for every call, as unauthenticated callers must not fill the disk.
            if time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + QUIET_SECONDS
                _log.warning(
                    "sign-in mail refused by rate limit", organization=organization, peer=call.peer, error=error.message
                )
            return
        for name, key in keys.items():
            self._limits[name].count(key)
        at = now()
        request = SignInRequest(token_format.new_id(), organization, address.key, at + LINK_LIFE)

        def work(tx: Transaction) -> None:
            mail_rows.prune_sign_ins(tx, at)
            mail_rows.add_sign_in(tx, request)
            mail_rows.add(tx, [Mail(token_format.new_id(), organization, MailKind.SIGN_IN, request.id, GENERATION)], at)

        self._storage.write(work)

    def sign_in(self, call: UnauthenticatedCall, organization: str, secret: str) -> OpenedSession:
        """Open a session in exchange for a mailed secret, which works once. Raises `UnauthenticatedCredential`.

        `organization` is the one that the link must belong to; empty for any.
        """
        link = token_format.parse_link(secret)
        if link and link[0] is LinkKind.INVITATION:
            raise UnauthenticatedCredential(
                "The secret is for an invitation: present it to AcceptInvitation.", field="secret"
            )
        # A forged secret is detected without a query.
        if link is None or not self._links.opens(secret, LinkKind.SIGN_IN, link[1], GENERATION):
            raise _unusable_link()
        _, request_id = link
        request = self._storage.read(lambda tx: mail_rows.sign_in(tx, request_id))
        if request is None or not request.user_id or organization not in ("", request.organization):
            raise _unusable_link()

        def effect(tx: Transaction, _: Policy, at: int) -> SignedIn[OpenedSession]:
            member = member_rows.get(tx, request.organization, request.user_id)
            if not mail_rows.use_sign_in(tx, request_id) or request.expire_time <= at or member is None:
                raise _unusable_link()
            opened = open_session(tx, member, at)
            session_id = opened.session.id
            return SignedIn(opened, f"user:{member.user_id}", {"session": session_id}, member.user_id, session_id)

        return self._unit_of_work.run_unauthenticated(call, request.organization, effect)

    def who_am_i(self, caller: Caller) -> Identity:
        """Describe the caller as it is now. Raises `UnauthenticatedCredential` if its holder has just been removed."""
        policy = self._live.in_force.policy

        def work(tx: Transaction) -> tuple[OrganizationView, Member | Token | None]:
            holder: Member | Token | None
            if caller.user_id:
                holder = member_rows.get(tx, caller.organization, caller.user_id)
            else:
                holder = token_rows.get(tx, caller.organization, caller.credential_id)
            return view(tx, policy, caller.organization), holder

        organization, holder = self._storage.read(work)
        if holder is None:
            raise UnauthenticatedCredential
        assigned = caller.assigned.at(now())
        permissions = permissions_at(policy, holder.role, assigned, caller.restriction, ORGANIZATION)
        return Identity(caller, organization, holder, tuple(permissions))

    def sign_out(self, request: ChangeRequest) -> int:
        """Revoke the presented credential for good; returns the revision as of which it is revoked."""

        def effect(context: ChangeContext, _: None) -> Outcome[Answer]:
            caller = context.caller
            credential_rows.revoke(context.tx, caller.organization, caller.credential_id, context.at)
            return Written(Answer(), f"token:{caller.credential_id}", {"kind": caller.kind.name.lower()})

        return self._unit_of_work.run(request, Answer, lambda _: None, effect).revision


def open_session(tx: Transaction, member: Member, at: int) -> OpenedSession:
    """Open a session of the member, and delete their expired ones. The audit entry is up to the caller."""
    credential_rows.prune_sessions(tx, member.organization, member.user_id, at)
    minted = token_format.mint(CredentialKind.SESSION)
    expire_time = at + SESSION_LIFE
    new = NewCredential(
        minted, member.organization, member.user_id, None, "session", None, member.user_id, at, expire_time
    )
    credential_rows.add(tx, new)
    return OpenedSession(member, minted, expire_time)


def _unusable_link() -> UnauthenticatedCredential:
    return UnauthenticatedCredential(
        "The secret does not sign anybody in: it was used, or mailed more than 15 minutes ago, or is incomplete."
        " Ask for another mail with RequestSignIn.",
        field="secret",
    )
