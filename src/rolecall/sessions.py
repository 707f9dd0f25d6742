"""Sessions: opened by a mailed link; the presented credential: whose it is, what it may do, and its end."""

import time
from dataclasses import dataclass, field

import structlog

from rolecall import addresses, credentials
from rolecall.credentials import Minted
from rolecall.domain import Caller, CredentialKind, LinkKind, Member, Permission, Token, now
from rolecall.errors import RateLimited, UnauthenticatedCredential
from rolecall.limits import Limit
from rolecall.links import Links
from rolecall.live_policy import LivePolicy
from rolecall.mutations import Arrival, Attempt, Done, Entered, Moment, Mutations
from rolecall.organizations import OrganizationView, view
from rolecall.policy import Policy, narrowed
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import mails as mail_rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.credentials import NewCredential
from rolecall.storage.mails import Mail, SignInRequest

__all__ = ["SESSION_LIFE", "Entrance", "Identity", "Sessions", "open_session"]

# Design, section 6.
SESSION_LIFE = 12 * 60 * 60 * 1_000_000
LINK_LIFE = 15 * 60 * 1_000_000
# A request to sign in has one secret only.
GENERATION = 1
# So many a machine may have mailed whatever others ask for.
FEW = 3
# One line of the log stands for so many seconds of requests beyond the limits.
QUIET_SECONDS = 10.0
_log = structlog.get_logger("rolecall.sessions")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a caller is: a member, or an organization's token; and what the credential may do."""

    caller: Caller
    organization: OrganizationView
    holder: Member | Token
    permissions: tuple[Permission, ...]


@dataclass(frozen=True, slots=True)
class Entrance:
    """Somebody who came in by a mailed secret: the member, and the new session, whose text is shown once."""

    member: Member
    session: Minted = field(repr=False)
    expire_time: int
    revision: int


class Sessions:
    """What SessionService does. Every method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, mutations: Mutations, storage: Storage, live: LivePolicy, links: Links) -> None:
        self._mutations = mutations
        self._storage = storage
        self._live = live
        self._links = links
        self._limits = {
            # Few for one address, so that nobody's mailbox is flooded.
            "address": Limit("sign-in mails for one address", rate=1 / 300, burst=3),
            # More for one machine: a gateway or a product's own backend asks for all its people.
            "peer": Limit("sign-in mails from one machine", rate=1, burst=60),
            "organization": Limit("sign-in mails for one organization", rate=2, burst=200),
        }
        self._quiet_until = 0.0

    def request_sign_in(self, arrival: Arrival, organization: str, email: str) -> None:
        """Have a link mailed, if the address is a member's. What is written tells nothing of that.

        Beyond the limits nothing is, and nobody is told but the operator. Raises `InvalidField`.
        """
        address = addresses.parse(email)
        keys = {"address": f"{organization} {address.key}", "peer": arrival.peer, "organization": organization}
        try:
            for name, key in keys.items():
                # Strangers who use an organization's share up must not shut out whoever comes from elsewhere.
                if name != "organization" or not self._limits["peer"].has_few(arrival.peer, FEW):
                    self._limits[name].require(key)
        except RateLimited as error:
            # Not for every call: strangers must not fill the disk.
            if time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + QUIET_SECONDS
                _log.warning("no sign-in mail", organization=organization, peer=arrival.peer, error=error.message)
            return
        for name, key in keys.items():
            self._limits[name].count(key)
        at = now()
        request = SignInRequest(credentials.new_id(), organization, address.key, at + LINK_LIFE)

        def work(tx: Transaction) -> None:
            mail_rows.prune_sign_ins(tx, at)
            mail_rows.add_sign_in(tx, request)
            mail_rows.add(tx, [Mail(credentials.new_id(), organization, LinkKind.SIGN_IN, request.id, GENERATION)], at)

        self._storage.write(work)

    def sign_in(self, arrival: Arrival, organization: str, secret: str) -> Entrance:
        """Open a session for whoever has the mailed secret; once. Raises `UnauthenticatedCredential`.

        `organization` is empty, or where the link must lead.
        """
        link = credentials.parse_link(secret)
        if link and link[0] is LinkKind.INVITATION:
            raise UnauthenticatedCredential(
                "That is the secret of an invitation: present it to AcceptInvitation.", field="secret"
            )
        # What is forged is found out without asking the database.
        if link is None or not self._links.opens(secret, LinkKind.SIGN_IN, link[1], GENERATION):
            raise _no_link()
        _, request_id = link
        request = self._storage.read(lambda tx: mail_rows.sign_in(tx, request_id))
        if request is None or not request.user_id or organization not in ("", request.organization):
            raise _no_link()

        def effect(tx: Transaction, _: Policy, at: int) -> Entered[Entrance]:
            member = member_rows.get(tx, request.organization, request.user_id)
            if not mail_rows.use_sign_in(tx, request_id) or request.expire_time <= at or member is None:
                raise _no_link()
            entrance = open_session(tx, member, at)
            session_id = entrance.session.id
            return Entered(entrance, f"user:{member.user_id}", {"session": session_id}, member.user_id, session_id)

        return self._mutations.enter(arrival, request.organization, effect)

    def who_am_i(self, caller: Caller) -> Identity:
        """The caller as it stands. Raises `UnauthenticatedCredential` where it went away just now."""
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
        held = narrowed(policy.permissions_of(holder.role), caller.restriction)
        return Identity(caller, organization, holder, tuple(held))

    def sign_out(self, attempt: Attempt) -> int:
        """Kill the presented credential for ever; answers the revision in which it is dead."""

        def effect(moment: Moment, _: None) -> Done[int]:
            caller = moment.caller
            credential_rows.revoke(moment.tx, caller.organization, caller.credential_id, moment.at)
            return Done(moment.tx.revision, f"token:{caller.credential_id}", {"kind": caller.kind.name.lower()})

        return self._mutations.run(attempt, int, lambda _: None, effect)


def open_session(tx: Transaction, member: Member, at: int) -> Entrance:
    """A new session of the member, whose ended ones go. Leaves the audit log to the caller."""
    credential_rows.prune_sessions(tx, member.organization, member.user_id, at)
    minted = credentials.mint(CredentialKind.SESSION)
    expire_time = at + SESSION_LIFE
    new = NewCredential(
        minted, member.organization, member.user_id, None, "session", None, member.user_id, at, expire_time
    )
    credential_rows.add(tx, new)
    return Entrance(member, minted, expire_time, tx.revision)


def _no_link() -> UnauthenticatedCredential:
    return UnauthenticatedCredential(
        "The secret is none that signs anybody in: it was used, or mailed more than 15 minutes ago, or is not whole."
        " Ask for another mail with RequestSignIn.",
        field="secret",
    )
