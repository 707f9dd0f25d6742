"""Limits of a server: bounds that protect it from floods and outages, in one value that `build_server` takes.

Operators don't set them. Tests pass smaller ones.
"""

from dataclasses import dataclass, fields

__all__ = ["DEFAULT_LIMITS", "Limits", "Rate"]


@dataclass(frozen=True, slots=True)
class Rate:
    """Rate of events: `burst` at once, and `per_second` more each second."""

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        """Raise `ValueError` for a rate that never lets another event through."""
        if self.per_second <= 0 or self.burst < 1:
            raise ValueError(f"A rate needs more than 0 events per second and a burst of at least 1: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one server. Times are in seconds.

    Waiting calls:
    `waiting_calls`: maximum calls that wait for an executor or a batch loader; above it, new ones are refused with
    RATE_LIMITED. Above the same number of calls that wait for their request message, the oldest are cancelled.
    `waiting_bytes`: maximum bytes of the messages of waiting calls. Messages below 4 KiB don't count: those of all
    waiting calls together have 40 MB.
    `message_seconds`: time after which a call whose request message hasn't arrived is cancelled.

    Batch loaders:
    `load_pace`: minimum time between the starts of two batches while keys queue up. A query for one key costs nearly as
    much as one for ten. Beside 5,000 unknown subjects a second, 1.5 ms delayed every call, and 8 ms delayed the loaded
    ones for longer. A key that is alone never waits for it.
    `load_unpaced`: queued keys from which on the pace is skipped.
    `load_batch`: maximum keys in one batch; the answers to more would delay other calls.
    `load_seconds`: time after which a query is given up; a connection to a halted database may hang without end.
    `queued_subjects`: maximum queued keys of subjects; above it, a load is refused with RATE_LIMITED.
    `queued_credentials`: the same for credentials that were not valid within the last 10 minutes.

    Caches:
    `cached_entries`: maximum cached members and tokens, and as many cached absences; the oldest are evicted.
    `cached_organizations`: maximum organizations; above it, all entries are dropped.
    `cached_seconds`: lifetime of an entry: a change made by hand in the database takes effect after that.

    Guesses:
    `failed_credentials`: credentials that are not valid, for each peer. Forged ones are well-formed, as the checksum
    is public, and each costs a look-up.
    `guessed_tokens`: tokens in questions that are not valid, for each caller.
    `guessed_invitations`: secrets that open no invitation, for each peer.
    `failure_seconds`: failed authentications of one kind (peer, cause and credential) are logged at most once in this
    time.
    `failure_kinds_per_peer`, `failure_kinds`: maximum kinds that have lines of their own; above them, failures share
    a line.

    Mail:
    `sign_ins_per_address`: low, so that no mailbox is flooded.
    `sign_ins_per_peer`: higher: a gateway or a product's own backend requests mails for all its people.
    `sign_ins_per_organization`: sign-in mails for all members of one organization.
    `resends`: mails of one invitation.
    `mail_poll_seconds`: how often the outbox is read for mails that other processes queued; the mails of this one wake
    the sender.
    `mail_retry_seconds`: pause where another server has locked the mails that are due, and the first after a failure.
    `mail_lease_seconds`: time for which no other server sends a mail that this one has leased: sending it waits for up
    to six answers of the mail server.
    `mail_leases`: maximum mails leased at once.
    `mail_attempts`: attempts to send a mail that the mail server defers. The pauses between them start at
    `mail_first_pause_seconds`, double, and are at most `mail_max_pause_seconds`: the last attempt is after about three
    hours.
    `mail_outage_pause_seconds`: maximum pause while the mail server or the database can't be reached.
    `mail_timeout_seconds`: for connecting, and for each answer of the mail server.
    `expiry_notice_seconds`: time between two searches for tokens that expire soon.
    `expiry_notices`: tokens of one person, or of an organization itself, whose expiry other members are notified of:
    nobody floods their mailboxes by creating short-lived tokens.

    Audit:
    `denial_seconds`: denials of one kind (actor, action and reason) are recorded at most once in this time
    (docs/concepts.md, Audit).
    `denial_kinds`: maximum kinds of one organization that have entries of their own; above it, denials share one entry.
    `misuse_seconds`: uses of one token that is deleted, or from outside its networks, are recorded at most once in this
    time, and so are those of a secret from before a rotation.
    `export_entries`: entries read in one transaction of an export.
    `verifications`: maximum verifications at a time, each of which can keep a processor busy.

    Storage and policy:
    `validations`: maximum validations of policies at a time, each of which keeps a processor busy for seconds.
    `database_seconds`: maximum wait of a statement for another writer's lock, and for a connection from the pool.
    `cleanup_seconds`: time between two deletions of rows that are no longer needed.
    `casbin_seconds`: maximum time of the check of a new policy against Casbin at the start of a server. A fifth of that
    compares all permissions of the shipped policy for each role; the rest are borders.
    """

    waiting_calls: int = 10_000
    waiting_bytes: int = 64 * 1024 * 1024
    message_seconds: float = 10.0

    load_pace: float = 0.0025
    load_unpaced: int = 100
    load_batch: int = 500
    load_seconds: float = 5.0
    queued_subjects: int = 10_000
    queued_credentials: int = 1000

    cached_entries: int = 100_000
    cached_organizations: int = 100_000
    cached_seconds: float = 300.0

    failed_credentials: Rate = Rate(20.0, 200)
    guessed_tokens: Rate = Rate(10.0, 1000)
    guessed_invitations: Rate = Rate(20.0, 200)
    failure_seconds: float = 60.0
    failure_kinds_per_peer: int = 20
    failure_kinds: int = 1000

    sign_ins_per_address: Rate = Rate(1 / 300, 3)
    sign_ins_per_peer: Rate = Rate(1.0, 60)
    sign_ins_per_organization: Rate = Rate(2.0, 200)
    resends: Rate = Rate(1 / 60, 3)
    mail_poll_seconds: float = 5.0
    mail_retry_seconds: float = 0.5
    mail_lease_seconds: float = 180.0
    mail_leases: int = 5
    mail_attempts: int = 12
    mail_first_pause_seconds: float = 5.0
    mail_max_pause_seconds: float = 3600.0
    mail_outage_pause_seconds: float = 60.0
    mail_timeout_seconds: float = 15.0
    expiry_notice_seconds: float = 60.0
    expiry_notices: Rate = Rate(1 / 3600, 20)

    denial_seconds: float = 60.0
    denial_kinds: int = 100
    misuse_seconds: float = 3600.0
    export_entries: int = 500
    verifications: int = 2

    validations: int = 1
    database_seconds: float = 2.0
    cleanup_seconds: float = 600.0
    casbin_seconds: float = 0.5

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number below 1 or a time below 0: a queue without a place would wait for ever."""
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, Rate) and value < (1 if each.type is int else 0):
                raise ValueError(f"{each.name} is {value}: give at least {1 if each.type is int else 0}.")


DEFAULT_LIMITS = Limits()
