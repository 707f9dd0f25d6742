"""Notices of tokens' expiry: mails to a token's holder, and to the members who may view it."""

import time

from rolecall.credentials import token_format
from rolecall.domain import MailKind, Token, now
from rolecall.identity.rate_limit import RateLimiter
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.policy import Policy
from rolecall.policy.reload import LivePolicy
from rolecall.services.caller_permissions import roles_that_may
from rolecall.services.token_rules import DAY
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import outbox as mail_rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.outbox import ExpiryNotice, Mail

__all__ = ["ExpiryNotices"]

# Microseconds before the expiry at which the notices of a token are due. One that lives no longer has no such notice.
NOTICES = (14 * DAY, 3 * DAY)
# Members who get a notice besides the holder, so that one organization can't fill the outbox.
MAX_VIEWERS = 100
# Tokens whose notices one transaction queues.
BATCH = 100


class ExpiryNotices:
    """Queues the notices that are due, each once, whichever process does. Not thread-safe: one periodic thread runs it.

    A token counts its notices in the transaction that queues them. Of several that are due, as after an upgrade, only
    the last is queued.
    """

    def __init__(self, storage: Storage, live: LivePolicy, limits: Limits = DEFAULT_LIMITS) -> None:
        self._storage = storage
        self._live = live
        self._viewers_limit = RateLimiter("notices of tokens that expire", limits.expiry_notices)
        self._burst = limits.expiry_notices.burst
        self._interval = limits.expiry_notice_seconds
        self._next = time.monotonic() + self._interval

    def run(self) -> None:
        """Queue some notices if the interval has passed. Raises `StorageUnavailable`, `WriteConflict`."""
        if time.monotonic() < self._next:
            return
        # Most of the time none is due: reading locks nothing.
        due = self._storage.read(lambda tx: token_rows.expiring(tx, now(), NOTICES, BATCH))
        if due:
            self._storage.write(self._queue)
        if len(due) < BATCH:
            self._next = time.monotonic() + self._interval

    def _queue(self, tx: Transaction) -> None:
        at, policy = now(), self._live.in_force.policy
        mails = []
        for token, number in token_rows.expiring(tx, at, NOTICES, BATCH):
            if token_rows.count_notices(tx, token, number):
                mails += [
                    Mail(
                        token_format.new_id(),
                        token.organization,
                        MailKind.TOKEN_EXPIRY,
                        ExpiryNotice(token.id, user_id).text,
                        number,
                    )
                    for user_id in self._recipients(tx, policy, token)
                ]
        if mails:
            mail_rows.add(tx, mails, at)

    def _recipients(self, tx: Transaction, policy: Policy, token: Token) -> list[str]:
        """Return the ids of the holder, if the token is a person's, and of those who may view the token in a list.

        Without the latter for a holder with too many tokens that expire.
        """
        ids = [*filter(None, [token.user_id])]
        key = f"{token.organization} {token.user_id}"
        if self._viewers_limit.is_below(key, self._burst):
            self._viewers_limit.count(key)
            roles = roles_that_may(policy, "view", token.resource)
            viewers = member_rows.page_with_roles(tx, token.organization, roles, None, MAX_VIEWERS)
            ids += [member.user_id for _, member in viewers]
        return list(dict.fromkeys(ids))
