"""Model of organizations, members, invitations and links, and of the rules about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stateful.credential_model import Credential, CredentialRules, ExpectedEntry, Pattern, Person

__all__ = ["ModelCredential", "ModelInvitation", "ModelOrganization", "ModelSignIn", "Rules", "primary_reason"]


@dataclass(eq=False)
class ModelCredential(Credential):
    """Token or session with its text. `cleared`: its row was deleted."""

    text: str = field(kw_only=True)
    cleared: bool = False


@dataclass(eq=False)
class ModelInvitation:
    """Invitation. `inviting_party`: the inviting person or program; `texts`: its secrets, the newest last.

    `state` as it is stored; `late`: it has expired.
    """

    id: str
    email: str
    role: str
    inviting_party: Person | ModelCredential
    restriction: tuple[Pattern, ...] | None
    expire_time: int
    create_time: int
    texts: list[str]
    etag: str
    state: str = "pending"
    late: bool = False
    joined: Person | None = None

    @property
    def key(self) -> str:
        """The address in lower case."""
        return self.email.lower()

    @property
    def shown(self) -> str:
        """The state as the API shows it."""
        return "expired" if self.late and self.state == "pending" else self.state

    @property
    def inviter(self) -> str:
        """The inviting actor, as stored."""
        return (
            f"user:{self.inviting_party.id}" if isinstance(self.inviting_party, Person) else self.inviting_party.actor
        )


@dataclass(eq=False)
class ModelSignIn:
    """Request to sign in, and its link. `person`: the member to whom it was mailed."""

    id: str
    key: str
    text: str
    person: Person | None = None
    used: bool = False
    late: bool = False
    pruned: bool = False


@dataclass(eq=False)
class ModelOrganization:
    """Organization. `mails`: the state of each mail, by the id of its invitation or request and the generation.

    `requests`: the stored requests, as (actor, action, request_id).
    """

    name: str
    people: list[Person] = field(default_factory=list)
    creds: list[ModelCredential] = field(default_factory=list)
    invites: list[ModelInvitation] = field(default_factory=list)
    links: list[ModelSignIn] = field(default_factory=list)
    entries: list[ExpectedEntry] = field(default_factory=list)
    mails: dict[tuple[str, int], str] = field(default_factory=dict)
    requests: set[tuple[str, str, str]] = field(default_factory=set)
    revision: int = 1

    @property
    def present(self) -> list[Person]:
        """The members."""
        return [person for person in self.people if person.present]

    @property
    def live(self) -> list[ModelCredential]:
        """The credentials that work."""
        return [cred for cred in self.creds if cred.live]

    def member(self, key: str) -> Person | None:
        """The member with this address."""
        return next((person for person in self.present if person.key == key), None)

    def person(self, user_id: str) -> Person | None:
        """The member with this id."""
        return next((person for person in self.present if person.id == user_id), None)

    def token(self, token_id: str) -> ModelCredential | None:
        """The token with this id, live or not; neither a session nor a removed person's."""
        found = (cred for cred in self.creds if cred.id == token_id)
        return next((cred for cred in found if not cred.is_session and not cred.gone), None)

    def invite(self, invitation_id: str) -> ModelInvitation | None:
        """The invitation with this id."""
        return next((invite for invite in self.invites if invite.id == invitation_id), None)

    def pending(self, key: str) -> ModelInvitation | None:
        """The invitation by which this address can join."""
        return next((invite for invite in self.invites if invite.key == key and invite.shown == "pending"), None)


def primary_reason(problems: Sequence[tuple[str, str]]) -> str:
    """Return the reason of a batch's error for these problems (field, reason): the most important, then the first."""

    def rank(problem: tuple[str, str]) -> tuple[int, int]:
        place = int(problem[0].partition("[")[2].partition("]")[0]) if "[" in problem[0] else 0
        if problem[1] in ("INVALID_FIELD", "UNKNOWN_ROLE_NAME", "BATCH_SIZE"):
            return 0, place
        return (1 if problem[1] in ("PERMISSION_MISSING", "ROLE_BEYOND_CALLER") else 2), place

    return min(problems, key=rank)[1] if problems else ""


class Rules(CredentialRules):
    """Rules of one policy for people too: each answer is the reason for a refusal, or empty."""

    def handles_any(self, cred: ModelCredential, verb: str) -> str:
        """Return the refusal if the credential may `verb` people of no role at all."""
        return "" if self.can(cred, "owners", verb) else self.needs(cred, "members", verb)

    def handles(self, points: int, verb: str, role: str) -> str:
        """Rule 1: whether a credential with these points may `verb` people of a role."""
        beyond = self.beyond(points, role)
        if beyond and self.has(points, "owners", verb):
            return ""
        if not self.has(points, "members", verb):
            return "PERMISSION_MISSING"
        return "ROLE_BEYOND_CALLER" if beyond else ""

    def inviter_still_may(self, invite: ModelInvitation) -> bool:
        """Rule 5 of the invariants: whether the inviter could still make the invitation."""
        inviting_party = invite.inviting_party
        if not (inviting_party.present if isinstance(inviting_party, Person) else inviting_party.live):
            return False
        return not self.handles(
            self.of_role[inviting_party.role] & self.bound(invite.restriction), "invite", invite.role
        )

    def is_last_owner(self, org: ModelOrganization, person: Person) -> bool:
        """Rule 2: whether nobody would own the organization without this member."""
        return person.role in self.owners and sum(other.role in self.owners for other in org.present) == 1

    def invites(
        self, org: ModelOrganization, cred: ModelCredential, entries: Sequence[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """All problems of inviting these (address, role) pairs, as (field, reason)."""
        if not entries:
            return [("invitations", "BATCH_SIZE")]
        malformed, problems = [], []
        first: set[str] = set()
        for number, (email, role) in enumerate(entries):
            field, key = f"invitations[{number}]", email.lower()
            malformed += [(f"{field}.role", "INVALID_FIELD")] * (not role)
            if role:
                judged = self.handles(self.held(cred), "invite", role) if role in self.may else "UNKNOWN_ROLE_NAME"
                problems += [(f"{field}.role", judged)] if judged else []
            if "@" not in email[1:]:
                malformed.append((f"{field}.email", "INVALID_FIELD"))
                continue
            if org.member(key):
                problems.append((f"{field}.email", "ALREADY_MEMBER"))
            elif org.pending(key) or key in first:
                problems.append((f"{field}.email", "DUPLICATE_INVITATION"))
            first.add(key)
        if missing := self.handles_any(cred, "invite"):
            # A caller who may invite nobody does not learn who is a member or invited.
            return malformed or [("", missing)]
        return malformed + problems
