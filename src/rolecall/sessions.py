"""The presented credential itself: whose it is, what it may do, and its end."""

from dataclasses import dataclass

from rolecall.domain import Caller, Member, Permission, Token
from rolecall.errors import UnauthenticatedCredential
from rolecall.live_policy import LivePolicy
from rolecall.mutations import Attempt, Done, Moment, Mutations
from rolecall.organizations import OrganizationView, view
from rolecall.policy import narrowed
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows

__all__ = ["Identity", "Sessions"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a caller is: a member, or an organization's token; and what the credential may do."""

    caller: Caller
    organization: OrganizationView
    holder: Member | Token
    permissions: tuple[Permission, ...]


class Sessions:
    """What SessionService does."""

    def __init__(self, mutations: Mutations, storage: Storage, live: LivePolicy) -> None:
        self._mutations = mutations
        self._storage = storage
        self._live = live

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
